//! Output layer and cross-entropy over the supervised tokens only, a chunk of tokens at a time, on bf16 values.

use super::gemm::{Out, Product, Right, Scratch, multiply};
use super::isa::Isa;
use super::linear::transpose;
use super::rows::round;
use super::stored::{Limited, Rows, Stored};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::loss::{LossSum, to_gradients};
use crate::backend::cpu::operands::TableGradient;
use half::bf16;
use rayon::prelude::*;

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
}

/// Rows of the output layer whose gradient is computed together.
const VOCABULARY: usize = 1024;

impl LossScratch {
    pub fn new(tokens: usize, hidden: usize, vocab: usize, trains_head: bool) -> Self {
        let rows = tokens.min(CHUNK);
        Self {
            logits: Aligned::zeros(rows * vocab.next_multiple_of(2)),
            gathered: Aligned::zeros(rows * hidden),
            gradient: Aligned::zeros(rows * hidden),
            turned: Aligned::zeros(Self::turned(tokens, vocab, trains_head)),
        }
    }

    fn turned(tokens: usize, vocab: usize, trains_head: bool) -> usize {
        usize::from(trains_head) * vocab.min(VOCABULARY) * tokens.min(CHUNK).next_multiple_of(2)
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(tokens: usize, hidden: usize, vocab: usize, trains_head: bool) -> u64 {
        let rows = tokens.min(CHUNK) * (vocab.next_multiple_of(2) * 4 + 4 * hidden);
        (rows + 2 * Self::turned(tokens, vocab, trains_head)) as u64
    }
}

/// Adds the weighted losses to `total`, writes `scale` times their gradient to `dx`, and adds it to that of the output
/// layer.
pub fn cross_entropy(
    isa: Isa,
    scratch: &mut [Scratch],
    memory: &mut LossScratch,
    x: &[bf16], // [M, H]
    head: &dyn Stored,
    h: usize,
    vocab: usize,
    to: TableGradient, // [vocab, H], [tokens, H], or empty
    targets: &[i32],   // [M]
    weights: &[f32],   // [M], or empty: 1 each
    scale: f32,
    soft_cap: Option<f32>,
    mut dx: Option<&mut [bf16]>, // [M, H]
    total: &mut LossSum,
) {
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
        let logits = &mut memory.logits[..tokens.len() * stride];
        let product = Product { left: Rows { data: gathered, stride: h }, k: h, right: Right::Turned(head) };
        multiply(isa, scratch, Out::F32 { data: logits, stride }, tokens.len(), 0..vocab, &[product]);
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
        let left = Rows { data: bytemuck::cast_slice(logits), stride: 2 * stride };
        let right = Limited { matrix: head, count: vocab };
        let product = Product { left, k: stride, right: Right::Upright(&right) };
        let out = Out::Bf16 { data: gradient, stride: h, scale: 1.0, bias: None };
        multiply(isa, scratch, out, tokens.len(), 0..h, &[product]);
        for (from, &token) in gradient.chunks_exact(h).zip(tokens) {
            dx[token * h..(token + 1) * h].copy_from_slice(from);
        }
    }
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
pub fn logits(isa: Isa, scratch: &mut [Scratch], x: &[bf16], head: &dyn Stored, h: usize, vocab: usize) -> Vec<f32> {
    let mut logits = vec![0.0; x.len() / h * vocab];
    let product = Product { left: Rows { data: x, stride: h }, k: h, right: Right::Turned(head) };
    multiply(isa, scratch, Out::F32 { data: &mut logits, stride: vocab }, x.len() / h, 0..vocab, &[product]);
    logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::rng::Stream;

    fn values(len: usize, seed: u64) -> Vec<bf16> {
        let mut stream = Stream::new(seed, 1);
        (0..len).map(|_| bf16::from_f32(stream.below(2001) as f32 / 1000.0 - 1.0)).collect()
    }

    #[test]
    fn losses_and_gradients_are_those_of_f64_within_rounding() {
        let sizes = [(1, 4, 3, None), (9, 24, 77, None), (300, 32, 130, None), (30, 24, 1077, Some(1.5))];
        for (m, h, vocab, soft_cap) in sizes {
            let capped = |z: f64| soft_cap.map_or(z, |cap: f32| f64::from(cap) * (z / f64::from(cap)).tanh());
            let slope = |z: f64| soft_cap.map_or(1.0, |cap: f32| 1.0 - (z / f64::from(cap)).powi(2));
            let (x, head) = (values(m * h, 1), values(vocab * h, 2));
            let targets: Vec<i32> = (0..m).map(|i| if i % 3 == 1 { -1 } else { (i * 7 % vocab) as i32 }).collect();
            let weights: Vec<f32> =
                (0..m).map(|token| if token % 5 == 4 { 0.0 } else { 0.25 + token as f32 / 512.0 }).collect();
            let scale = 0.5;
            let mut scratch: Vec<Scratch> = (0..2).map(|_| Scratch::new()).collect();
            let mut memory = LossScratch::new(m, h, vocab, true);
            let mut head_gradient = vec![0.5f32; vocab * h];
            let mut expected_gradient = vec![[0.0f64; 2]; vocab * h];
            let mut dx = vec![bf16::ONE; m * h];
            let rows = Rows { data: &head, stride: h };
            let isa = Isa::detect().unwrap_or(Isa::SCALAR);
            let mut total = LossSum::default();
            cross_entropy(
                isa,
                &mut scratch,
                &mut memory,
                &x,
                &rows,
                h,
                vocab,
                TableGradient { data: &mut head_gradient, tokens: None },
                &targets,
                &weights,
                scale,
                soft_cap,
                Some(&mut dx),
                &mut total,
            );
            let loss = total.total();
            let mut expected = 0.0;
            for token in 0..m {
                let dx: Vec<f64> = dx[token * h..][..h].iter().map(|x| x.to_f64()).collect();
                let target = match usize::try_from(targets[token]) {
                    Ok(target) if weights[token] != 0.0 => target,
                    _ => {
                        assert!(dx.iter().all(|&dx| dx == 0.0));
                        continue;
                    }
                };
                let logits: Vec<f64> = (0..vocab)
                    .map(|v| (0..h).map(|i| x[token * h + i].to_f64() * head[v * h + i].to_f64()).sum::<f64>())
                    .map(capped)
                    .collect();
                let max = logits.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
                expected += f64::from(weights[token]) * (max + sum.ln() - logits[target]);
                for v in 0..vocab {
                    let p = (logits[v] - max).exp() / sum - f64::from(u8::from(v == target));
                    for i in 0..h {
                        let factor = f64::from(scale * weights[token]) * slope(logits[v]);
                        let term = factor * p * x[token * h + i].to_f64();
                        let [total, size] = &mut expected_gradient[v * h + i];
                        (*total, *size) = (*total + term, *size + term.abs());
                    }
                }
                for i in 0..h {
                    let terms: Vec<f64> = (0..vocab)
                        .map(|v| {
                            let p = (logits[v] - max).exp() / sum - f64::from(u8::from(v == target));
                            f64::from(scale * weights[token]) * p * slope(logits[v]) * head[v * h + i].to_f64()
                        })
                        .collect();
                    let size: f64 = terms.iter().map(|x| x.abs()).sum();
                    // Probabilities and the result are rounded to bf16 once each, by up to 2⁻⁸.
                    let bound = size * 2.0 * 2f64.powi(-8) + 1e-6;
                    assert!((dx[i] - terms.iter().sum::<f64>()).abs() <= bound, "{m}, token {token}, {i}");
                }
            }
            assert!((loss - expected).abs() <= 1e-5 * expected, "{loss} {expected}");
            for (found, [total, size]) in head_gradient.iter().zip(&expected_gradient) {
                // Probabilities are rounded to bf16; it began with 0.5.
                let bound = size * 2f64.powi(-8) + 1e-6;
                assert!((f64::from(*found) - 0.5 - total).abs() <= bound, "{m}: {found} {total}");
            }
            let all = logits(isa, &mut scratch, &x, &rows, h, vocab);
            assert_eq!(all.len(), m * vocab);
        }
    }

    #[test]
    fn rounding_in_place_is_rounding() {
        for len in [2, 30, 32, 34, 100] {
            let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let mut bits: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
            round_in_place(&mut bits);
            let found: &[bf16] = bytemuck::cast_slice(&bits);
            assert!(found.iter().zip(&values).all(|(found, x)| *found == bf16::from_f32(*x)), "{len}");
        }
    }
}
