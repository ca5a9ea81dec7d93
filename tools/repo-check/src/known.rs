//! Findings of rules that are younger than the code, and the folders that are not clean of them yet. The list only
//! shrinks: an entry whose folder is clean is itself a finding.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A module from another folder.
    Path,
    /// A file that opens with a question word.
    Opening,
    /// A comment that starts with "The same".
    TheSame,
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
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// Folders, or files, by the start of their names.
const NOT_YET_CLEAN: &[(Rule, &[&str])] = &[(Rule::Circle, &["bins/qlora-train/"])];

/// Adds what is not known to `findings`, and says how many of each rule are.
pub fn split(all: Vec<Finding>, findings: &mut Vec<String>) -> String {
    split_by(NOT_YET_CLEAN, all, findings)
}

fn split_by(known: &[(Rule, &[&str])], all: Vec<Finding>, findings: &mut Vec<String>) -> String {
    let mut counts: BTreeMap<(Rule, &str), usize> = BTreeMap::new();
    for (rule, folders) in known {
        counts.extend(folders.iter().map(|folder| ((*rule, *folder), 0)));
    }
    for finding in all {
        let entry =
            counts.iter_mut().find(|((rule, folder), _)| *rule == finding.rule && finding.file.starts_with(folder));
        match entry {
            Some((_, count)) => *count += 1,
            None => findings.push(finding.to_string()),
        }
    }
    for ((rule, folder), _) in counts.iter().filter(|(_, count)| **count == 0) {
        findings.push(format!("{folder} has no {rule:?} left: take it from the list of tools/repo-check/src/known.rs"));
    }
    let shown: Vec<String> =
        counts.iter().map(|((rule, folder), count)| format!("{rule:?} in {folder}: {count}")).collect();
    format!("{} findings are known: {}", counts.values().sum::<usize>(), shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_folders_are_let_through_and_clean_ones_must_leave_the_list() {
        let known: &[(Rule, &[&str])] = &[(Rule::Width, &["cuda/", "src/"])];
        let finding = |rule, file: &str| Finding::new(rule, file, 3, "x".into());
        let all =
            vec![finding(Rule::Width, "cuda/a.cu"), finding(Rule::Path, "cuda/a.cu"), finding(Rule::Width, "b.rs")];
        let mut findings = Vec::new();
        let said = split_by(known, all, &mut findings);
        assert_eq!(said, "1 findings are known: Width in cuda/: 1, Width in src/: 0");
        assert_eq!(findings[..2], ["cuda/a.cu:3: x", "b.rs:3: x"]);
        assert!(findings[2].starts_with("src/ has no Width left"), "{findings:?}");
    }
}
