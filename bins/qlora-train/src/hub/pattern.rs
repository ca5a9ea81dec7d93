//! Patterns of files, of a card or of a user.

use glob::{Pattern, PatternError};

const MAX_PATTERN_BYTES: usize = 1024;
/// Bytes of patterns times bytes of the names that they are compared with: about a second.
const MAX_WORK: u64 = 1 << 30;
/// Files that all patterns mean together, each as often as it is meant.
const MAX_MEANT: u64 = 1_000_000;

/// Work that is left for the patterns of a card: they and the names come from outside, and either alone may be many.
pub(super) struct Budget {
    work: u64,
    meant: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { work: MAX_WORK, meant: MAX_MEANT }
    }
}

impl Budget {
    fn compare(&mut self, pattern: &str, name: &str) -> Result<(), String> {
        let work = (pattern.len().max(1) * name.len()) as u64;
        let left = self.work.checked_sub(work);
        self.work = left
            .ok_or("has more patterns than can be compared with its files, expected some that begin with a folder")?;
        Ok(())
    }

    fn mean(&mut self) -> Result<(), String> {
        let left = self.meant.checked_sub(1);
        self.meant =
            left.ok_or_else(|| format!("has subsets of more than {MAX_MEANT} files in all, expected fewer"))?;
        Ok(())
    }
}

/// Files that a pattern means: `*` stays in a folder, `**` goes below, and a folder stands for all below it. `names`
/// are sorted.
pub(super) fn matching(pattern: &str, names: &[String], budget: &mut Budget) -> Result<Vec<String>, String> {
    let pattern = pattern.trim_start_matches("./");
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("has a pattern of {} characters, expected at most {MAX_PATTERN_BYTES}", pattern.len()));
    }
    let wrong = |error: PatternError| format!("{pattern:?} is no pattern of files ({error})");
    Pattern::new(pattern).map_err(wrong)?;
    let parts = pattern.split('/').map(Part::new).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let folder = format!("{}/", pattern.trim_end_matches('/'));
    // Names that begin otherwise are none of it, and stand elsewhere in the order.
    let literal = pattern.split(['*', '?', '[']).next().unwrap_or_default().trim_end_matches('/');
    let first = names.partition_point(|name| name.as_str() < literal);
    let mut found = Vec::new();
    for name in names[first..].iter().take_while(|name| name.starts_with(literal)) {
        budget.compare(pattern, name)?;
        if fits(&parts, name) || name.starts_with(&folder) {
            budget.mean()?;
            found.push(name.clone());
        }
    }
    Ok(found)
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
        let names = [format!("{deep}t.jsonl"), format!("{folder}/t.jsonl"), format!("{folder}b/t.jsonl")];
        assert!(names.is_sorted());
        let matching = |pattern: &str| matching(pattern, &names, &mut Budget::default());
        assert_eq!(matching("*a*a*a*a*a*a*a*a*a*b/t.jsonl").unwrap(), names[2..]);
        assert_eq!(matching(&format!("{}b/t.jsonl", "**/*/".repeat(40))).unwrap(), [""; 0]);
        assert!(matching("a[b/c]d").unwrap_err().contains("no pattern"));
    }

    #[test]
    fn a_pattern_is_compared_with_names_that_begin_like_it() {
        let mut names: Vec<String> = ["a", "a/b", "a/b/c", "a0", "ab/x", "b", "b/a/x", "é/x"].map(String::from).into();
        names.sort();
        for pattern in ["a", "a/", "./a", "a/*", "a*", "a/**", "**/x", "é", "b/?/x", "[ab]/*", "", "c", "a//"] {
            let literal = pattern.trim_start_matches("./");
            let parts: Vec<Part> = literal.split('/').map(|part| Part::new(part).unwrap()).collect();
            let folder = format!("{}/", literal.trim_end_matches('/'));
            let meant = |name: &&String| fits(&parts, name) || name.starts_with(&folder);
            let expected: Vec<String> = names.iter().filter(meant).cloned().collect();
            assert_eq!(matching(pattern, &names, &mut Budget::default()).unwrap(), expected, "{pattern:?}");
        }
    }

    #[test]
    fn work_and_files_are_counted_over_all_patterns() {
        let names: Vec<String> = (0..1000).map(|at| format!("data/{at:03}.jsonl")).collect();
        let mut budget = Budget { meant: 1500, ..Budget::default() };
        let error = (0..2).find_map(|_| matching("data/*", &names, &mut budget).err()).unwrap();
        assert!(error.contains("more than 1000000 files"), "{error}");
        let mut budget = Budget { work: 1 << 20, ..Budget::default() };
        let wild = format!("*{}", "?".repeat(1000));
        let error = (0..3).find_map(|_| matching(&wild, &names, &mut budget).err()).unwrap();
        assert!(error.contains("more patterns than can be compared"), "{error}");
        // A pattern that names its folder costs nothing elsewhere.
        let mut budget = Budget { work: 1 << 20, ..Budget::default() };
        assert!((0..2000).all(|_| matching(&format!("other/{wild}"), &names, &mut budget).is_ok()));
    }
}
