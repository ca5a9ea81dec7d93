//! Scratch memory of the CPU operations, sized once from the model's dimensions.

use super::gemm::panels;
use super::{attention, loss};
use crate::backend::dims::Dims;

/// Threads that take part in one product at most.
const MAX_THREADS: usize = 64;

#[derive(Debug, Default)]
pub struct Workspace {
    /// Dequantized panels of weights and tables, one for each thread.
    pub panels: Vec<f32>,
    /// `[tokens, max K]`: the input after dropout.
    pub dropped: Vec<f32>,
    /// Attention scores, a tile pair per task.
    pub scores: Vec<f32>,
    /// `[tokens, H]`: rowsum(dO ∘ O).
    pub delta: Vec<f32>,
    /// `[loss chunk, vocab]`
    pub logits: Vec<f32>,
    /// `[loss chunk, hidden]` twice: supervised rows and their gradients.
    pub gathered: Vec<f32>,
}

/// Lengths in the order of [`Workspace`]'s fields.
fn lengths(dims: &Dims) -> [usize; 6] {
    let max_k = dims.groups.iter().map(|g| g.1).max().unwrap_or(0);
    let training = usize::from(dims.training);
    let loss_tokens = dims.tokens.min(loss::CHUNK);
    [
        MAX_THREADS * panels::PANEL,
        usize::from(dims.dropout) * dims.tokens * max_k,
        attention::scratch(dims.tokens),
        training * dims.tokens * dims.heads,
        loss_tokens * dims.vocab,
        2 * loss_tokens * dims.hidden,
    ]
}

impl Workspace {
    pub fn new(dims: &Dims) -> Self {
        let [panels, dropped, scores, delta, logits, gathered] = lengths(dims).map(|len| vec![0.0; len]);
        Self { panels, dropped, scores, delta, logits, gathered }
    }

    /// The bytes that [`Workspace::new`] takes.
    pub fn bytes_for(dims: &Dims) -> u64 {
        lengths(dims).iter().map(|&len| len as u64 * 4).sum()
    }
}
