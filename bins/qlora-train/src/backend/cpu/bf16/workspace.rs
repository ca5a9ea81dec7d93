//! Scratch memory of the operations on bf16 values.

use super::attention;
use super::gemm::Scratch;
use super::isa::Isa;
use super::lora_gradients::GradientScratch;
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
    /// dQ before it is rounded
    pub dq: Aligned<f32>,
}

fn shape(dims: &RunShape) -> AttentionShape {
    AttentionShape { heads: dims.heads, kv_heads: dims.kv_heads, head_dim: dims.head_dim, soft_cap: None }
}

/// Threads that attention has tasks for.
fn of_attention(dims: &RunShape, threads: usize) -> usize {
    threads.min(attention::tasks(dims.tokens, dims.kv_heads))
}

/// Values of an input under dropout, of rowsum(dO ∘ O) and of dQ.
fn lengths(dims: &RunShape) -> [usize; 3] {
    let max_k = dims.groups.iter().map(|group| group.1).max().unwrap_or(0);
    let training = usize::from(dims.training);
    let dq = attention::backward::Sums::dq_len(dims.tokens, shape(dims));
    [usize::from(dims.dropout) * dims.tile * max_k, training * dims.tokens * dims.heads, training * dq]
}

/// The largest rank of a group, for gradients.
fn largest_rank(dims: &RunShape) -> usize {
    let ranks = dims.groups.iter().map(|group| group.2).max().unwrap_or(0);
    usize::from(dims.training) * ranks
}

impl Workspace {
    /// For as many threads: no more of them take part in an operation.
    pub fn new(isa: Isa, dims: &RunShape, threads: usize) -> Self {
        let [masked, delta, dq] = lengths(dims);
        Self {
            isa,
            gemm: (0..threads).map(|_| Scratch::new()).collect(),
            attention: (0..of_attention(dims, threads)).map(|_| attention::Scratch::new(shape(dims))).collect(),
            gradients: GradientScratch::new(largest_rank(dims)),
            loss: LossScratch::new(dims.tokens, dims.hidden, dims.vocab, dims.trains_head, dims.head_on_disk),
            masked: Aligned::zeros(masked),
            term: Aligned::zeros(masked),
            delta: Aligned::zeros(delta),
            dq: Aligned::zeros(dq),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes_for(dims: &RunShape, threads: usize) -> u64 {
        let [masked, delta, dq] = lengths(dims);
        threads as u64 * Scratch::BYTES
            + of_attention(dims, threads) as u64 * attention::Scratch::bytes(shape(dims))
            + GradientScratch::bytes(largest_rank(dims))
            + LossScratch::bytes(dims.tokens, dims.hidden, dims.vocab, dims.trains_head, dims.head_on_disk)
            + 6 * masked as u64
            + 4 * (delta + dq) as u64
    }
}
