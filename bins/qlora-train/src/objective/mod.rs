//! The objective that a run minimizes: Σ weight · cross-entropy over the tokens of a step, divided by the step's total
//! weight.
//!
//! An objective turns rows into tokens and their weights. The division is by the total over all micro-batches and ranks
//! of a step, never by a mean of means: splitting a step changes no gradient.

mod sft;

pub use sft::Sft;

use crate::backend::Batch;
use crate::data::{MicroBatch, Row, Rows};
use crate::error::Result;

/// An objective: turns rows into tokens and their weights.
pub trait Objective {
    /// The micro-batch of some rows.
    fn micro_batch(&self, rows: &mut dyn Iterator<Item = &Row>) -> WeightedBatch;

    /// The micro-batch of the rows with these numbers. Failed: they cannot be read.
    fn micro_batch_of(&self, rows: &Rows, numbers: &[usize]) -> Result<WeightedBatch> {
        let read = numbers.iter().map(|&at| rows.get(at)).collect::<Result<Vec<_>>>()?;
        Ok(self.micro_batch(&mut read.iter().map(|row| &**row)))
    }
}

/// A micro-batch and the weights of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBatch {
    pub tokens: MicroBatch,
    /// `[T]`; `None`: 1 for every token that has a target
    pub weights: Option<Vec<f32>>,
}

impl WeightedBatch {
    pub fn batch(&self) -> Batch<'_> {
        Batch { weights: self.weights.as_deref(), ..Batch::from(&self.tokens) }
    }
}

/// The divisor of these micro-batches' weighted losses: with a weight of 1 each, the number of supervised tokens.
pub fn total_weight(batches: &[Batch]) -> f64 {
    batches.iter().map(Batch::weight).sum()
}
