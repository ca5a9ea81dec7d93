//! Patterns of files, of a card or of a user.

use glob::{Pattern, PatternError};

const MAX_PATTERN_BYTES: usize = 1024;

/// Files that a pattern means: `*` stays in a folder, `**` goes below, and a folder stands for all below it.
pub(super) fn matching(pattern: &str, names: &[String]) -> Result<Vec<String>, String> {
    let pattern = pattern.trim_start_matches("./");
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("has a pattern of {} characters, expected at most {MAX_PATTERN_BYTES}", pattern.len()));
    }
    let wrong = |error: PatternError| format!("{pattern:?} is no pattern of files ({error})");
    Pattern::new(pattern).map_err(wrong)?;
    let parts = pattern.split('/').map(Part::new).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let folder = format!("{}/", pattern.trim_end_matches('/'));
    let is_meant = |name: &&String| fits(&parts, name) || name.starts_with(&folder);
    Ok(names.iter().filter(is_meant).cloned().collect())
}

/// The piece of a pattern between two slashes.
enum Part {
    /// `**`
    Any,
    One(Pattern),
}

impl Part {
    fn new(text: &str) -> Result<Self, PatternError> {
        if text == "**" { Ok(Self::Any) } else { Pattern::new(text).map(Self::One) }
    }
}

/// Whether a pattern means a file. Each of its parts is compared with each part of the name once: patterns come from
/// outside, and one of many `*` over the whole of a name would be tried in more ways than there is time for.
fn fits(parts: &[Part], name: &str) -> bool {
    let names: Vec<&str> = name.split('/').collect();
    // For each count of names: whether the parts so far may stand for just these.
    let mut reached = vec![false; names.len() + 1];
    reached[0] = true;
    for (at, part) in parts.iter().enumerate() {
        let mut next = vec![false; names.len() + 1];
        match part {
            // At the end it stands for one name at least, else for none too.
            Part::Any if at + 1 == parts.len() => next[names.len()] = reached[..names.len()].contains(&true),
            Part::Any => {
                let first = reached.iter().position(|&is_reached| is_reached).unwrap_or(next.len());
                next[first..].fill(true);
            }
            Part::One(pattern) => {
                for (end, name) in names.iter().enumerate() {
                    next[end + 1] = reached[end] && pattern.matches(name);
                }
            }
        }
        reached = next;
    }
    reached[names.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_glob() {
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        let names = ["a", "b", "ab", "a/b", "a/a/b", "a/b/c", "b/a", "a/x.jsonl", "x.jsonl", "a/b/x.jsonl", ".a/b"];
        let patterns = "a * ? ** */* a/* a/** **/b **/* a/**/b a/**/**/b **/** **/a/** */ /a a//b a* *b";
        let endings = "[ab] [!a]/* ./a *.jsonl **/*.jsonl a/?/* *a*/**/x.* */*/*.jsonl a/**/*";
        for pattern in patterns.split(' ').chain(endings.split(' ')).chain([""]) {
            let whole = Pattern::new(pattern).unwrap();
            let parts: Vec<Part> = pattern.split('/').map(|part| Part::new(part).unwrap()).collect();
            for name in names {
                assert_eq!(fits(&parts, name), whole.matches_with(name, options), "{pattern:?} and {name:?}");
            }
        }
    }

    #[test]
    fn a_pattern_of_many_stars_comes_to_an_end() {
        let (folder, deep) = ("a".repeat(200), "a/".repeat(100));
        let names = [format!("{folder}/t.jsonl"), format!("{deep}t.jsonl"), format!("{folder}b/t.jsonl")];
        assert_eq!(matching("*a*a*a*a*a*a*a*a*a*b/t.jsonl", &names).unwrap(), names[2..]);
        assert_eq!(matching(&format!("{}b/t.jsonl", "**/*/".repeat(40)), &names).unwrap(), [""; 0]);
        assert!(matching("a[b/c]d", &names).unwrap_err().contains("no pattern"));
    }
}
