//! Scratch memory of the operations on bf16 values.

use super::attention;
use super::gemm::Scratch;
use super::isa::Isa;
use super::linear::GradientScratch;
use super::loss::LossScratch;
use crate::backend::cpu::aligned::Aligned;
use crate::backend::run_shape::RunShape;
use half::bf16;
use qlora_kernels::shape::AttentionShape;

/// Scratch memory, sized once.
pub struct Workspace {
    pub isa: Isa,
    pub gemm: Vec<Scratch>,
    pub attention: Vec<attention::Scratch>,
    pub gradients: GradientScratch,
    pub loss: LossScratch,
    /// `[tile, max K]`: an input after dropout
    pub masked: Aligned<bf16>,
    /// `[tile, max K]`: T·A before its mask
    pub term: Aligned<f32>,
    /// `[tokens, H]`: rowsum(dO ∘ O)
    pub delta: Aligned<f32>,
}

fn shape(dims: &RunShape) -> AttentionShape {
    AttentionShape { heads: dims.heads, kv_heads: dims.kv_heads, head_dim: dims.head_dim, soft_cap: None }
}

/// Threads that attention has tasks for.
fn of_attention(dims: &RunShape, threads: usize) -> usize {
    threads.min(attention::tasks(dims.tokens, dims.kv_heads))
}

/// Values of an input under dropout, and of rowsum(dO ∘ O).
fn lengths(dims: &RunShape) -> (usize, usize) {
    let max_k = dims.groups.iter().map(|group| group.1).max().unwrap_or(0);
    (usize::from(dims.dropout) * dims.tile * max_k, usize::from(dims.training) * dims.tokens * dims.heads)
}

/// The largest rank of a group, and the widest input or output, for gradients.
fn largest(dims: &RunShape) -> (usize, usize) {
    let ranks = dims.groups.iter().map(|group| group.2).max().unwrap_or(0);
    (usize::from(dims.training) * ranks, dims.groups.iter().map(|group| group.0.max(group.1)).max().unwrap_or(0))
}

impl Workspace {
    /// For as many threads: no more of them take part in an operation.
    pub fn new(isa: Isa, dims: &RunShape, threads: usize) -> Self {
        let (masked, delta) = lengths(dims);
        let (r, width) = largest(dims);
        Self {
            isa,
            gemm: (0..threads).map(|_| Scratch::new()).collect(),
            attention: (0..of_attention(dims, threads)).map(|_| attention::Scratch::new(shape(dims))).collect(),
            gradients: GradientScratch::new(r, width),
            loss: LossScratch::new(dims.tokens, dims.hidden, dims.vocab, dims.trains_head, dims.head_on_disk),
            masked: Aligned::zeros(masked),
            term: Aligned::zeros(masked),
            delta: Aligned::zeros(delta),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes_for(dims: &RunShape, threads: usize) -> u64 {
        let (masked, delta) = lengths(dims);
        let (r, width) = largest(dims);
        threads as u64 * Scratch::BYTES
            + of_attention(dims, threads) as u64 * attention::Scratch::bytes(shape(dims))
            + GradientScratch::bytes(r, width)
            + LossScratch::bytes(dims.tokens, dims.hidden, dims.vocab, dims.trains_head, dims.head_on_disk)
            + 6 * masked as u64
            + 4 * delta as u64
    }
}
