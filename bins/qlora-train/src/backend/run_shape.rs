//! Sizes that a backend is made for.

/// What the sizes of the scratch memory follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunShape {
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens that the linear layers and the MLP work on at most at one time.
    pub tile: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// (ΣN, K, Σr) of every kind of linear group.
    pub groups: Vec<(usize, usize, usize)>,
    /// Dropout on the low-rank path's input.
    pub dropout: bool,
    /// Whether gradients are computed.
    pub training: bool,
    /// Whether the output layer is trained.
    pub trains_head: bool,
}
