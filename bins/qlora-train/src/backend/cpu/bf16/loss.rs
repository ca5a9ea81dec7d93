//! Output layer and cross-entropy over the supervised tokens only, a chunk of tokens at a time, on bf16 values.

use super::amx::PAIRS;
use super::gemm::{Out, Product, Right, Scratch, multiply, round_scaled};
use super::isa::Isa;
use super::linear::transpose;
use super::rows::round;
use super::stored::{Limited, Rows, Stored};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::loss::{LossSum, to_gradients};
use crate::backend::cpu::table::TableGradient;
use crate::backend::cpu::table_on_disk::{ROWS, has_parts};
use crate::error::Result;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose logits exist at one time.
pub const CHUNK: usize = 256;

/// Scratch memory: logits, and hidden states of a chunk.
pub struct LossScratch {
    /// `[CHUNK, vocab]`: logits in f32; their gradients in bf16 take the first half of each row.
    logits: Aligned<f32>,
    /// `[CHUNK, hidden]` twice: rows of supervised tokens, and their gradients
    gathered: Aligned<bf16>,
    gradient: Aligned<bf16>,
    /// `[VOCABULARY, CHUNK]`, where the output layer is trained: gradients of logits, transposed
    turned: Aligned<bf16>,
    /// `[CHUNK, hidden]`, where the output layer comes in parts: sums of the parts so far
    sums: Aligned<f32>,
}

/// Hands over the parts of the output layer in order, each with the rows that it has.
pub type EachPart<'a> = dyn Fn(&mut dyn FnMut(Range<usize>, &dyn Stored)) -> Result<()> + 'a;

// A sum over parts is that over the whole: they end where its steps do.
const _: () = assert!(ROWS.is_multiple_of(2 * PAIRS));

/// Rows of the output layer whose gradient is computed together.
const VOCABULARY: usize = 1024;

impl LossScratch {
    /// `in_parts`: the output layer may come in parts.
    pub fn new(tokens: usize, hidden: usize, vocab: usize, trains_head: bool, in_parts: bool) -> Self {
        let rows = tokens.min(CHUNK);
        Self {
            logits: Aligned::zeros(rows * vocab.next_multiple_of(2)),
            gathered: Aligned::zeros(rows * hidden),
            gradient: Aligned::zeros(rows * hidden),
            turned: Aligned::zeros(Self::turned(tokens, vocab, trains_head)),
            sums: Aligned::zeros(Self::sums(tokens, hidden, vocab, in_parts)),
        }
    }

    fn sums(tokens: usize, hidden: usize, vocab: usize, in_parts: bool) -> usize {
        usize::from(in_parts && has_parts(vocab)) * tokens.min(CHUNK) * hidden
    }

    fn turned(tokens: usize, vocab: usize, trains_head: bool) -> usize {
        usize::from(trains_head) * vocab.min(VOCABULARY) * tokens.min(CHUNK).next_multiple_of(2)
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(tokens: usize, hidden: usize, vocab: usize, trains_head: bool, in_parts: bool) -> u64 {
        let rows = tokens.min(CHUNK) * (vocab.next_multiple_of(2) * 4 + 4 * hidden);
        let sums = Self::sums(tokens, hidden, vocab, in_parts);
        (rows + 2 * Self::turned(tokens, vocab, trains_head) + 4 * sums) as u64
    }
}

/// Adds the weighted losses to `total`, writes `scale` times their gradient to `dx`, and adds it to that of the output
/// layer.
pub fn cross_entropy(
    isa: Isa,
    scratch: &mut [Scratch],
    memory: &mut LossScratch,
    x: &[bf16], // [M, H]
    head: &EachPart,
    h: usize,
    vocab: usize,
    to: TableGradient, // [vocab, H], [tokens, H], or empty
    targets: &[i32],   // [M]
    weights: &[f32],   // [M], or empty: 1 each
    scale: f32,
    soft_cap: Option<f32>,
    mut dx: Option<&mut [bf16]>, // [M, H]
    total: &mut LossSum,
) -> Result<()> {
    if let Some(dx) = dx.as_deref_mut() {
        dx.fill(bf16::ZERO);
    }
    let weight_of = |token: usize| weights.get(token).copied().unwrap_or(1.0);
    let supervised: Vec<usize> = (0..targets.len()).filter(|&t| targets[t] >= 0 && weight_of(t) != 0.0).collect();
    // An odd vocabulary is followed by a column of zeros, which no probability falls on.
    let stride = vocab.next_multiple_of(2);
    for tokens in supervised.chunks(CHUNK) {
        let gathered = &mut memory.gathered[..tokens.len() * h];
        for (to, &token) in gathered.chunks_exact_mut(h).zip(tokens) {
            to.copy_from_slice(&x[token * h..(token + 1) * h]);
        }
        let gathered = &*gathered;
        let logits = &mut memory.logits[..tokens.len() * stride];
        head(&mut |rows, part| {
            let product = Product { left: Rows { data: gathered, stride: h }, k: h, right: Right::Turned(part) };
            multiply(isa, scratch, Out::F32 { data: &mut *logits, stride }, tokens.len(), rows, &[product]);
        })?;
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(stride)
            .zip(tokens)
            .map(|(row, &token)| {
                let (target, weight) = (targets[token] as usize, scale * weight_of(token));
                let loss = to_gradients(&mut row[..vocab], target, weight, soft_cap);
                row[vocab..].fill(0.0);
                round_in_place(bytemuck::cast_slice_mut(row));
                f64::from(weight_of(token)) * loss
            })
            .collect();
        total.add(&losses);
        let bits: &[bf16] = bytemuck::cast_slice(logits);
        for (rows, gradient) in to.data.chunks_mut(VOCABULARY * h).enumerate() {
            let (first, count, steps) = (rows * VOCABULARY, gradient.len() / h, tokens.len().next_multiple_of(2));
            let left = &mut memory.turned[..count * steps];
            match to.tokens {
                None => transpose(&bits[first..], 2 * stride, tokens.len(), count, steps, left),
                Some(own) => {
                    left.fill(bf16::ZERO);
                    for (left, &token) in left.chunks_exact_mut(steps).zip(&own[first..]) {
                        let of_token = bits[token as usize..].iter().step_by(2 * stride);
                        left.iter_mut().zip(of_token).take(tokens.len()).for_each(|(to, bits)| *to = *bits);
                    }
                }
            }
            let right = Limited { matrix: &Rows { data: gathered, stride: h }, count: tokens.len() };
            let product = Product { left: Rows { data: left, stride: steps }, k: steps, right: Right::Upright(&right) };
            multiply(isa, scratch, Out::Add { data: gradient, stride: h }, count, 0..h, &[product]);
        }
        let Some(dx) = dx.as_deref_mut() else { continue };
        let gradient = &mut memory.gradient[..tokens.len() * h];
        let sums = &mut memory.sums;
        head(&mut |rows, part| {
            let left = Rows { data: &bits[rows.start..], stride: 2 * stride };
            let right = Limited { matrix: part, count: rows.len() };
            let k = if rows.end == vocab { stride - rows.start } else { rows.len() };
            let product = Product { left, k, right: Right::Upright(&right) };
            let out = match rows.len() == vocab {
                true => Out::Bf16 { data: &mut *gradient, stride: h, scale: 1.0, bias: None },
                false => Out::Continued { data: &mut sums[..tokens.len() * h], stride: h, begins: rows.start == 0 },
            };
            multiply(isa, scratch, out, tokens.len(), 0..h, &[product]);
            if rows.end == vocab && rows.len() < vocab {
                round_scaled(gradient, &sums[..tokens.len() * h], 1.0);
            }
        })?;
        for (from, &token) in gradient.chunks_exact(h).zip(tokens) {
            dx[token * h..(token + 1) * h].copy_from_slice(from);
        }
    }
    Ok(())
}

vectorized! {
    /// Rounds f32 numbers, given by their bits, to bf16 pairs in the first half of the same memory.
    fn round_in_place<'a>(row: &'a mut [u32]) {
        let mut start = 0;
        while start + 32 <= row.len() {
            let values: [u32; 32] = *row[start..].first_chunk().expect("32 are left");
            let to = &mut row[start / 2..][..16];
            for i in 0..16 {
                let low = round(f32::from_bits(values[2 * i])).to_bits();
                let high = round(f32::from_bits(values[2 * i + 1])).to_bits();
                to[i] = u32::from(low) | u32::from(high) << 16;
            }
            start += 32;
        }
        for i in (start..row.len()).step_by(2) {
            let low = round(f32::from_bits(row[i])).to_bits();
            let high = round(f32::from_bits(row[i + 1])).to_bits();
            row[i / 2] = u32::from(low) | u32::from(high) << 16;
        }
    }
}

/// Logits `[rows, vocab]` in f32.
pub fn logits(
    isa: Isa,
    scratch: &mut [Scratch],
    x: &[bf16],
    head: &EachPart,
    h: usize,
    vocab: usize,
    out: &mut [f32],
) -> Result<()> {
    head(&mut |rows, part| {
        let product = Product { left: Rows { data: x, stride: h }, k: h, right: Right::Turned(part) };
        multiply(isa, scratch, Out::F32 { data: &mut *out, stride: vocab }, x.len() / h, rows, &[product]);
    })
}

#[cfg(test)]
mod tests;
