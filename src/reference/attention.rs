//! Causal grouped-query attention over documents that do not see each other.

use super::{Real, axpy, dot, soft_capped};
use crate::shape::{AttentionShape, Visible};

/// `O = softmax(Q·Kᵀ/√D, causal)·V` per head and document; `lse` is the log of the softmax's denominator. With a
/// `window` a query sees that many keys at most, its own included; with the shape's soft cap scores s are first
/// `cap·tanh(s/cap)`.
pub fn attention<T: Real>(
    qkv: &[T],          // [M, qkv]
    boundaries: &[u32], // [documents + 1], from 0 to M
    shape: AttentionShape,
    window: Option<usize>,
    out: &mut [T], // [M, H·D]
    lse: &mut [T], // [M, H]
) {
    let (d, width, scale) = (shape.head_dim, shape.qkv(), T::of(shape.scale()));
    let visible = Visible::new(window);
    for document in boundaries.windows(2) {
        let (start, end) = (document[0] as usize, document[1] as usize);
        for i in start..end {
            for head in 0..shape.heads {
                let q = &qkv[i * width + head * d..][..d];
                let (key, value) = (shape.key_column(head), shape.value_column(head));
                let keys = visible.keys(start, i);
                let score = |j: usize| soft_capped(scale * dot(q, &qkv[j * width + key..][..d]), shape.soft_cap).0;
                let scores: Vec<T> = keys.clone().map(score).collect();
                let max = scores.iter().copied().fold(scores[0], |a, b| if b > a { b } else { a });
                let mut sum = T::ZERO;
                scores.iter().for_each(|&s| sum += (s - max).exp());
                let out = &mut out[i * shape.out() + head * d..][..d];
                out.fill(T::ZERO);
                for (j, &s) in keys.zip(&scores) {
                    axpy((s - max).exp() / sum, &qkv[j * width + value..][..d], out);
                }
                lse[i * shape.heads + head] = max + sum.ln();
            }
        }
    }
}

/// Gradients of q, k and v, written over `dqkv`. P = exp(S − lse); dS = P∘(dO·Vᵀ − rowsum(dO∘O)), times the slope of
/// the soft cap.
pub fn attention_backward<T: Real>(
    dout: &[T],         // [M, H·D]
    qkv: &[T],          // [M, qkv]
    out: &[T],          // [M, H·D]
    lse: &[T],          // [M, H]
    boundaries: &[u32], // [documents + 1]
    shape: AttentionShape,
    window: Option<usize>,
    dqkv: &mut [T], // [M, qkv]
) {
    let (d, width, scale) = (shape.head_dim, shape.qkv(), T::of(shape.scale()));
    let visible = Visible::new(window);
    dqkv.fill(T::ZERO);
    for document in boundaries.windows(2) {
        let (start, end) = (document[0] as usize, document[1] as usize);
        for i in start..end {
            for head in 0..shape.heads {
                let q = &qkv[i * width + head * d..][..d];
                let (key, value) = (shape.key_column(head), shape.value_column(head));
                let row = i * shape.out() + head * d;
                let (dout, out) = (&dout[row..row + d], &out[row..row + d]);
                let delta = dot(dout, out);
                let mut dq = vec![T::ZERO; d];
                for j in visible.keys(start, i) {
                    let k = &qkv[j * width + key..][..d];
                    let v = &qkv[j * width + value..][..d];
                    let (score, slope) = soft_capped(scale * dot(q, k), shape.soft_cap);
                    let p = (score - lse[i * shape.heads + head]).exp();
                    let ds = slope * scale * p * (dot(dout, v) - delta);
                    axpy(ds, k, &mut dq);
                    axpy(ds, q, &mut dqkv[j * width + key..][..d]);
                    axpy(p, dout, &mut dqkv[j * width + value..][..d]);
                }
                axpy(T::ONE, &dq, &mut dqkv[i * width + head * d..][..d]);
            }
        }
    }
}
