//! Keys and values of earlier tokens in bf16, and attention of a few new ones over them.

use super::dots;
use super::isa::Isa;
use super::rows::{round, widen};
use crate::backend::CheckedBatch;
use crate::backend::cpu::cache::starts_of_tokens;
use crate::backend::cpu::elementwise::exp_shifted;
use crate::backend::cpu::gemm::simd::vectorized;
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;

/// Keys whose scores exist at one time.
const TILE: usize = 128;
/// The widest head.
const MAX_HEAD_DIM: usize = 256;

/// Copies the keys and values of the batch to their rows of `cache` `[rows, k‖v]`.
pub fn append(qkv: &[bf16], batch: &CheckedBatch, shape: AttentionShape, starts: &[u32], cache: &mut [bf16]) {
    let (width, from) = (2 * shape.kv_heads * shape.head_dim, shape.out());
    let rows = qkv.chunks_exact(shape.qkv()).zip(starts_of_tokens(batch, starts)).zip(&batch.positions);
    for ((qkv, start), &position) in rows {
        cache[(start + position as usize) * width..][..width].copy_from_slice(&qkv[from..]);
    }
}

/// `O = softmax(Q·Kᵀ/√D)·V` over the rows of each token's document that it sees. A task is one head of one token, so
/// the result depends on nothing else in the batch.
pub fn attention(
    isa: Isa,
    qkv: &[bf16],   // [M, qkv]
    cache: &[bf16], // [rows, k‖v]
    batch: &CheckedBatch,
    shape: AttentionShape,
    visible: Visible,
    starts: &[u32],
    out: &mut [bf16], // [M, H·D]
) {
    let (d, width) = (shape.head_dim, 2 * shape.kv_heads * shape.head_dim);
    assert!(d <= MAX_HEAD_DIM, "head_dim {d}");
    let starts = starts_of_tokens(batch, starts);
    out.par_chunks_exact_mut(d).enumerate().with_min_len(2).for_each(|(task, out)| {
        let (token, head) = (task / shape.heads, task % shape.heads);
        let query = &qkv[token * shape.qkv() + head * d..][..d];
        let key = shape.key_column(head) - shape.out();
        let value = key + shape.kv_heads * d;
        let seen = visible.keys(0, batch.positions[token] as usize);
        let rows = &cache[(starts[token] + seen.start) * width..][..seen.len() * width];
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
        let mut sums = [0.0f32; MAX_HEAD_DIM];
        let sums = &mut sums[..d];
        for rows in rows.chunks(TILE * width) {
            let mut scores = [0.0f32; TILE];
            let scores = &mut scores[..rows.len() / width];
            for (score, row) in scores.iter_mut().zip(rows.chunks_exact(width)) {
                *score = shape.scale() as f32 * dots::dot(isa, query, &row[key..key + d]);
            }
            let new_max = scores.iter().copied().fold(max, f32::max);
            let correction = (max - new_max).exp();
            max = new_max;
            sum = sum * correction + exp_shifted(scores, new_max);
            sums.iter_mut().for_each(|x| *x *= correction);
            for (p, row) in scores.iter().zip(rows.chunks_exact(width)) {
                add_scaled(sums, *p, &row[value..value + d]);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, x)| *out = round(*x / sum));
    });
}

vectorized! {
    fn add_scaled<'a>(sums: &'a mut [f32], p: f32, values: &'a [bf16]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += p * widen(*value);
        }
    }
}
