//! A tokenized row.

use std::collections::HashSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::UNSUPERVISED;
use super::options::RowIdentity;

/// A tokenized row. `labels[t]` is `input_ids[t]` where the token is supervised and −100 elsewhere: not shifted.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i32>,
    /// Loss weight of each token, not shifted, like `labels`; empty: 1 each.
    pub weights: Vec<f32>,
    /// Index into [`DatasetReport::files`](super::DatasetReport::files).
    pub file: usize,
    /// Place of the row in its file, counted from 1: its line, or its number in a Parquet file.
    pub line: usize,
    /// Task that the row names, if any.
    pub task: Option<Arc<str>>,
}

impl Row {
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Loss weight of token `at`.
    pub fn weight(&self, at: usize) -> f32 {
        self.weights.get(at).copied().unwrap_or(1.0)
    }

    /// Approximate bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.input_ids.capacity() + self.labels.capacity() + self.weights.capacity();
        (size_of::<Self>() + 4 * entries) as u64
    }

    /// Rows of equal identities are the same to train on; files, lines and tasks do not count.
    pub(super) fn identity(&self) -> RowIdentity {
        let mut hash = Sha256::new();
        for (id, label) in self.input_ids.iter().zip(&self.labels) {
            hash.update(id.to_le_bytes());
            hash.update(label.to_le_bytes());
        }
        self.weights.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
        hash.update(self.len().to_le_bytes());
        hash.finalize().into()
    }

    /// The row in pieces of `length` tokens. Each begins with the last token of the one before, so that every token is
    /// predicted once.
    pub(super) fn pieces(&self, length: usize) -> impl Iterator<Item = Row> + '_ {
        let starts = (0..self.len() - 1).step_by(length - 1);
        starts.map(move |start| {
            let range = start..(start + length).min(self.len());
            Row {
                input_ids: self.input_ids[range.clone()].to_vec(),
                labels: self.labels[range.clone()].to_vec(),
                weights: self.weights.get(range).map_or_else(Vec::new, <[f32]>::to_vec),
                task: self.task.clone(),
                ..*self
            }
        })
    }

    /// Tokens that are predicted. The first token never is: nothing comes before it.
    pub fn supervised(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != UNSUPERVISED).count()
    }
}

/// Identities of rows, equal for equal rows.
pub fn identities(rows: &[Row]) -> HashSet<RowIdentity> {
    rows.iter().map(Row::identity).collect()
}
