//! Sizes of the scratch memory, from the dimensions of a model.

use super::aligned::Aligned;
use super::workspace::Workspace;
use super::{attention, gemm, loss};
use crate::backend::run_shape::RunShape;

/// Threads that take part in one product at most.
const MAX_THREADS: usize = 64;

/// Lengths in the order of [`Workspace`]'s fields.
fn lengths(dims: &RunShape) -> [usize; 7] {
    let max_k = dims.groups.iter().map(|g| g.1).max().unwrap_or(0);
    let training = usize::from(dims.training);
    let loss_tokens = dims.tokens.min(loss::CHUNK);
    [
        MAX_THREADS * gemm::PANEL,
        usize::from(dims.dropout) * dims.tile * max_k,
        attention::scratch(dims.tokens),
        training * dims.tokens * dims.heads,
        loss_tokens * dims.vocab,
        2 * loss_tokens * dims.hidden,
        loss_tokens * dims.head_rows,
    ]
}

impl Workspace {
    pub fn new(dims: &RunShape) -> Self {
        let [panels, dropped, scores, delta, logits, gathered, picked] = lengths(dims).map(Aligned::zeros);
        Self { panels, dropped, scores, delta, logits, gathered, picked }
    }

    /// The bytes that [`Workspace::new`] takes.
    pub fn bytes_for(dims: &RunShape) -> u64 {
        lengths(dims).iter().map(|&len| len as u64 * 4).sum()
    }
}
