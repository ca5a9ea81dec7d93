//! The report on the rows of the data files: printed before a run, so that nothing is left out silently.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::notes::Notes;
use super::reader::Unit;
use super::row_kind::RowKind;
use crate::bail_usage;
use crate::error::Result;
use crate::report::{count, thousands};

/// Rows named one by one in the printed report; more than these are only counted.
const NAMED_ROWS: usize = 5;
/// More rows or tokens than any files hold; sums of such numbers stay numbers.
const MAX_COUNT: usize = 1 << 48;
/// Tasks that are evaluated apart; with more of them, none is.
pub const MAX_TASKS: usize = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileReport {
    /// Not kept with tokenized rows: the data files may have moved.
    #[serde(skip)]
    pub path: PathBuf,
    /// Unit that its rows are counted in.
    pub unit: Unit,
    pub rows: usize,
    /// Rows of each format found, in the order of [`RowKind::ALL`].
    pub kinds: Vec<(RowKind, usize)>,
    /// Remarks about its rows.
    pub notes: Notes,
}

impl FileReport {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), unit: Unit::Line, rows: 0, kinds: Vec::new(), notes: Notes::default() }
    }

    pub(super) fn count(&mut self, kind: RowKind) {
        self.rows += 1;
        match self.kinds.binary_search_by_key(&kind, |&(kind, _)| kind) {
            Ok(at) => self.kinds[at].1 += 1,
            Err(at) => self.kinds.insert(at, (kind, 1)),
        }
    }
}

fn rows(n: usize) -> String {
    count(n as u64, "row")
}

fn tokens(n: usize) -> String {
    count(n as u64, "token")
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        if let [(kind, rows)] = self.kinds[..] {
            return write!(f, "{}", count(rows as u64, &format!("{} row", kind.name())));
        }
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, rows)| format!("{rows} {}", kind.name())).collect();
        write!(f, "{} of mixed formats: {}", count(self.rows as u64, "row"), kinds.join(", "))
    }
}

/// A row of a file: index into [`DatasetReport::files`], and line or number, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowPlace {
    pub file: usize,
    pub line: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Texts longer than `max_length` that became several rows (`chunk`), and those rows.
    pub chunked: usize,
    pub pieces: usize,
    /// Left out because no token of them is supervised, possibly after truncation.
    pub unsupervised: usize,
    /// The first of those.
    pub unsupervised_rows: Vec<RowPlace>,
    /// Rows with a text or an assistant turn that ends without a token of its own.
    pub open_ended: usize,
    /// Rows to train on with tokens that count more or less than others.
    pub weighted: usize,
    /// Left out because they repeat earlier rows (`deduplicate`).
    pub duplicates: usize,
    /// Left out because they cannot be trained on (`on_bad_row: skip`).
    pub skipped: usize,
    /// Reasons for the first of those.
    pub bad_rows: Vec<String>,
    /// Remarks on the way rows were read, where there is another.
    pub remarks: Vec<String>,
    /// Warnings about the chat template.
    pub warnings: Vec<String>,
    /// Different tasks that rows name.
    pub tasks: usize,
    /// Over the kept rows.
    pub tokens: usize,
    /// Tokens of the kept rows that are predicted: labels of the second and later tokens that are not −100.
    pub supervised_tokens: usize,
    /// Tokens of the longest row before truncation, among all rows read.
    pub longest_read: usize,
    /// Tokens of the longest kept row.
    pub longest: usize,
    pub max_length: usize,
    /// Lengths before truncation of all rows read.
    pub lengths: Histogram,
}

impl DatasetReport {
    /// Place of a row, for people: `data.jsonl line 3`.
    pub fn place(&self, file: usize, line: usize) -> String {
        let file = &self.files[file];
        format!("{} {} {line}", file.path.display(), file.unit.name())
    }

    /// True if a report that was read from a file is consistent with these counts, on which its sentences depend.
    pub(super) fn is_of(&self, rows: usize, tokens: usize, supervised_tokens: usize) -> bool {
        let counts = [
            self.rows_read,
            self.dropped,
            self.truncated,
            self.chunked,
            self.pieces,
            self.unsupervised,
            self.open_ended,
            self.weighted,
            self.duplicates,
            self.skipped,
            self.tasks,
            self.longest_read,
            self.longest,
        ];
        (self.rows_kept, self.tokens, self.supervised_tokens) == (rows, tokens, supervised_tokens)
            && counts.iter().all(|&count| count <= MAX_COUNT)
            && self.lengths.is_valid(MAX_COUNT)
            && self.unsupervised_rows.iter().all(|row| row.file < self.files.len())
    }

    pub(super) fn skip_bad(&mut self, why: String) {
        self.skipped += 1;
        if self.bad_rows.len() < NAMED_ROWS {
            self.bad_rows.push(why);
        }
    }

    /// Refuses files of which more than a tenth of the rows had to be skipped: then something else is wrong than a few
    /// rows.
    pub(super) fn check_bad_rows(&self) -> Result<()> {
        let rows = self.rows_read + self.skipped;
        if self.skipped <= rows / 10 {
            return Ok(());
        }
        bail_usage!(
            "{} of {rows} rows cannot be trained on, more than the tenth that on_bad_row skips; the first: {}",
            self.skipped,
            self.bad_rows.first().map_or("", String::as_str)
        )
    }

    pub(super) fn skip_unsupervised(&mut self, place: RowPlace) {
        self.unsupervised += 1;
        if self.unsupervised_rows.len() < NAMED_ROWS {
            self.unsupervised_rows.push(place);
        }
    }
}

impl DatasetReport {
    /// One fact a line: the counts always, what was left out only if something was. A line break within one belongs to
    /// a quoted text.
    pub fn lines_of_run(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for file in &self.files {
            lines.push(file.to_string());
            for line in file.notes.lines(file.unit.name()) {
                lines.push(match line.strip_prefix("warning: ") {
                    Some(line) => format!("warning: {}: {line}", file.path.display()),
                    None => format!("{}: {line}", file.path.display()),
                });
            }
        }
        lines.push(format!(
            "{}, {}, {} of them supervised, longest row {}",
            rows(self.rows_kept),
            tokens(self.tokens),
            thousands(self.supervised_tokens as u64),
            tokens(self.longest)
        ));
        if self.weighted > 0 {
            lines.push(format!(
                "{} with weights of their own: the loss is the sum of weight x loss, divided by the sum of the weights",
                rows(self.weighted)
            ));
        }
        match self.tasks {
            0 => {}
            tasks if tasks > MAX_TASKS => lines.push(format!(
                "{tasks} different values of `task`, more than the {MAX_TASKS} that are evaluated apart: losses by task \
                 are left out"
            )),
            tasks => lines.push(count(tasks as u64, "task")),
        }
        lines.extend(self.remarks.iter().cloned());
        if self.skipped > 0 {
            let they = if self.skipped == 1 { "it" } else { "they" };
            lines.push(format!("warning: {} skipped, because {they} cannot be trained on:", rows(self.skipped)));
            lines.extend(self.bad_rows.iter().map(|why| format!("  {why}")));
            lines.extend((self.skipped > self.bad_rows.len()).then(|| "  …".to_owned()));
        }
        if self.dropped > 0 {
            lines.push(format!(
                "{} left out: longer than max_length {} (the longest has {})",
                rows(self.dropped),
                self.max_length,
                tokens(self.longest_read)
            ));
        }
        if self.duplicates > 0 {
            let were = if self.duplicates == 1 { "the same as another one" } else { "each the same as another one" };
            lines.push(format!("{} left out: {were} before it (deduplicate)", rows(self.duplicates)));
        }
        if self.truncated > 0 {
            lines.push(format!(
                "{} cut to max_length {} (the longest had {})",
                rows(self.truncated),
                self.max_length,
                tokens(self.longest_read)
            ));
        }
        if self.chunked > 0 {
            lines.push(format!(
                "{} cut into {} of at most max_length {} (the longest had {})",
                count(self.chunked as u64, "long text"),
                rows(self.pieces),
                self.max_length,
                tokens(self.longest_read)
            ));
        }
        if self.unsupervised > 0 {
            let named: Vec<String> = self.unsupervised_rows.iter().map(|row| self.place(row.file, row.line)).collect();
            let more = if self.unsupervised > named.len() { ", …" } else { "" };
            lines.push(format!(
                "{} left out: no supervised token ({}{more})",
                rows(self.unsupervised),
                named.join(", ")
            ));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("warning: {warning}")));
        lines
    }

    /// [`lines_of_run`](Self::lines_of_run), and the warning that answers are open, which a run has as a lint.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.lines_of_run();
        if self.open_ended > 0 {
            lines.push(format!(
                "warning: in {} an answer or a text ends without an end-of-turn token, because the chat template \
                 writes none, its `generation` marks leave it out, or the tokenizer has no EOS; the model will not learn \
                 to stop",
                rows(self.open_ended)
            ));
        }
        lines
    }

    /// [`lines`](Self::lines) of the validation rows.
    pub fn validation_lines(&self) -> Vec<String> {
        let mut lines = self.lines_of_run();
        lines[0].insert_str(0, "validation: ");
        lines
    }
}

impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}
