//! Keys and values of earlier tokens in bf16, and attention of a few new ones over them.

use super::dots;
use super::isa::Isa;
use super::rows::{round, widen};
use crate::backend::CheckedBatch;
use crate::backend::cpu::cache::starts_of_tokens;
use crate::backend::cpu::elementwise::exp_shifted;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::soft_cap::cap_values;
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
            dots::dots(isa, &rows[key..], width, query, scores);
            scores.iter_mut().for_each(|score| *score *= shape.scale() as f32);
            if let Some(cap) = shape.soft_cap {
                cap_values(cap, scores);
            }
            let new_max = scores.iter().copied().fold(max, f32::max);
            let correction = (max - new_max).exp();
            max = new_max;
            sum = sum * correction + exp_shifted(scores, new_max);
            sums.iter_mut().for_each(|x| *x *= correction);
            add_rows(sums, scores, &rows[value..], width);
        }
        out.iter_mut().zip(sums).for_each(|(out, x)| *out = round(*x / sum));
    });
}

vectorized! {
    /// Adds each of the rows, `stride` values apart, as often as its `p` says.
    fn add_rows<'a>(sums: &'a mut [f32], p: &'a [f32], rows: &'a [bf16], stride: usize) {
        let (wide, rest) = sums.as_chunks_mut::<64>();
        let (narrow, rest) = rest.as_chunks_mut::<16>();
        let mut column = 0;
        for sums in wide {
            *sums = added(*sums, p, &rows[column..], stride);
            column += sums.len();
        }
        for sums in narrow {
            *sums = added(*sums, p, &rows[column..], stride);
            column += sums.len();
        }
        for (i, sum) in rest.iter_mut().enumerate() {
            [*sum] = added([*sum], p, &rows[column + i..], stride);
        }
    }
}

/// The sums of `COLUMNS` columns, which stay in registers over all rows.
#[inline(always)]
fn added<const COLUMNS: usize>(mut sums: [f32; COLUMNS], p: &[f32], rows: &[bf16], stride: usize) -> [f32; COLUMNS] {
    for (p, row) in p.iter().zip(rows.chunks(stride)) {
        for (sum, value) in sums.iter_mut().zip(&row[..COLUMNS]) {
            *sum += p * widen(*value);
        }
    }
    sums
}
