//! AdaLoRA: a term B · diag(E) · A is r triplets of a row of A, a value of E and a column of B. They are pruned by
//! their importance, all terms together, down to a budget (Zhang et al., "Adaptive Budget Allocation for
//! Parameter-Efficient Fine-Tuning", 2023), in the order and with the formulas of PEFT.
//!
//! Importance is computed after each step: |p · g| of each value p after the update and its clipped gradient g. The
//! score of a value is the product of two moving averages: of its importance, and of the importance's deviation from
//! that average. The score of a triplet is the score of its value of E plus the mean scores of its row and its column.

use super::param_id::ParamKind;
use qlora_kernels::rng::RngStream;
use rayon::prelude::*;
use std::f64::consts::TAU;

/// Added to the rank that alpha is divided by.
const RANK_EPSILON: f64 = 1e-5;
/// Standard deviation of A and B at the start, where E is zero.
const DEVIATION: f64 = 0.02;
/// Names of the values of [`Triplets`], for a checkpoint
const MEAN: &str = "importance";
const UNCERTAINTY: &str = "uncertainty";
const KEPT: &str = "kept";
/// Values per task
const PART: usize = 4096;
/// Values or rows whose sum is taken on its own
const SUMMED: usize = 256;

/// Settings for pruning the ranks of a run
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaLora {
    /// Triplets of a term that are left in the end, on average
    pub target_r: usize,
    /// Steps before which nothing is cut
    pub tinit: u64,
    /// Steps after the last cut
    pub tfinal: u64,
    /// Steps from one cut to the next
    pub delta_t: u64,
    /// Decay of the moving average of importance
    pub beta1: f64,
    /// Decay of the moving average of its deviation
    pub beta2: f64,
    /// Factor of the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ (Frobenius) over all A and B, which is added to the loss
    pub orth_reg_weight: f64,
    /// Steps of the run. None, before it is known: nothing is cut
    pub total_steps: Option<u64>,
}

/// Sequel of an update
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Importance is counted.
    Count,
    /// Importance is counted, and all but this many triplets are cut. They may return later.
    Cut(usize),
    /// All but this many triplets are cut for good.
    Finalize(usize),
    /// Triplets that were cut are cut again, as the update has changed them.
    Final,
}

impl AdaLora {
    /// The factor of a term. It stays the same as ranks are pruned.
    pub fn scale(alpha: f64, r: usize) -> f64 {
        alpha / (r as f64 + RANK_EPSILON)
    }

    /// The factor by which B is multiplied where the scale is written as alpha / r.
    pub fn scale_over_lora(r: usize) -> f64 {
        r as f64 / (r as f64 + RANK_EPSILON)
    }

    /// The step of the last cut.
    pub fn last_cut(&self) -> Option<u64> {
        self.total_steps.map(|total| total.saturating_sub(self.tfinal))
    }

    /// Sequel of the update of `step`, from 1 on, in a model of `terms` terms that began with `triplets`
    pub fn phase(&self, step: u64, triplets: usize, terms: usize) -> Phase {
        let (target, Some(last)) = (self.target_r * terms, self.last_cut()) else { return Phase::Count };
        if step >= last {
            return if step == last { Phase::Finalize(target) } else { Phase::Final };
        }
        if step <= self.tinit || !step.is_multiple_of(self.delta_t) {
            return Phase::Count;
        }
        let left = 1.0 - (step - self.tinit) as f64 / (last - self.tinit) as f64;
        let (from, to) = (triplets as f64, target as f64);
        Phase::Cut(((from - to) * left.powf(3.0) + to) as usize)
    }
}

/// Initial values of A or B.
pub fn initial(mut stream: RngStream, len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // Box-Muller transform: two normal numbers from two uniform ones
        let [u, v] = [stream.uniform(), stream.uniform()].map(f64::from);
        let (radius, (sin, cos)) = (DEVIATION * (-2.0 * (1.0 - u).ln()).sqrt(), (TAU * v).sin_cos());
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(len);
    values
}

/// Importance of a tensor's values. Empty before the first step, and once the ranks are final.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    pub mean: Vec<f32>,
    /// Mean distance of the importance of a step to `mean`
    pub uncertainty: Vec<f32>,
}

impl Importance {
    /// Updates the importance with a step's `values` and their gradient, which was multiplied by `clip`.
    pub fn count(&mut self, settings: &AdaLora, values: &[f32], gradient: &[f32], clip: f32) {
        self.mean.resize(values.len(), 0.0);
        self.uncertainty.resize(values.len(), 0.0);
        let shares = |beta: f64| (beta as f32, (1.0 - beta) as f32);
        let ((keep1, take1), (keep2, take2)) = (shares(settings.beta1), shares(settings.beta2));
        let state = self.mean.par_chunks_mut(PART).zip(self.uncertainty.par_chunks_mut(PART));
        let step = values.par_chunks(PART).zip(gradient.par_chunks(PART));
        state.zip(step).for_each(|((means, uncertainties), (values, gradient))| {
            for (((mean, uncertainty), x), g) in means.iter_mut().zip(uncertainties).zip(values).zip(gradient) {
                let importance = (x * (clip * g)).abs();
                *mean = keep1 * *mean + take1 * importance;
                *uncertainty = keep2 * *uncertainty + take2 * (importance - *mean).abs();
            }
        });
    }

    fn scores(&self) -> impl Iterator<Item = f64> {
        self.mean.iter().zip(&self.uncertainty).map(|(mean, uncertainty)| f64::from(mean * uncertainty))
    }
}

/// Triplets of one term, with A `[r, K]` and B `[N, r]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Triplets {
    pub a: Importance,
    pub b: Importance,
    pub e: Importance,
    /// `[r]`: 1 for a triplet that is kept, 0 for one that is cut. Empty before the ranks are final.
    pub kept: Vec<f32>,
}

impl Triplets {
    /// The score of each triplet.
    pub fn scores(&self, r: usize) -> Vec<f32> {
        let (mut of_a, mut of_b) = (vec![0.0; r], vec![0.0; r]);
        let (k, n) = (self.a.mean.len() / r, self.b.mean.len() / r);
        self.a.scores().enumerate().for_each(|(at, score)| of_a[at / k] += score);
        self.b.scores().enumerate().for_each(|(at, score)| of_b[at % r] += score);
        let means = of_a.iter().zip(&of_b).map(|(a, b)| a / k.max(1) as f64 + b / n.max(1) as f64);
        let of_e = self.e.scores().chain(std::iter::repeat(0.0));
        means.zip(of_e).map(|(mean, e)| (mean + e) as f32).collect()
    }

    /// All values, with the tensor that they are of and a name
    pub fn values(&self) -> [(ParamKind, &'static str, &[f32]); 7] {
        let Self { a, b, e, kept } = self;
        [
            (ParamKind::LoraA, MEAN, &a.mean),
            (ParamKind::LoraA, UNCERTAINTY, &a.uncertainty),
            (ParamKind::LoraB, MEAN, &b.mean),
            (ParamKind::LoraB, UNCERTAINTY, &b.uncertainty),
            (ParamKind::LoraE, MEAN, &e.mean),
            (ParamKind::LoraE, UNCERTAINTY, &e.uncertainty),
            (ParamKind::LoraE, KEPT, kept),
        ]
    }

    /// [`values`](Self::values), mutable
    pub fn values_mut(&mut self) -> [(ParamKind, &'static str, &mut Vec<f32>); 7] {
        let Self { a, b, e, kept } = self;
        [
            (ParamKind::LoraA, MEAN, &mut a.mean),
            (ParamKind::LoraA, UNCERTAINTY, &mut a.uncertainty),
            (ParamKind::LoraB, MEAN, &mut b.mean),
            (ParamKind::LoraB, UNCERTAINTY, &mut b.uncertainty),
            (ParamKind::LoraE, MEAN, &mut e.mean),
            (ParamKind::LoraE, UNCERTAINTY, &mut e.uncertainty),
            (ParamKind::LoraE, KEPT, kept),
        ]
    }

    /// Makes the ranks final: importance is no longer counted.
    pub fn finalize(&mut self, kept: Vec<f32>) {
        *self = Self { kept, ..Self::default() };
    }
}

/// The score up to which triplets are cut so that `budget` of them are left. None: there are no more than that.
pub fn threshold(mut scores: Vec<f32>, budget: usize) -> Option<f32> {
    let last = scores.len().checked_sub(budget)?.checked_sub(1)?;
    Some(*scores.select_nth_unstable_by(last, f32::total_cmp).1)
}

/// 1 for each triplet whose score is above the threshold, otherwise 0.
pub fn kept(scores: &[f32], threshold: Option<f32>) -> Vec<f32> {
    let is_cut = |score: f32| threshold.is_some_and(|threshold| score <= threshold);
    scores.iter().map(|&score| if is_cut(score) { 0.0 } else { 1.0 }).collect()
}

/// Turns A `[r, K]` into E ∘ A, which products read.
pub fn scale_rows(a: &mut [f32], e: &[f32]) {
    let k = a.len() / e.len();
    a.par_chunks_exact_mut(k).zip(e).for_each(|(row, e)| row.iter_mut().for_each(|x| *x *= e));
}

/// Turns the gradient of E ∘ A into that of A, `[r, K]`. Returns the gradient of E.
pub fn split_gradient(a: &[f32], e: &[f32], gradient: &mut [f32]) -> Vec<f32> {
    let k = a.len() / e.len();
    let rows = a.par_chunks_exact(k).zip(gradient.par_chunks_exact_mut(k)).zip(e);
    rows.map(|((a, gradient), e)| {
        let of_e = dot(a, gradient) as f32;
        gradient.iter_mut().for_each(|g| *g *= e);
        of_e
    })
    .collect()
}

/// Adds the gradient of weight · ‖A·Aᵀ − I‖ to that of A, `[r, K]`.
pub fn add_orthogonal_rows(a: &[f32], r: usize, weight: f64, gradient: &mut [f32]) {
    let k = a.len() / r;
    let rows: Vec<&[f32]> = a.chunks_exact(k).collect();
    let gram = (0..r * r).into_par_iter().map(|at| dot(rows[at / r], rows[at % r])).collect();
    let Some(factors) = factors(gram, r, weight) else { return };
    gradient.par_chunks_exact_mut(k).zip(factors.par_chunks_exact(r)).for_each(|(gradient, factors)| {
        for (row, factor) in rows.iter().zip(factors) {
            gradient.iter_mut().zip(*row).for_each(|(g, x)| *g += factor * x);
        }
    });
}

/// Adds the gradient of weight · ‖Bᵀ·B − I‖ to that of B, `[N, r]`.
pub fn add_orthogonal_columns(b: &[f32], r: usize, weight: f64, gradient: &mut [f32]) {
    let parts: Vec<Vec<f32>> = b
        .par_chunks(SUMMED * r)
        .map(|rows| {
            let mut gram = vec![0.0f32; r * r];
            for row in rows.chunks_exact(r) {
                for (gram, x) in gram.chunks_exact_mut(r).zip(row) {
                    gram.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
                }
            }
            gram
        })
        .collect();
    let mut gram = vec![0.0f64; r * r];
    for part in &parts {
        gram.iter_mut().zip(part).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let Some(factors) = factors(gram, r, weight) else { return };
    let rows = gradient.par_chunks_exact_mut(r).zip(b.par_chunks_exact(r)).with_min_len(SUMMED);
    rows.for_each(|(gradient, row)| {
        for (factors, x) in factors.chunks_exact(r).zip(row) {
            gradient.iter_mut().zip(factors).for_each(|(g, factor)| *g += factor * x);
        }
    });
}

/// 2 · weight · (G − I) / ‖G − I‖ of a Gram matrix G `[r, r]`. None: it is I, and the gradient 0, as PyTorch has it.
fn factors(mut gram: Vec<f64>, r: usize, weight: f64) -> Option<Vec<f32>> {
    gram.iter_mut().step_by(r + 1).for_each(|x| *x -= 1.0);
    let norm = gram.iter().map(|x| x * x).sum::<f64>().sqrt();
    (norm != 0.0).then(|| gram.iter().map(|x| (2.0 * weight * x / norm) as f32).collect())
}

/// A dot product: in f32 over parts of a row, in a fixed order, and in f64 over these parts.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let part = |(a, b): (&[f32], &[f32])| {
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            lanes.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
        }
        lanes.into_iter().map(f64::from).sum::<f64>()
    };
    a.chunks(SUMMED).zip(b.chunks(SUMMED)).map(part).sum()
}

#[cfg(test)]
mod tests;
