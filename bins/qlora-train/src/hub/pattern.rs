//! Patterns of files, of a card or of a user.

use glob::{Pattern, PatternError};

const MAX_PATTERN_BYTES: usize = 1024;
/// Bytes of patterns times bytes of the names that they are compared with: about a second.
const MAX_WORK: u64 = 1 << 30;
/// Limit on the files that all patterns match together, with repetitions.
const MAX_MEANT: u64 = 1_000_000;

/// Work that is left for the patterns of a card: patterns and names come from outside, and there may be many of each.
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

/// Files that match a pattern: `*` stays in a folder, `**` goes below, and a folder matches everything below it.
/// `names` are sorted.
pub(super) fn matching(pattern: &str, names: &[String], budget: &mut Budget) -> Result<Vec<String>, String> {
    let pattern = pattern.trim_start_matches("./");
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("has a pattern of {} characters, expected at most {MAX_PATTERN_BYTES}", pattern.len()));
    }
    let wrong = |error: PatternError| format!("{pattern:?} is no pattern of files ({error})");
    Pattern::new(pattern).map_err(wrong)?;
    let parts = pattern.split('/').map(Part::new).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let folder = format!("{}/", pattern.trim_end_matches('/'));
    // Names with another beginning do not match, and are elsewhere in the order.
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

/// True if a pattern matches a file name. Each of its parts is compared with each part of the name once: patterns come
/// from outside, and matching many `*` against a whole name could take exponential time.
fn fits(parts: &[Part], name: &str) -> bool {
    let names: Vec<&str> = name.split('/').collect();
    // For each count of names: whether the parts so far can match exactly these.
    let mut reached = vec![false; names.len() + 1];
    reached[0] = true;
    for (at, part) in parts.iter().enumerate() {
        let mut next = vec![false; names.len() + 1];
        match part {
            // At the end it matches at least one name, elsewhere also none.
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
mod tests;
