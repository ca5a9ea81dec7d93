//! All bugs of a file in one text, which is compiled once: each bug behind a switch that the environment turns on.
//!
//! What a bug changes is widened to the expression or the statements around it. An expression becomes
//! `(seeded(7, "its name") ? (with the bug) : (as it is))`, statements an `if`. Bugs that meet share a chain of them. A
//! bug that cannot be switched so (in a constant of the compiler, or in a declaration that later lines use) does not
//! compile: its entry of the table has to change an expression instead.

#[cfg(test)]
mod tests;

use std::ops::Range;

/// The variable with the number of the bug that is on; without it none is.
pub const VARIABLE: &str = "SEEDED_BUG";

/// The header that the texts of [`with_switches`] include, by its path below `cuda/`.
pub const HEADER: (&str, &str) = (
    "seeded_bug.h",
    r#"#pragma once
#include <cstdlib>
inline const int seeded_bug = std::getenv("SEEDED_BUG") ? std::atoi(std::getenv("SEEDED_BUG")) : -1;
#define seeded(bug, what) (seeded_bug == (bug))
"#,
);

const OPENING: &str = "#include \"seeded_bug.h\"\n";

/// A bug of a file.
pub struct Bug<'a> {
    pub number: usize,
    pub what: &'a str,
    /// The file's text with it.
    pub text: String,
}

/// The text of a file with all of these bugs.
pub fn with_switches(text: &str, bugs: &[&Bug]) -> String {
    let text = without_comments(text);
    let mut spans: Vec<Span> = bugs.iter().map(|bug| Span::of(&text, bug)).collect();
    while let Some((a, b)) = meeting(&spans) {
        let other = spans.remove(b);
        spans[a].join(other, &text);
    }
    spans.sort_by_key(|span| span.range.start);
    let mut out = OPENING.to_owned();
    let mut done = 0;
    for span in &spans {
        out += &text[done..span.range.start];
        out += &span.switched(&text);
        done = span.range.end;
    }
    out + &text[done..]
}

/// The places of two that overlap or touch, the smaller first.
fn meeting(spans: &[Span]) -> Option<(usize, usize)> {
    let meet = |a: &Range<usize>, b: &Range<usize>| a.start <= b.end && b.start <= a.end;
    let mut pairs = (0..spans.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
    pairs.find(|&(a, b)| meet(&spans[a].range, &spans[b].range))
}

/// A bug's text in the place of a range of the text.
struct Change {
    condition: String,
    range: Range<usize>,
    text: String,
}

/// An expression or statements that bugs change.
struct Span {
    range: Range<usize>,
    statements: bool,
    changes: Vec<Change>,
}

impl Span {
    fn of(text: &str, bug: &Bug) -> Self {
        let with = without_comments(&bug.text);
        let same = |(a, b): &(u8, u8)| a == b;
        let start = text.bytes().zip(with.bytes()).take_while(same).count();
        let most = text.len().min(with.len()) - start;
        let tail = text.bytes().rev().zip(with.bytes().rev()).take(most).take_while(same).count();
        let (range, with) = (start..text.len() - tail, with[start..with.len() - tail].to_owned());
        let statements = has_outside(&with, ';') || has_outside(&text[range.clone()], ';');
        let condition = format!("seeded({}, {:?})", bug.number, bug.what);
        let mut span =
            Self { range: range.clone(), statements, changes: vec![Change { condition, range, text: with }] };
        span.widen(text);
        span
    }

    fn join(&mut self, other: Self, text: &str) {
        self.range = self.range.start.min(other.range.start)..self.range.end.max(other.range.end);
        self.statements |= other.statements;
        self.changes.extend(other.changes);
        self.widen(text);
    }

    fn widen(&mut self, text: &str) {
        if !self.statements {
            self.range = expression(text, &self.range);
        }
        // A part of a list of arguments is no expression; what holds the list is.
        while !self.statements && self.has_variant(text, |variant| has_outside(variant, ',')) {
            let one_more = self.range.start.saturating_sub(1)..(self.range.end + 1).min(text.len());
            self.range = expression(text, &one_more);
            self.statements = self.has_variant(text, |variant| has_outside(variant, ';'));
        }
        self.statements |= self.has_variant(text, is_statement);
        if self.statements {
            self.range.start = statement_start(text, self.range.start);
            let goes_on = |end: usize| text[end..].trim_start().starts_with("else");
            while self.range.end < text.len()
                && (self.has_variant(text, |variant| !is_whole(variant)) || goes_on(self.range.end))
            {
                self.range.end += 1;
            }
        }
    }

    /// The text of this span as it is, then with each change.
    fn variants(&self, text: &str) -> Vec<String> {
        let with = |change: &Change| {
            [&text[self.range.start..change.range.start], &change.text, &text[change.range.end..self.range.end]]
                .concat()
        };
        std::iter::once(text[self.range.clone()].to_owned()).chain(self.changes.iter().map(with)).collect()
    }

    fn has_variant(&self, text: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
        self.variants(text).iter().any(|variant| is_wanted(variant))
    }

    fn switched(&self, text: &str) -> String {
        let variants = self.variants(text);
        let with =
            self.changes.iter().zip(&variants[1..]).map(|(Change { condition, .. }, with)| match self.statements {
                true => format!("if ({condition}) {{\n{with}\n}} else "),
                false => format!("{condition} ? ({with}) : "),
            });
        let (with, sound) = (with.collect::<String>(), &variants[0]);
        if self.statements { format!("\n{{ {with}{{\n{sound}\n}} }}") } else { format!("({with}({sound}))") }
    }
}

/// The range widened to what lies between the delimiters of an expression: an argument, an initial value, a condition.
fn expression(text: &str, range: &Range<usize>) -> Range<usize> {
    let bytes = text.as_bytes();
    let is_assignment = |at: usize| bytes[at + 1] != b'=' && !b"=!<>".contains(&bytes[at - 1]);
    let (mut start, mut open) = (range.end, 0);
    while start > 0 {
        let at = start - 1;
        let may_end = open == 0 && at < range.start;
        match bytes[at] {
            b';' | b',' | b'{' | b'}' | b'(' | b'[' if may_end => break,
            b'=' if may_end && is_assignment(at) => break,
            _ if may_end && text[..start].ends_with("return ") => break,
            b')' | b']' | b'}' => open += 1,
            b'(' | b'[' | b'{' => open = (open - 1).max(0),
            _ => {}
        }
        start = at;
    }
    let (mut end, mut open) = (range.start, 0);
    while end < text.len() {
        match bytes[end] {
            b';' | b',' | b')' | b']' | b'}' if open == 0 && end >= range.end => break,
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = (open - 1).max(0),
            _ => {}
        }
        end += 1;
    }
    start..end
}

/// The start of the statement that holds this place: behind the one before, or the block's brace.
fn statement_start(text: &str, place: usize) -> usize {
    let mut open = 0;
    for (at, byte) in text[..place].bytes().enumerate().rev() {
        match byte {
            b';' | b'{' | b'}' if open <= 0 => return at + 1,
            b')' => open += 1,
            b'(' => open -= 1,
            _ => {}
        }
    }
    0
}

/// True of statements that are not cut, and of nothing.
fn is_whole(statements: &str) -> bool {
    let text = statements.trim_end();
    text.is_empty() || text.ends_with([';', '}']) && depth(text) == 0
}

/// True of nothing, and of what begins as a statement.
fn is_statement(text: &str) -> bool {
    let first = text.lines().map(str::trim_start).find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_none_or(|line| {
        let word = line.split(|c: char| !c.is_alphanumeric()).next();
        matches!(word, Some("if" | "else" | "for" | "while" | "return" | "continue"))
    })
}

/// True if it has this character outside of its brackets.
fn has_outside(text: &str, wanted: char) -> bool {
    text.match_indices(wanted).any(|(at, _)| depth(&text[..at]) <= 0)
}

/// Brackets that are opened and not closed.
fn depth(text: &str) -> isize {
    let count = |brackets: [char; 3]| text.matches(brackets).count() as isize;
    count(['(', '[', '{']) - count([')', ']', '}'])
}

fn without_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((code, comment)) = rest.split_once("/*") {
        out += code;
        rest = comment.split_once("*/").map_or("", |(_, rest)| rest);
    }
    out += rest;
    out.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end().to_owned() + "\n").collect()
}
