//! Rows of a tile of scores of attention, all in one function: a call for each row would take as long as its work.
//!
//! Scores and gradients are `[rows, WIDTH]`, and so is what becomes of them in bf16. `seen` is, for every row, the
//! columns that count; the others become zero.

use super::pairs::WIDTH;
use super::rows::round;
use crate::backend::cpu::elementwise::{LANES, exp, exp_of_differences, larger_of, scale_all};
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::soft_cap::{capped, slope_of_capped};
use half::bf16;
use std::ops::Range;

/// A running softmax of queries, an entry for each.
pub struct Softmax<'a> {
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// Factors of what was summed before
    pub corrections: &'a mut [f32],
}

vectorized! {
    /// From scores to exponentials `p` of `scale · score`, capped, below the largest so far.
    pub fn softmax_rows<'a>(
        scores: &'a mut [f32],
        seen: &'a [Range<usize>],
        scale: f32,
        cap: Option<f32>,
        running: Softmax<'a>,
        p: &'a mut [bf16],
    ) {
        let Softmax { max, sum, corrections } = running;
        let rows = scores.as_chunks_mut::<WIDTH>().0.iter_mut().zip(p.as_chunks_mut::<WIDTH>().0).zip(seen);
        for (row, ((scores, p), seen)) in rows.enumerate() {
            corrections[row] = 1.0;
            if seen.is_empty() {
                p.fill(bf16::ZERO);
                continue;
            }
            // Whole vectors where a row begins with one: what is beyond its end adds exponentials of 0.
            let whole = seen.start == 0 && cap.is_none();
            let end = if whole { seen.end.next_multiple_of(LANES) } else { seen.end };
            scores[seen.end..end].fill(f32::NEG_INFINITY);
            let counted = &mut scores[seen.start..end];
            scale_all(counted, scale);
            if let Some(cap) = cap {
                counted.iter_mut().for_each(|x| *x = capped(cap, *x));
            }
            let new_max = larger_of(counted, max[row]);
            // e^0 and e^−∞ need no function.
            corrections[row] = match max[row] {
                before if before == new_max => 1.0,
                f32::NEG_INFINITY => 0.0,
                before => (before - new_max).exp(),
            };
            max[row] = new_max;
            sum[row] = sum[row] * corrections[row] + exp_of_differences(counted, new_max);
            scores[..seen.start].fill(0.0);
            scores[end..].fill(0.0);
            for (p, score) in p.iter_mut().zip(scores) {
                *p = round(*score);
            }
        }
    }
}

vectorized! {
    /// Multiplies every row of sums, `[parts, rows of a tile, WIDTH]`, by its correction.
    pub fn correct_rows<'a>(sums: &'a mut [f32], tile: usize, corrections: &'a [f32]) {
        for part in sums.chunks_mut(tile * WIDTH) {
            for (sums, correction) in part.as_chunks_mut::<WIDTH>().0.iter_mut().zip(corrections) {
                if *correction != 1.0 {
                    sums.iter_mut().for_each(|sum| *sum *= correction);
                }
            }
        }
    }
}

/// Log-sum-exps of queries and rowsum(dO ∘ O).
#[derive(Clone, Copy)]
pub struct OfQueries<'a> {
    pub lse: &'a [f32],
    pub delta: &'a [f32],
}

/// From a score and the gradient of its probability to the probability and the gradient of the score.
#[inline(always)]
fn gradient(score: f32, gradient: f32, lse: f32, delta: f32, scale: f32, cap: Option<f32>) -> (f32, f32) {
    let scaled = score * scale;
    match cap {
        None => {
            let p = exp(scaled - lse);
            (p, scale * p * (gradient - delta))
        }
        Some(cap) => {
            let score = capped(cap, scaled);
            let p = exp(score - lse);
            (p, scale * p * (gradient - delta) * slope_of_capped(cap, score))
        }
    }
}

vectorized! {
    /// `ds`, gradients of scores, whose rows are queries. `gradients` are those of probabilities and are used up.
    pub fn query_gradient_rows<'a>(
        scores: &'a [f32],
        gradients: &'a mut [f32],
        seen: &'a [Range<usize>],
        scale: f32,
        cap: Option<f32>,
        queries: OfQueries<'a>,
        ds: &'a mut [bf16],
    ) {
        let rows = scores.as_chunks::<WIDTH>().0.iter().zip(gradients.as_chunks_mut::<WIDTH>().0);
        let rows = rows.zip(ds.as_chunks_mut::<WIDTH>().0).zip(seen.iter().zip(queries.lse.iter().zip(queries.delta)));
        for (((scores, gradients), ds), (seen, (&lse, &delta))) in rows {
            for (score, ds) in scores.iter().zip(gradients.iter_mut()) {
                (_, *ds) = gradient(*score, *ds, lse, delta, scale, cap);
            }
            gradients[..seen.start].fill(0.0);
            gradients[seen.end..].fill(0.0);
            for (ds, gradient) in ds.iter_mut().zip(gradients) {
                *ds = round(*gradient);
            }
        }
    }
}

vectorized! {
    /// Probabilities `p` and gradients of scores `ds`, whose columns are queries. `scores` and `gradients`, of
    /// probabilities, are used up.
    pub fn key_gradient_rows<'a>(
        scores: &'a mut [f32],
        gradients: &'a mut [f32],
        seen: &'a [Range<usize>],
        scale: f32,
        cap: Option<f32>,
        queries: OfQueries<'a>,
        p: &'a mut [bf16],
        ds: &'a mut [bf16],
    ) {
        let rows = scores.as_chunks_mut::<WIDTH>().0.iter_mut().zip(gradients.as_chunks_mut::<WIDTH>().0);
        let rounded = p.as_chunks_mut::<WIDTH>().0.iter_mut().zip(ds.as_chunks_mut::<WIDTH>().0);
        for (((scores, gradients), (p, ds)), seen) in rows.zip(rounded).zip(seen) {
            let queries = queries.lse.iter().zip(queries.delta);
            for ((score, ds), (&lse, &delta)) in scores.iter_mut().zip(gradients.iter_mut()).zip(queries) {
                (*score, *ds) = gradient(*score, *ds, lse, delta, scale, cap);
            }
            for values in [&mut *scores, &mut *gradients] {
                values[..seen.start].fill(0.0);
                values[seen.end..].fill(0.0);
            }
            for (((p, ds), score), gradient) in p.iter_mut().zip(ds).zip(scores).zip(gradients) {
                (*p, *ds) = (round(*score), round(*gradient));
            }
        }
    }
}
