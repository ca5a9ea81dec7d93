//! The batch that operations work on.

use crate::bail_usage;
use crate::data::MicroBatch;
use crate::error::{Error, Result};
use std::ops::Range;

/// One micro-batch: documents laid end to end, without padding. Attention does not cross `boundaries`.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[M]`
    pub input_ids: &'a [u32],
    /// `[M]`, restarting at 0 in every document
    pub positions: &'a [u32],
    /// `[documents + 1]`, from 0 to M
    pub boundaries: &'a [u32],
    /// `[M]`: the next token of the same document, or negative where nothing is learned
    pub targets: &'a [i32],
    /// `[M]`: factor of each token's loss; 0 where nothing is learned. `None`: 1 each
    pub weights: Option<&'a [f32]>,
    /// `[M]`: number of each token's adapter, of a model that has one for each row; any other number, as -1: the base
    /// alone. `None`: the base alone for all
    pub adapters: Option<&'a [i32]>,
}

/// A copy of a [`Batch`] that passed [`Batch::check`], or of what a dry run has of one.
#[derive(Clone, Debug, Default)]
pub struct CheckedBatch {
    /// M
    tokens: usize,
    pub input_ids: Vec<u32>,
    pub positions: Vec<u32>,
    pub boundaries: Vec<u32>,
    pub targets: Vec<i32>,
    /// Empty: 1 each
    pub weights: Vec<f32>,
    /// Empty: the base alone
    pub adapters: Vec<i32>,
}

impl Batch<'_> {
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Tokens that something is learned from.
    pub fn supervised(&self) -> usize {
        self.counted().count()
    }

    /// The sum of the weights of those tokens.
    pub fn weight(&self) -> f64 {
        self.counted().map(f64::from).sum()
    }

    /// Weights of the tokens that something is learned from.
    fn counted(&self) -> impl Iterator<Item = f32> + '_ {
        let weight = |token: usize| self.weights.map_or(1.0, |weights| weights[token]);
        let targets = self.targets.iter().enumerate().filter(|&(_, &target)| target >= 0);
        targets.map(move |(token, _)| weight(token)).filter(|&weight| weight != 0.0)
    }

    /// `capacity`: tokens of the longest batch that the run was planned for; `positions`: positions that have rotation
    /// angles.
    ///
    /// # Panics
    ///
    /// If the arrays contradict each other.
    pub fn check(&self, capacity: usize, positions: usize) -> Result<CheckedBatch> {
        self.check_tokens(capacity)?;
        let (tokens, weights) = (self.tokens(), self.weights.unwrap_or_default());
        assert!(
            self.positions.len() == tokens
                && self.targets.len() == tokens
                && self.weights.is_none_or(|weights| weights.len() == tokens)
                && self.adapters.is_none_or(|adapters| adapters.len() == tokens),
            "batch of unequal lengths"
        );
        assert!(
            self.boundaries.first() == Some(&0)
                && self.boundaries.last() == Some(&(tokens as u32))
                && self.boundaries.is_sorted(),
            "document boundaries must run from 0 to {tokens}"
        );
        if let Some(position) = self.positions.iter().find(|&&p| p as usize >= positions) {
            bail_usage!("a row reaches position {position}, but the run was planned for rows of {positions} tokens");
        }
        if let Some(token) = weights.iter().position(|weight| !weight.is_finite()) {
            bail_usage!("token {token} of a batch has a weight of {}, expected a finite number", weights[token]);
        }
        Ok(CheckedBatch { input_ids: self.input_ids.to_vec(), ..self.without_ids() })
    }

    /// The check of a dry run, which reads no token: arrays other than `input_ids` may be shorter than the batch, where
    /// nothing asks for more of them.
    pub fn check_planned(&self, capacity: usize) -> Result<CheckedBatch> {
        self.check_tokens(capacity)?;
        Ok(self.without_ids())
    }

    fn check_tokens(&self, capacity: usize) -> Result<()> {
        match self.tokens() {
            tokens if tokens == 0 || tokens > capacity => {
                Err(Error::Failed(format!("a batch of {tokens} tokens was given to a run planned for 1 to {capacity}")))
            }
            _ => Ok(()),
        }
    }

    fn without_ids(&self) -> CheckedBatch {
        CheckedBatch {
            tokens: self.tokens(),
            input_ids: Vec::new(),
            positions: self.positions.to_vec(),
            boundaries: self.boundaries.to_vec(),
            targets: self.targets.to_vec(),
            weights: self.weights.unwrap_or_default().to_vec(),
            adapters: self.adapters.unwrap_or_default().to_vec(),
        }
    }
}

impl CheckedBatch {
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Weights of a range of tokens; empty: 1 each.
    pub fn weights_of(&self, tokens: &Range<usize>) -> &[f32] {
        self.weights.get(tokens.clone()).unwrap_or_default()
    }

    /// Adapters of a range of tokens; empty: the base alone.
    pub fn adapters_of(&self, tokens: &Range<usize>) -> &[i32] {
        self.adapters.get(tokens.clone()).unwrap_or_default()
    }

    /// True if a token's loss counts: something is learned from it.
    pub fn counts(&self, token: usize) -> bool {
        self.targets[token] >= 0 && self.weights.get(token) != Some(&0.0)
    }
}

/// Tokens in a row that have the same of `count` adapters, with its number. Those of the base alone are left out.
pub(super) fn adapter_runs(adapters: &[i32], count: usize) -> Vec<(usize, Range<usize>)> {
    let (mut runs, mut start) = (Vec::new(), 0);
    for same in adapters.chunk_by(|one, next| one == next) {
        let tokens = start..start + same.len();
        start = tokens.end;
        if let Some(adapter) = usize::try_from(same[0]).ok().filter(|&adapter| adapter < count) {
            runs.push((adapter, tokens));
        }
    }
    runs
}

impl<'a> From<&'a MicroBatch> for Batch<'a> {
    fn from(batch: &'a MicroBatch) -> Self {
        let MicroBatch { input_ids, positions, boundaries, targets, .. } = batch;
        Batch { input_ids, positions, boundaries, targets, weights: None, adapters: None }
    }
}

#[cfg(test)]
mod tests {
    use super::adapter_runs;

    #[test]
    fn runs_are_of_one_adapter_and_leave_the_base_out() {
        assert_eq!(adapter_runs(&[1, 1, -1, 0, 2, 1], 2), [(1, 0..2), (0, 3..4), (1, 5..6)]);
        assert!(adapter_runs(&[], 3).is_empty() && adapter_runs(&[-1, 7], 3).is_empty());
    }
}
