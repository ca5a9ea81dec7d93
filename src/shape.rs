//! Shapes of operations that kernels, references and engines share.

use std::ops::Range;

/// The keys that a query of a causal attention sees: those of its document up to its own position, or the last `window`
/// of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// `usize::MAX`: all of them
    window: usize,
}

impl Visible {
    /// The keys of a `window` that counts the query's own position, at least 1; `None`: all keys.
    pub fn new(window: Option<usize>) -> Self {
        Self { window: window.unwrap_or(usize::MAX).max(1) }
    }

    /// Keys that `query` sees of a document that begins at `start`.
    pub fn keys(self, start: usize, query: usize) -> Range<usize> {
        start.max((query + 1).saturating_sub(self.window))..query + 1
    }

    /// One past the last query that sees `key`, of a document that ends at `end`.
    pub fn end_of_queries(self, key: usize, end: usize) -> usize {
        end.min(key.saturating_add(self.window))
    }
}

/// The activation function of the gate of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateActivation {
    /// x·σ(x)
    Silu,
    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))
    GeluTanh,
}

/// The shape of one attention operation. q, k and v are the column ranges of one row: `[H·D | Hkv·D | Hkv·D]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// H
    pub heads: usize,
    /// Hkv, a divisor of H
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Scores s are bounded by `cap · tanh(s / cap)` before the mask; above 0.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Width of a row of q‖k‖v.
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of a row of the output.
    pub fn out(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Column of the key of query head `head`.
    pub fn key_column(&self, head: usize) -> usize {
        (self.heads + head / (self.heads / self.kv_heads)) * self.head_dim
    }

    /// Column of the value of query head `head`.
    pub fn value_column(&self, head: usize) -> usize {
        self.key_column(head) + self.kv_heads * self.head_dim
    }

    /// 1 / √D
    pub fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}
