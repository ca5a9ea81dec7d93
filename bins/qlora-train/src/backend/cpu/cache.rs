//! Keys and values of earlier tokens, and attention of a few new ones over them.

use super::elementwise::{LANES, dot, exp_shifted};
use super::gemm::simd::vectorized;
use super::soft_cap::cap_values;
use crate::backend::CheckedBatch;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;

/// Keys whose scores exist at one time.
const TILE: usize = 128;

/// For every token of the batch: the first row of its document in the cache.
pub fn starts_of_tokens(batch: &CheckedBatch, starts: &[u32]) -> Vec<usize> {
    let documents = batch.boundaries.windows(2).zip(starts);
    documents.flat_map(|(w, &start)| (w[0]..w[1]).map(move |_| start as usize)).collect()
}

/// Copies the keys and values of the batch to their rows of `cache` `[rows, k‖v]`.
pub fn append(qkv: &[f32], batch: &CheckedBatch, shape: AttentionShape, starts: &[u32], cache: &mut [f32]) {
    let (width, from) = (2 * shape.kv_heads * shape.head_dim, shape.out());
    let rows = qkv.chunks_exact(shape.qkv()).zip(starts_of_tokens(batch, starts)).zip(&batch.positions);
    for ((qkv, start), &position) in rows {
        cache[(start + position as usize) * width..][..width].copy_from_slice(&qkv[from..]);
    }
}

/// `O = softmax(Q·Kᵀ/√D)·V` over the rows of each token's document that it sees. A task is one head of one token, so
/// the result depends on nothing else in the batch.
pub fn attention(
    qkv: &[f32],   // [M, qkv]
    cache: &[f32], // [rows, k‖v]
    batch: &CheckedBatch,
    shape: AttentionShape,
    visible: Visible,
    starts: &[u32],
    out: &mut [f32], // [M, H·D]
) {
    let (d, width) = (shape.head_dim, 2 * shape.kv_heads * shape.head_dim);
    let starts = starts_of_tokens(batch, starts);
    out.par_chunks_exact_mut(d).enumerate().with_min_len(2).for_each(|(task, out)| {
        let (token, head) = (task / shape.heads, task % shape.heads);
        let query = &qkv[token * shape.qkv() + head * d..][..d];
        let key = shape.key_column(head) - shape.out();
        let seen = visible.keys(0, batch.positions[token] as usize);
        let rows = &cache[(starts[token] + seen.start) * width..][..seen.len() * width];
        let value = key + shape.kv_heads * d;
        one_query(query, rows, width, key, value, shape.scale() as f32, shape.soft_cap, out);
    });
}

vectorized! {
    fn one_query<'a>(
        query: &'a [f32],
        rows: &'a [f32],
        width: usize,
        key: usize,
        value: usize,
        scale: f32,
        soft_cap: Option<f32>,
        out: &'a mut [f32],
    ) {
        let d = query.len();
        let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
        out.fill(0.0);
        for rows in rows.chunks(TILE * width) {
            let mut scores = [0.0f32; TILE];
            let scores = &mut scores[..rows.len() / width];
            for (score, row) in scores.iter_mut().zip(rows.chunks_exact(width)) {
                *score = scale * dot::<LANES>(query, &row[key..][..d]);
            }
            if let Some(cap) = soft_cap {
                cap_values(cap, scores);
            }
            let new_max = scores.iter().copied().fold(max, f32::max);
            let correction = (max - new_max).exp();
            max = new_max;
            sum = sum * correction + exp_shifted(scores, new_max);
            out.iter_mut().for_each(|o| *o *= correction);
            for (score, row) in scores.iter().zip(rows.chunks_exact(width)) {
                out.iter_mut().zip(&row[value..][..d]).for_each(|(o, v)| *o += score * v);
            }
        }
        out.iter_mut().for_each(|o| *o /= sum);
    }
}
