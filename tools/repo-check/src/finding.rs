//! Findings of the rules that a file is read for.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A module from another folder.
    Path,
    /// A file or doc comment that opens with a question word.
    Opening,
    /// A comment that makes no sense without another.
    Leaning,
    /// A comment that is wider than the formatter's lines.
    Width,
    /// Files that import each other.
    Circle,
    /// An identifier or a file name in British spelling.
    Spelling,
}

#[derive(Debug)]
pub struct Finding {
    pub rule: Rule,
    pub file: String,
    pub line: usize,
    pub text: String,
}

impl Finding {
    pub fn new(rule: Rule, file: &str, line: usize, text: String) -> Self {
        Self { rule, file: file.to_owned(), line, text }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} [{:?}]", self.file, self.line, self.text, self.rule)
    }
}
