//! Rules of comments: a file and a doc comment open with their noun, a doc comment makes sense alone, lines keep to the
//! formatter's width.

use crate::files::{Language, Source};
use crate::finding::{Finding, Rule};
use crate::lints;

const WIDTH: usize = 120;
/// Beginnings that lean on another comment.
const LEANING: [&str; 4] = ["The same ", "Of ", "As ", "Likewise"];
/// First words of a sentence whose noun comes later.
const QUESTION_WORDS: [&str; 10] = ["What", "Which", "Whose", "Where", "When", "Who", "How", "Why", "Whether", "Like"];

pub fn of_source(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |rule, line: usize, text: String| findings.push(Finding::new(rule, &source.name, line, text));
    let first = first_line(source);
    if let Some(word) = first.and_then(|(_, text)| question_word(text)) {
        add(Rule::Opening, 1, format!("the file opens with \"{word}\"; open with a noun"));
    }
    let mut in_comment = false;
    for (index, line) in source.text.lines().enumerate() {
        let comment = source.comment(line);
        let opening = comment.filter(|_| !in_comment && is_documentation(source, line));
        let leaning = opening.and_then(|text| LEANING.into_iter().find(|beginning| text.starts_with(beginning)));
        if let Some(beginning) = leaning {
            let text = format!("a comment that starts with {:?} does not make sense alone", beginning.trim_end());
            add(Rule::Leaning, index + 1, text);
        }
        let is_first = first.is_some_and(|(first, _)| first == index);
        if let Some(word) = opening.filter(|_| !is_first).and_then(question_word) {
            add(Rule::Opening, index + 1, format!("a doc comment opens with \"{word}\"; open with a noun"));
        }
        in_comment = comment.is_some();
        let columns = line.chars().count();
        // No formatter keeps the lines of C and CUDA.
        if columns > WIDTH && (in_comment || source.language == Language::C) {
            let what = if in_comment { "comment" } else { "line" };
            add(Rule::Width, index + 1, format!("a {what} of {columns} columns (at most {WIDTH})"));
        }
    }
    for line in lints::paths(source) {
        add(Rule::Path, line, "a module from elsewhere; make it a crate".into());
    }
    findings
}

/// Comments of C document what follows, whatever their markers; those of a script do not.
fn is_documentation(source: &Source, line: &str) -> bool {
    let line = line.trim_start();
    match source.language {
        Language::Rust => line.starts_with("///") || line.starts_with("//!"),
        Language::C => true,
        Language::Script => false,
    }
}

/// Index and text of the first line of a file.
fn first_line(source: &Source) -> Option<(usize, &str)> {
    let mut lines = source.text.lines().enumerate();
    let (index, line) = lines.find(|(_, line)| !line.trim().is_empty() && !line.starts_with("#!"))?;
    Some((index, source.comment(line).unwrap_or(line.trim().trim_start_matches("\"\"\""))))
}

fn question_word(text: &str) -> Option<&'static str> {
    QUESTION_WORDS.into_iter().find(|word| text.split_whitespace().next() == Some(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<(Rule, usize)> {
        let language = crate::files::language(name).unwrap_or(Language::Script);
        let source = Source { name: name.into(), language, text: text.into() };
        of_source(&source).into_iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn files_that_open_with_a_question_word_are_found_in_every_language() {
        assert_eq!(found("a.rs", "//! What this does.\n"), [(Rule::Opening, 1)]);
        assert_eq!(found("a.cuh", "\n// Whose rows are read.\n"), [(Rule::Opening, 1)]);
        assert_eq!(found("a.py", "#!/usr/bin/env python3\n\"\"\"Which files.\"\"\"\n"), [(Rule::Opening, 1)]);
        assert!(found("a.rs", "//! Whatever the rows hold.\n//! What else.\n").is_empty());
    }

    #[test]
    fn doc_comments_that_open_with_a_question_word_are_found() {
        for word in QUESTION_WORDS {
            assert_eq!(found("a.rs", &format!("//! Rows.\n\n/// {word} b.\nfn b() {{}}\n")), [(Rule::Opening, 3)]);
            assert_eq!(found("a.cuh", &format!("// Rows.\n\n// {word} b.\nint b;\n")), [(Rule::Opening, 3)]);
        }
        assert_eq!(found("a.rs", "struct A {\n    /// Whether b.\n    b: bool,\n}\n"), [(Rule::Opening, 2)]);
        assert_eq!(found("a.rs", "mod a {\n    //! Like b.\n}\n"), [(Rule::Opening, 2)]);
        // Sentences inside of a comment, other comments, longer words.
        assert!(found("a.rs", "/// Rows.\n/// Where b.\nfn a() {}\n").is_empty());
        assert!(found("a.rs", "fn a() {\n    // What follows.\n}\n").is_empty());
        assert!(found("a.rs", "/// Likelihoods.\nfn a() {}\n").is_empty());
        assert!(found("a.py", "x = 1\n# What follows.\n").is_empty());
    }

    #[test]
    fn the_same_is_found_where_a_comment_starts_with_it() {
        assert_eq!(found("a.rs", "fn a() {}\n/// The same of b.\nfn b() {}\n"), [(Rule::Leaning, 2)]);
        assert!(found("a.rs", "/// A fault.\n/// The same of b.\n").is_empty());
        assert!(found("a.rs", "// The same rows as above.\n").is_empty());
        assert_eq!(found("a.cuh", "// The same of b.\n"), [(Rule::Leaning, 1)]);
        assert_eq!(found("a.rs", "struct A {\n    /// Of b.\n    c: u8,\n    /// As b.\n    d: u8,\n}\n").len(), 2);
        assert_eq!(found("a.rs", "/// Office.\nfn a() {}\n"), []);
    }

    #[test]
    fn long_comments_and_long_lines_of_c_are_found_by_their_characters() {
        let wide = |count: usize| format!("// {}\n", "ß".repeat(count - 3));
        assert_eq!(found("a.cu", &wide(121)), [(Rule::Width, 1)]);
        assert!(found("a.cu", &wide(120)).is_empty());
        let code = |columns: usize| format!("int {};\n", "a".repeat(columns - 5));
        assert_eq!(found("a.cu", &code(121)), [(Rule::Width, 1)]);
        assert!(found("a.cu", &code(120)).is_empty() && found("a.rs", &code(121)).is_empty());
        assert!(found("a.rs", &format!("let a = \"{}\";\n", "x".repeat(200))).is_empty());
    }
}
