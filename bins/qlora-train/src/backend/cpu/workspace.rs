//! Scratch memory of the CPU operations, sized once from the model's dimensions.

use super::{attention, linear, loss};

/// What the sizes of the scratch memory follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dims {
    /// Tokens of the longest batch.
    pub tokens: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub heads: usize,
    /// (ΣN, K, Σr) of every kind of linear group.
    pub groups: Vec<(usize, usize, usize)>,
    /// Dropout on the low-rank path's input.
    pub dropout: bool,
    /// Whether gradients are computed.
    pub training: bool,
}

#[derive(Debug)]
pub struct Workspace {
    /// Dequantised rows of a weight or table.
    pub panel: Vec<f32>,
    /// `[tokens, max K]`: the input after dropout.
    pub dropped: Vec<f32>,
    /// `[tokens / 256, max Σr·K]`: dA of each chunk of tokens.
    pub partials: Vec<f32>,
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
fn lengths(dims: &Dims) -> [usize; 7] {
    let max_k = dims.groups.iter().map(|g| g.1).max().unwrap_or(0);
    let panel = dims
        .groups
        .iter()
        .map(|&(n, k, _)| linear::panel_rows(n, k) * k)
        .chain([linear::panel_rows(dims.vocab, dims.hidden) * dims.hidden])
        .max();
    let partials = dims.groups.iter().map(|g| g.1 * g.2).max().unwrap_or(0);
    let training = usize::from(dims.training);
    let loss_tokens = dims.tokens.min(loss::CHUNK);
    [
        panel.unwrap_or(0),
        usize::from(dims.dropout) * dims.tokens * max_k,
        training * dims.tokens.div_ceil(linear::GRADIENT_CHUNK) * partials,
        attention::scratch(dims.tokens),
        training * dims.tokens * dims.heads,
        loss_tokens * dims.vocab,
        2 * loss_tokens * dims.hidden,
    ]
}

impl Workspace {
    pub fn new(dims: &Dims) -> Self {
        let [panel, dropped, partials, scores, delta, logits, gathered] = lengths(dims).map(|len| vec![0.0; len]);
        Self { panel, dropped, partials, scores, delta, logits, gathered }
    }

    /// The bytes that [`Workspace::new`] will take.
    pub fn bytes_for(dims: &Dims) -> u64 {
        lengths(dims).iter().map(|&len| len as u64 * 4).sum()
    }

    pub fn bytes(&self) -> u64 {
        let all = [&self.panel, &self.dropped, &self.partials, &self.scores, &self.delta, &self.logits, &self.gathered];
        all.iter().map(|v| v.len() as u64 * 4).sum()
    }
}
