//! Scratch memory of the CPU operations.

use super::aligned::Aligned;

#[derive(Default)]
pub struct Workspace {
    /// Dequantized panels of weights and tables, one for each thread.
    pub panels: Aligned<f32>,
    /// `[tokens, max K]`: the input after dropout.
    pub dropped: Aligned<f32>,
    /// Attention scores, a tile pair per task.
    pub scores: Aligned<f32>,
    /// `[tokens, H]`: rowsum(dO ∘ O).
    pub delta: Aligned<f32>,
    /// `[loss chunk, vocab]`
    pub logits: Aligned<f32>,
    /// `[loss chunk, hidden]` twice: supervised rows and their gradients.
    pub gathered: Aligned<f32>,
    /// `[loss chunk, trained rows]`: gradients of the logits of the tokens whose rows of the output layer are trained.
    pub picked: Aligned<f32>,
}
