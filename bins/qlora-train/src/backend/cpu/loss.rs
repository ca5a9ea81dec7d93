//! Output layer and cross-entropy over the supervised tokens only, a chunk of tokens at a time.

use super::elementwise::{exp_shifted, largest, multiply_row};
use super::gemm::TOKENS;
use super::gemm::pack::{Scaled, Stored};
use super::gemm::panels::multiply;
use super::gemm::product::{Left, Product, Right};
use super::soft_cap::{cap_values, slopes_of_capped, times};
use super::table::TableGradient;
use super::table_on_disk::ROWS;
use super::workspace::Workspace;
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose logits exist at one time.
pub const CHUNK: usize = 256;
/// Rows of the output layer whose part of the gradient is computed together: logits of a chunk that the last-level
/// cache holds.
const VOCABULARY: usize = 4096;

// A part of the output layer begins where such a part of the gradient does.
const _: () = assert!(ROWS.is_multiple_of(VOCABULARY));

/// Hands over the parts of the output layer in order, each with the rows that it has.
pub type EachPart<'a> = dyn Fn(&mut dyn FnMut(Range<usize>, &dyn Stored)) -> Result<()> + 'a;

/// The loss of the supervised tokens of a batch so far, summed over [`CHUNK`] of them at a time: the same bits however
/// the batch is cut.
#[derive(Clone, Debug, Default)]
pub struct LossSum {
    chunks: f64,
    chunk: f64,
    /// Each loss so far
    of_tokens: Vec<f64>,
}

impl LossSum {
    pub fn add(&mut self, losses: &[f64]) {
        for &loss in losses {
            self.chunk += loss;
            self.of_tokens.push(loss);
            if self.of_tokens.len().is_multiple_of(CHUNK) {
                self.chunks += std::mem::take(&mut self.chunk);
            }
        }
    }

    /// The losses of the supervised tokens, in order.
    pub fn of_tokens(&self) -> &[f64] {
        &self.of_tokens
    }

    pub fn total(&self) -> f64 {
        self.chunks + self.chunk
    }
}

/// Adds the weighted losses to `sum`, writes `scale` times their gradient to `dx`, and adds it to that of the output
/// layer.
pub fn linear_cross_entropy(
    workspace: &mut Workspace,
    x: &[f32], // [M, H]
    head: &EachPart,
    [vocab, h]: [usize; 2],
    to: TableGradient, // [vocab, H], [tokens, H], or empty
    targets: &[i32],   // [M]
    weights: &[f32],   // [M], or empty: 1 each
    scale: f32,
    soft_cap: Option<f32>,
    mut dx: Option<&mut [f32]>, // [M, H]
    sum: &mut LossSum,
) -> Result<()> {
    if let Some(dx) = dx.as_deref_mut() {
        dx.fill(0.0);
    }
    let weight_of = |token: usize| weights.get(token).copied().unwrap_or(1.0);
    let supervised: Vec<usize> = (0..targets.len()).filter(|&t| targets[t] >= 0 && weight_of(t) != 0.0).collect();
    for tokens in supervised.chunks(CHUNK) {
        let half = workspace.gathered.len() / 2;
        let (gathered, gradient) = workspace.gathered.split_at_mut(half);
        let gathered = &mut gathered[..tokens.len() * h];
        for (to, &token) in gathered.chunks_exact_mut(h).zip(tokens) {
            to.copy_from_slice(&x[token * h..(token + 1) * h]);
        }
        let logits = &mut workspace.logits[..tokens.len() * vocab];
        project(&mut workspace.panels, gathered, head, [vocab, h], logits)?;
        // Logits become scale·weight·(softmax − onehot); the loss of each token is taken on the way.
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(vocab)
            .zip(tokens)
            .map(|(logits, &token)| {
                let weight = scale * weight_of(token);
                f64::from(weight_of(token)) * to_gradients(logits, targets[token] as usize, weight, soft_cap)
            })
            .collect();
        sum.add(&losses);
        if !to.data.is_empty() {
            let rows = Scaled { data: gathered, stride: h, factor: 1.0 };
            let (left, count) = match to.tokens {
                None => (Left::Columns { data: logits, stride: vocab }, vocab),
                Some(own) => {
                    let picked = &mut workspace.picked[..tokens.len() * own.len()];
                    for (picked, logits) in picked.chunks_exact_mut(own.len()).zip(logits.chunks_exact(vocab)) {
                        picked.iter_mut().zip(own).for_each(|(to, &token)| *to = logits[token as usize]);
                    }
                    (Left::Columns { data: picked, stride: own.len() }, own.len())
                }
            };
            let product = Product { left, k: tokens.len(), right: Right::upright(&rows), chunk: TOKENS };
            multiply(&mut workspace.panels, to.data, h, count, 0..h, true, &[product]);
        }
        let Some(dx) = dx.as_deref_mut() else { continue };
        let gradient = &mut gradient[..tokens.len() * h];
        let (panels, logits) = (&mut workspace.panels, &*logits);
        head(&mut |rows, matrix| {
            for first in rows.clone().step_by(VOCABULARY) {
                let right = Right::Upright { matrix, first: first - rows.start };
                let left = Left::Rows { data: &logits[first..], stride: vocab };
                let product = Product::new(left, VOCABULARY.min(rows.end - first), right);
                multiply(panels, gradient, h, tokens.len(), 0..h, first > 0, &[product]);
            }
        })?;
        for (from, &token) in gradient.chunks_exact(h).zip(tokens) {
            dx[token * h..(token + 1) * h].copy_from_slice(from);
        }
    }
    Ok(())
}

/// Logits of a token whose parts are summed at a time.
const PART: usize = 512;

/// Turns the logits of a token into their gradients, `weight` times softmax − onehot, and returns its loss. With a
/// soft cap both are of the capped logits, and the gradients have its slopes.
pub fn to_gradients(logits: &mut [f32], target: usize, weight: f32, soft_cap: Option<f32>) -> f64 {
    if let Some(cap) = soft_cap {
        cap_values(cap, logits);
    }
    let target_logit = logits[target];
    let max = largest(logits, f32::NEG_INFINITY);
    let (sum, slope) = match soft_cap {
        None => (logits.chunks_mut(PART).map(|part| f64::from(exp_shifted(part, max))).sum::<f64>(), 1.0),
        Some(cap) => {
            let mut slopes = [0.0; PART];
            slopes_of_capped(cap, &[target_logit], &mut slopes);
            let slope = slopes[0];
            let sum = logits.chunks_mut(PART).map(|part| {
                slopes_of_capped(cap, part, &mut slopes);
                let sum = f64::from(exp_shifted(part, max));
                times(part, &slopes);
                sum
            });
            (sum.sum(), slope)
        }
    };
    let factor = (f64::from(weight) / sum) as f32;
    multiply_row(logits, factor);
    logits[target] -= weight * slope;
    f64::from(max) + sum.ln() - f64::from(target_logit)
}

/// Logits `[rows, vocab]` without a soft cap.
pub fn project(
    panels: &mut [f32],
    x: &[f32],
    head: &EachPart,
    [vocab, h]: [usize; 2],
    logits: &mut [f32],
) -> Result<()> {
    head(&mut |rows, matrix| {
        let product = Product::new(Left::Rows { data: x, stride: h }, h, Right::Turned(matrix));
        multiply(panels, logits, vocab, x.len() / h, rows, false, &[product]);
    })
}
