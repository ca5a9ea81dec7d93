//! Remarks about the rows of a file: counted, and reported once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::json;

/// Lines named one by one; more than these are only counted.
const NAMED: usize = 5;
/// Maximum number of different remarks and keys that are kept for a file.
const MOST: usize = 40;

/// The object that a key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyOf {
    Row,
    Turn,
    Part,
    /// A call of a tool
    Call,
}

impl KeyOf {
    fn name(self) -> &'static str {
        match self {
            KeyOf::Row => "rows",
            KeyOf::Turn => "turns",
            KeyOf::Part => "parts of turns",
            KeyOf::Call => "tool calls",
        }
    }
}

/// A remark about one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A key that nothing reads.
    UnusedKey(KeyOf, String),
    /// A sentence without its subject, "the chat template leaves out …".
    Said(String),
}

/// The rows that a sentence applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    rows: usize,
    /// The last of their lines: a row may say it of several turns.
    last: usize,
    /// The first of their lines.
    named: Vec<usize>,
}

/// The remarks about the rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    unused: BTreeMap<KeyOf, BTreeSet<String>>,
    said: BTreeMap<String, Said>,
}

impl Notes {
    pub(super) fn add(&mut self, note: Note, line: usize) {
        match note {
            Note::UnusedKey(of, key) => {
                let keys = self.unused.entry(of).or_default();
                if keys.len() < MOST {
                    keys.insert(json::shorten(&key));
                }
            }
            Note::Said(sentence) => {
                if self.said.len() == MOST && !self.said.contains_key(&sentence) {
                    return;
                }
                let said = self.said.entry(sentence).or_default();
                // Lines are counted from 1.
                if said.last != line {
                    said.rows += 1;
                    said.last = line;
                    if said.named.len() < NAMED {
                        said.named.push(line);
                    }
                }
            }
        }
    }

    /// One line each: the keys that nothing reads, then the sentences with their rows.
    pub fn lines(&self, unit: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let keys: Vec<String> = self
            .unused
            .iter()
            .map(|(of, keys)| {
                let named = |key: &String| {
                    if key.is_empty() {
                        "a column without a name".to_owned()
                    } else {
                        format!("`{}`", json::shorten(key))
                    }
                };
                let keys: Vec<String> = keys.iter().map(named).collect();
                format!("{} of {}", keys.join(", "), of.name())
            })
            .collect();
        if !keys.is_empty() {
            lines.push(format!("not used: {}", keys.join("; ")));
        }
        for (sentence, Said { rows, named, .. }) in &self.said {
            let places: Vec<String> = named.iter().map(usize::to_string).collect();
            let more = if *rows > named.len() { ", …" } else { "" };
            let count = if *rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
            lines.push(format!("warning: in {count} ({unit} {}{more}) {sentence}", places.join(", ")));
        }
        lines
    }

    pub fn is_empty(&self) -> bool {
        self.unused.is_empty() && self.said.is_empty()
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.lines("line").join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_counts_once_however_often_it_says_a_sentence() {
        let mut notes = Notes::default();
        for line in (1..=9).flat_map(|line| [line, line, line]) {
            notes.add(Note::Said("says it".into()), line);
        }
        assert_eq!(notes.lines("line"), ["warning: in 9 rows (line 1, 2, 3, 4, 5, …) says it"]);
        let mut once = Notes::default();
        [7, 7].into_iter().for_each(|line| once.add(Note::Said("says it".into()), line));
        assert_eq!(once.lines("row"), ["warning: in 1 row (row 7) says it"]);
    }
}
