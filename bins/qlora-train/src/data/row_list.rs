//! Rows of a data set, in memory or in a file from which each is read when it is needed.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::options::RowIdentity;
use super::row::Row;
use super::row_bytes::row_hash;
use super::row_file::{RowFile, RowWriter};
use super::row_head::RowHead;
use super::split::held_out;
use crate::error::Result;

/// Rows in their order. Lengths, files and tasks are known without reading any.
#[derive(Clone, Debug)]
pub struct Rows(Kept);

#[derive(Clone, Debug)]
enum Kept {
    InMemory(Vec<Row>),
    InFile { file: Arc<RowFile>, heads: Vec<RowHead> },
}

impl From<Vec<Row>> for Rows {
    fn from(rows: Vec<Row>) -> Self {
        Self(Kept::InMemory(rows))
    }
}

impl Default for Rows {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl Rows {
    pub(super) fn in_file(file: RowFile, heads: Vec<RowHead>) -> Self {
        Self(Kept::InFile { file: Arc::new(file), heads })
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::InMemory(rows) => rows.len(),
            Kept::InFile { heads, .. } => heads.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row. Failed: it is in a file that changed.
    pub fn get(&self, at: usize) -> Result<Cow<'_, Row>> {
        match &self.0 {
            Kept::InMemory(rows) => Ok(Cow::Borrowed(&rows[at])),
            Kept::InFile { file, heads } => file.read(&heads[at]).map(Cow::Owned),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Result<Cow<'_, Row>>> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    /// Tokens of a row.
    pub fn tokens(&self, at: usize) -> usize {
        match &self.0 {
            Kept::InMemory(rows) => rows[at].len(),
            Kept::InFile { heads, .. } => heads[at].tokens as usize,
        }
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).map(|at| self.tokens(at))
    }

    /// Tokens of a row that are predicted.
    pub fn supervised(&self, at: usize) -> usize {
        match &self.0 {
            Kept::InMemory(rows) => rows[at].supervised(),
            Kept::InFile { heads, .. } => heads[at].supervised as usize,
        }
    }

    /// Tokens of all rows that are predicted.
    pub fn supervised_tokens(&self) -> usize {
        (0..self.len()).map(|at| self.supervised(at)).sum()
    }

    /// Number of the data file that a row comes from.
    pub fn file(&self, at: usize) -> usize {
        match &self.0 {
            Kept::InMemory(rows) => rows[at].file,
            Kept::InFile { heads, .. } => heads[at].file as usize,
        }
    }

    /// Task that a row names.
    pub fn task(&self, at: usize) -> Option<&str> {
        match &self.0 {
            Kept::InMemory(rows) => rows[at].task.as_deref(),
            Kept::InFile { file, heads } => file.task(&heads[at]).map(|task| &**task),
        }
    }

    /// A hash of a row's tokens, labels and weights, for this process.
    pub fn hash(&self, at: usize) -> u64 {
        match &self.0 {
            Kept::InMemory(rows) => row_hash(&rows[at]),
            Kept::InFile { heads, .. } => heads[at].hash,
        }
    }

    /// Token ids of the rows, each at least once; for rows in a file, the ids of all its rows.
    pub fn ids(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match &self.0 {
            Kept::InMemory(rows) => Box::new(rows.iter().flat_map(|row| row.input_ids.iter().copied())),
            Kept::InFile { file, .. } => Box::new(file.ids().iter().copied()),
        }
    }

    /// Identities of the rows, to compare them with another data set's.
    pub fn identities(&self) -> Result<HashSet<RowIdentity>> {
        self.iter().map(|row| Ok(row?.identity())).collect()
    }

    /// The hash that identifies the file of the rows; none for rows in memory.
    pub fn digest(&self) -> Option<&str> {
        match &self.0 {
            Kept::InMemory(_) => None,
            Kept::InFile { file, .. } => Some(file.digest()),
        }
    }

    /// The file that the rows are in, and its bytes; none for rows in memory.
    pub fn place(&self) -> Option<(&Path, u64)> {
        match &self.0 {
            Kept::InMemory(_) => None,
            Kept::InFile { file, .. } => Some((file.path(), file.bytes())),
        }
    }

    /// Takes rows at random out for validation: a share of them if below 1 (rounded up), otherwise that many. Both
    /// parts keep their order. The same seed gives the same parts. Returns (training, validation) rows.
    pub fn split(self, val_set_size: f64, seed: u64) -> Result<(Self, Self)> {
        let is_validation = held_out(self.len(), val_set_size, seed)?;
        Ok(match self.0 {
            Kept::InMemory(rows) => {
                let (training, validation) = parts(rows, &is_validation);
                (training.into(), validation.into())
            }
            Kept::InFile { file, heads } => {
                let (training, validation) = parts(heads, &is_validation);
                (
                    Self(Kept::InFile { file: file.clone(), heads: training }),
                    Self(Kept::InFile { file, heads: validation }),
                )
            }
        })
    }
}

/// The entries where `is_second` is false, and those where it is true.
pub(super) fn parts<T>(all: Vec<T>, is_second: &[bool]) -> (Vec<T>, Vec<T>) {
    let count = is_second.iter().filter(|second| **second).count();
    let mut parts = (Vec::with_capacity(all.len() - count), Vec::with_capacity(count));
    for (one, second) in all.into_iter().zip(is_second) {
        if *second { parts.1.push(one) } else { parts.0.push(one) }
    }
    parts
}

/// Destination of rows as they are tokenized.
pub(super) enum Sink {
    Memory(Vec<Row>),
    File(Box<RowWriter>),
}

impl Sink {
    pub fn len(&self) -> usize {
        match self {
            Sink::Memory(rows) => rows.len(),
            Sink::File(writer) => writer.len(),
        }
    }

    pub fn push(&mut self, row: Row) -> Result<()> {
        match self {
            Sink::Memory(rows) => rows.push(row),
            Sink::File(writer) => writer.push(&row)?,
        }
        Ok(())
    }

    /// Approximate bytes of memory that a row takes there.
    pub fn bytes(&self, row: &Row) -> u64 {
        match self {
            Sink::Memory(_) => row.bytes(),
            Sink::File(_) => size_of::<RowHead>() as u64,
        }
    }
}
