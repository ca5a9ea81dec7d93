//! The batch that the operations work on.

use super::Batch;
use crate::error::{Error, Result};
use crate::refuse;

/// A copy of the current [`Batch`], checked.
#[derive(Default)]
pub struct Current {
    pub input_ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub boundaries: Vec<u32>,
    pub targets: Vec<i32>,
    /// Empty: 1 each
    pub weights: Vec<f32>,
}

impl Current {
    /// `limit`: the tokens that the run was planned for; `positions`: those with rotation angles.
    pub fn set(&mut self, batch: &Batch, limit: usize, positions: usize) -> Result<()> {
        let tokens = batch.tokens();
        if tokens == 0 || tokens > limit {
            return Err(Error::Failed(format!(
                "a batch of {tokens} tokens was given to a run planned for 1 to {limit}"
            )));
        }
        assert!(
            batch.positions.len() == tokens
                && batch.targets.len() == tokens
                && batch.weights.is_none_or(|weights| weights.len() == tokens),
            "batch of unequal lengths"
        );
        assert!(
            batch.boundaries.first() == Some(&0)
                && batch.boundaries.last() == Some(&(tokens as u32))
                && batch.boundaries.is_sorted(),
            "document boundaries must run from 0 to {tokens}"
        );
        if let Some(position) = batch.positions.iter().find(|&&p| p as usize >= positions) {
            refuse!("a row reaches position {position}, but the run was planned for rows of {positions} tokens");
        }
        let weights = batch.weights.unwrap_or_default();
        if let Some(token) = weights.iter().position(|weight| !weight.is_finite()) {
            refuse!("token {token} of a batch has a weight of {}, expected a finite number", weights[token]);
        }
        replace(&mut self.weights, weights);
        replace(&mut self.input_ids, batch.input_ids);
        replace(&mut self.positions, batch.positions);
        replace(&mut self.boundaries, batch.boundaries);
        replace(&mut self.targets, batch.targets);
        Ok(())
    }

    pub fn check_vocabulary(&self, vocab: usize) -> Result<()> {
        match self.input_ids.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => Err(Error::Refused(format!("token id {id} is outside the vocabulary of {vocab}"))),
            None => Ok(()),
        }
    }
}

fn replace<T: Copy>(to: &mut Vec<T>, from: &[T]) {
    to.clear();
    to.extend_from_slice(from);
}
