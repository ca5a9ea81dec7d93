//! A micro-batch: rows laid one behind the other, without padding, for one forward and backward pass.

use super::UNSUPERVISED;
use super::row::Row;

/// T tokens of B rows, concatenated. Attention is blocked between rows and positions restart at 0 in each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// `[T]`
    pub input_ids: Vec<u32>,
    /// `[T]`, from 0 in every row.
    pub positions: Vec<u32>,
    /// `[B + 1]`: row b is the tokens `boundaries[b]..boundaries[b + 1]`.
    pub boundaries: Vec<u32>,
    /// `[T]`: the token to predict *after* each token, the row's labels shifted by one; −100 where nothing is to be
    /// predicted, which is always so at the last token of a row.
    pub targets: Vec<i32>,
    /// Targets that are not −100.
    pub supervised: usize,
}

impl MicroBatch {
    /// Concatenates rows in the given order. Panics when their tokens exceed `u32` (4 billion).
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Self { boundaries: vec![0], ..Self::default() };
        for row in rows {
            batch.input_ids.extend_from_slice(&row.input_ids);
            batch.positions.extend(0..row.len() as u32);
            batch.targets.extend(row.labels.iter().skip(1));
            batch.targets.extend((!row.is_empty()).then_some(UNSUPERVISED));
            batch.boundaries.push(u32::try_from(batch.input_ids.len()).expect("a micro-batch has under 2^32 tokens"));
        }
        batch.supervised = batch.targets.iter().filter(|&&target| target != UNSUPERVISED).count();
        batch
    }

    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    pub fn rows(&self) -> usize {
        self.boundaries.len() - 1
    }
}
