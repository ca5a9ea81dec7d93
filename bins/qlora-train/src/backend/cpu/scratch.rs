//! Sizes of the scratch memory, from the dimensions of a model.

use super::aligned::Aligned;
use super::workspace::Workspace;
use super::{attention, gemm, loss};
use crate::backend::run_shape::RunShape;

/// Lengths in the order of [`Workspace`]'s fields.
fn lengths(dims: &RunShape, threads: usize) -> [usize; 7] {
    let max_k = dims.groups.iter().map(|g| g.1).max().unwrap_or(0);
    let training = usize::from(dims.training);
    let loss_tokens = dims.tokens.min(loss::CHUNK);
    [
        threads * gemm::PANEL,
        usize::from(dims.dropout) * dims.tile * max_k,
        attention::scratch(dims.tokens),
        training * dims.tokens * dims.heads,
        loss_tokens * dims.vocab,
        2 * loss_tokens * dims.hidden,
        loss_tokens * dims.head_rows,
    ]
}

impl Workspace {
    /// For as many threads: no more of them take part in a product.
    pub fn new(dims: &RunShape, threads: usize) -> Self {
        let [panels, dropped, scores, delta, logits, gathered, picked] = lengths(dims, threads).map(Aligned::zeros);
        Self { panels, dropped, scores, delta, logits, gathered, picked }
    }

    /// The bytes that [`Workspace::new`] takes.
    pub fn bytes_for(dims: &RunShape, threads: usize) -> u64 {
        lengths(dims, threads).iter().map(|&len| len as u64 * 4).sum()
    }
}
