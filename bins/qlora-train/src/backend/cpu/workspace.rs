//! Scratch memory of the CPU operations.

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
