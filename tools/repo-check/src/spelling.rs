//! American spelling of identifiers and file names; prose may be British.

use crate::files::{Language, Source};
use crate::finding::{Finding, Rule};
use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeSet;

/// Stems of British spellings. "ise" alone would find "precise" and "noise".
const BRITISH: [&str; 22] = [
    "quantis",
    "initialis",
    "normalis",
    "optimis",
    "serialis",
    "tokenis",
    "synchronis",
    "recognis",
    "organis",
    "summaris",
    "materialis",
    "sanitis",
    "randomis",
    "vectoris",
    "behaviour",
    "colour",
    "neighbour",
    "favour",
    "centre",
    "artefact",
    "catalogue",
    "licence",
];

pub fn of_file_name(name: &str) -> Option<Finding> {
    let stem = british(name)?;
    Some(Finding::new(Rule::Spelling, name, 0, format!("the file's name holds the British \"{stem}\"")))
}

/// Each identifier once.
pub fn of_source(source: &Source) -> Result<Vec<Finding>> {
    let names = match source.language {
        Language::Rust => match source.text.parse::<TokenStream>() {
            Ok(tokens) => rust_names(tokens),
            Err(error) => return Ok(vec![Finding::new(Rule::Spelling, &source.name, 0, format!("not Rust: {error}"))]),
        },
        Language::C => c_names(&source.text),
        Language::Script => Vec::new(),
    };
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for (name, line) in names {
        if !seen.insert(name.clone()) {
            continue;
        }
        if let Some(stem) = british(&name) {
            findings.push(Finding::new(
                Rule::Spelling,
                &source.name,
                line,
                format!("{name} holds the British \"{stem}\""),
            ));
        }
    }
    Ok(findings)
}

fn british(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    BRITISH.into_iter().find(|stem| lower.contains(stem))
}

/// Comments and strings are no identifiers, documentation included, which is a string to the compiler.
fn rust_names(tokens: TokenStream) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => names.push((ident.to_string(), ident.span().start().line)),
            TokenTree::Group(group) => names.extend(rust_names(group.stream())),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    names
}

fn c_names(text: &str) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // Text between quotes is every second piece.
        for piece in code.split('"').step_by(2) {
            let words = piece.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            names.extend(words.map(|word| (word.to_owned(), index + 1)));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<usize> {
        let language = crate::files::language(name).unwrap();
        let source = Source { name: name.into(), language, text: text.into() };
        of_source(&source).unwrap().into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn british_identifiers_are_found_and_prose_is_left_alone() {
        let stem = "quantis";
        let text =
            format!("// {stem}ed\n/// {stem}es\nfn f() {{ let a = \"{stem}e\"; {stem}e_rows(a); {stem}e_rows(b) }}\n");
        assert_eq!(found("a.rs", &text), [3]);
        assert_eq!(found("a.cu", &format!("// {stem}e\nint k{}Rows = 1; // {stem}e\n", "Normalis")), [2]);
        assert!(found("a.rs", "fn precise_noise(optimizer: Quantized) {}\n").is_empty());
        assert!(of_file_name(&format!("cuda/{}e.cuh", "normalis")).is_some());
        assert!(of_file_name("cuda/normalize.cuh").is_none());
    }
}
