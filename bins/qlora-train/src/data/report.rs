//! What became of the rows of the data files: printed before a run, so that nothing is left out without a word.

use std::fmt;
use std::path::PathBuf;

use super::rows::RowKind;

/// Rows named one by one in the printed report; more than these are only counted.
const NAMED_ROWS: usize = 5;

#[derive(Clone, Debug, PartialEq)]
pub struct FileReport {
    pub path: PathBuf,
    pub kind: RowKind,
    pub rows: usize,
}

/// A row of a file: index into [`DatasetReport::files`] and line, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace {
    pub file: usize,
    pub line: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatasetReport {
    pub files: Vec<FileReport>,
    /// Rows in the files.
    pub rows_read: usize,
    /// Rows to train on.
    pub rows_kept: usize,
    /// Longer than `max_length` and left out (`drop`).
    pub dropped: usize,
    /// Longer than `max_length` and cut to it (`truncate`).
    pub truncated: usize,
    /// Left out because no token of them is supervised, possibly after truncation.
    pub unsupervised: usize,
    /// The first of those.
    pub unsupervised_rows: Vec<RowPlace>,
    /// Rows with an assistant turn that ends without a token of its own.
    pub open_ended: usize,
    /// Over the kept rows.
    pub tokens: usize,
    /// Tokens of the kept rows that are predicted: labels of the second and later tokens that are not −100.
    pub supervised_tokens: usize,
    /// Tokens of the longest row before truncation, among all rows read.
    pub longest_read: usize,
    /// Tokens of the longest kept row.
    pub longest: usize,
    pub max_length: usize,
}

impl DatasetReport {
    pub(super) fn skip_unsupervised(&mut self, place: RowPlace) {
        self.unsupervised += 1;
        if self.unsupervised_rows.len() < NAMED_ROWS {
            self.unsupervised_rows.push(place);
        }
    }
}

/// One fact a line: the counts always, what was left out only if something was.
impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{}: {} {} rows", file.path.display(), file.rows, file.kind.name())?;
        }
        write!(
            f,
            "{} rows, {} tokens, {} of them supervised, longest row {} tokens",
            self.rows_kept, self.tokens, self.supervised_tokens, self.longest
        )?;
        if self.dropped > 0 {
            write!(
                f,
                "\n{} rows left out: longer than max_length {} (the longest has {} tokens)",
                self.dropped, self.max_length, self.longest_read
            )?;
        }
        if self.truncated > 0 {
            write!(
                f,
                "\n{} rows cut to max_length {} (the longest had {} tokens)",
                self.truncated, self.max_length, self.longest_read
            )?;
        }
        if self.unsupervised > 0 {
            let named: Vec<String> = self
                .unsupervised_rows
                .iter()
                .map(|row| format!("{} line {}", self.files[row.file].path.display(), row.line))
                .collect();
            let more = if self.unsupervised > named.len() { ", …" } else { "" };
            write!(f, "\n{} rows left out: no supervised token ({}{more})", self.unsupervised, named.join(", "))?;
        }
        if self.open_ended > 0 {
            write!(
                f,
                "\nwarning: in {} rows the chat template ends the assistant's turn without an end-of-turn token; the \
                 model will not learn to stop",
                self.open_ended
            )?;
        }
        Ok(())
    }
}
