//! AdaLoRA: a term B · diag(E) · A is r triplets of a row of A, a value of E and a column of B. They are cut by their
//! importance, all terms together, until a budget is left (Zhang et al., "Adaptive Budget Allocation for
//! Parameter-Efficient Fine-Tuning", 2023), in the order and with the formulas of PEFT.
//!
//! Importance is of a step's end: |p · g| of each value p as the update left it and of the gradient g that it was
//! updated by, clipped. Its mean and what it is off that mean decay; their product is a value's score, and a triplet's
//! is that of its value of E and the means of those of its row and its column.

use super::param_id::ParamKind;
use qlora_kernels::rng::Stream;
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
/// Values of a task
const PART: usize = 4096;
/// Values or rows whose sum is taken on its own
const SUMMED: usize = 256;

/// Settings by which the ranks of a run come down
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaLora {
    /// Triplets that are left in the end: of each term, on the mean
    pub target_r: usize,
    /// Steps before which nothing is cut
    pub tinit: u64,
    /// Steps after the last cut
    pub tfinal: u64,
    /// Steps from one cut to the next
    pub delta_t: u64,
    /// Decay of the importance's mean
    pub beta1: f64,
    /// Decay of its distance to that mean
    pub beta2: f64,
    /// Factor of the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖ (Frobenius) over all A and B, which is added to the loss
    pub orth_reg_weight: f64,
    /// Steps of the run. None, before they are known: nothing is cut
    pub total_steps: Option<u64>,
}

/// Sequel of an update
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Importance is counted.
    Count,
    /// Importance is counted, and all but so many triplets are cut. They may come back.
    Cut(usize),
    /// All but so many triplets are cut, and stay so.
    Settle(usize),
    /// Triplets that were cut are cut again, as the update has changed them.
    Settled,
}

impl AdaLora {
    /// The factor of a term. It stays as the ranks come down.
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
            return if step == last { Phase::Settle(target) } else { Phase::Settled };
        }
        if step <= self.tinit || !step.is_multiple_of(self.delta_t) {
            return Phase::Count;
        }
        let left = 1.0 - (step - self.tinit) as f64 / (last - self.tinit) as f64;
        let (from, to) = (triplets as f64, target as f64);
        Phase::Cut(((from - to) * left.powf(3.0) + to) as usize)
    }
}

/// Values that A or B begins with.
pub fn initial(mut stream: Stream, len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        // Box and Muller's two normal numbers of two uniform ones
        let [u, v] = [stream.uniform(), stream.uniform()].map(f64::from);
        let (radius, (sin, cos)) = (DEVIATION * (-2.0 * (1.0 - u).ln()).sqrt(), (TAU * v).sin_cos());
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(len);
    values
}

/// Importance of a tensor's values. Empty before the first step, and once the ranks are settled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    pub mean: Vec<f32>,
    /// Mean distance of the importance of a step to `mean`
    pub uncertainty: Vec<f32>,
}

impl Importance {
    /// Counts a step's, in which `values` came of a gradient that was multiplied by `clip`.
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
    /// `[r]`: 1 for a triplet that is kept, 0 for one that is cut. Empty before the ranks are settled.
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

    /// Like [`values`](Self::values), to be changed
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

    /// Settles the ranks: importance is no longer counted.
    pub fn settle(&mut self, kept: Vec<f32>) {
        *self = Self { kept, ..Self::default() };
    }
}

/// The score up to which triplets are cut for `budget` of them to be left. None: no more are there.
pub fn threshold(mut scores: Vec<f32>, budget: usize) -> Option<f32> {
    let last = scores.len().checked_sub(budget)?.checked_sub(1)?;
    Some(*scores.select_nth_unstable_by(last, f32::total_cmp).1)
}

/// 1 for each triplet whose score is above the threshold, else 0.
pub fn kept(scores: &[f32], threshold: Option<f32>) -> Vec<f32> {
    let is_cut = |score: f32| threshold.is_some_and(|threshold| score <= threshold);
    scores.iter().map(|&score| if is_cut(score) { 0.0 } else { 1.0 }).collect()
}

/// Makes E ∘ A, which products read, of A `[r, K]`.
pub fn scale_rows(a: &mut [f32], e: &[f32]) {
    let k = a.len() / e.len();
    a.par_chunks_exact_mut(k).zip(e).for_each(|(row, e)| row.iter_mut().for_each(|x| *x *= e));
}

/// Makes the gradient of A, `[r, K]`, of that of E ∘ A. Returns the gradient of E.
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

/// In f32 over parts of a row, in an order that is always the same, and in f64 over these.
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
mod tests {
    use super::*;

    const SETTINGS: AdaLora = AdaLora {
        target_r: 2,
        tinit: 4,
        tfinal: 5,
        delta_t: 3,
        beta1: 0.8,
        beta2: 0.9,
        orth_reg_weight: 0.3,
        total_steps: Some(20),
    };

    fn random(len: usize, domain: u64) -> Vec<f32> {
        initial(Stream::new(3, domain), len).iter().map(|x| 20.0 * x).collect()
    }

    /// The budgets of `RankAllocator.budget_schedule` of PEFT 0.21.2 for 14 terms of rank 6.
    #[test]
    fn the_budget_falls_as_the_cube_of_what_is_left_of_its_steps() {
        let phases: Vec<Phase> = (1..=20).map(|step| SETTINGS.phase(step, 84, 14)).collect();
        let expected = |step| match step {
            6 => Phase::Cut(58),
            9 => Phase::Cut(37),
            12 => Phase::Cut(29),
            15 => Phase::Settle(28),
            16.. => Phase::Settled,
            _ => Phase::Count,
        };
        assert_eq!(phases, (1..=20).map(expected).collect::<Vec<_>>());
        let unknown = AdaLora { total_steps: None, ..SETTINGS };
        assert!((1..=20).all(|step| unknown.phase(step, 84, 14) == Phase::Count));
        // The last cut is that of the last step, and a multiple of `delta_t` or not.
        let to_the_end = AdaLora { tfinal: 0, tinit: 0, ..SETTINGS };
        assert_eq!(
            [18, 19, 20].map(|step| to_the_end.phase(step, 84, 14)),
            [Phase::Cut(28), Phase::Count, Phase::Settle(28)]
        );
    }

    #[test]
    fn importance_and_scores_are_those_of_their_formulas() {
        let mut importance = Importance::default();
        importance.count(&SETTINGS, &[2.0, -1.0], &[0.5, 4.0], 0.5);
        let close = |found: &[f32], expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            found
                .iter()
                .zip(expected)
                .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 1e-6 * b.abs(), "{a} {b}"));
        };
        close(&importance.mean, &[0.2 * 0.5, 0.2 * 2.0]);
        close(&importance.uncertainty, &[0.1 * 0.4, 0.1 * 1.6]);
        importance.count(&SETTINGS, &[1.0, 0.0], &[1.0, 9.0], 1.0);
        close(&importance.mean, &[0.8 * 0.1 + 0.2, 0.8 * 0.4]);
        close(&importance.uncertainty, &[0.9 * 0.04 + 0.1 * 0.72, 0.9 * 0.16 + 0.1 * 0.32]);
        // A has two rows of three values, B four rows of two: the product of mean and uncertainty is what is meant.
        let of = |mean: &[f32]| Importance { mean: mean.to_vec(), uncertainty: vec![2.0; mean.len()] };
        let triplets = Triplets {
            a: of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            b: of(&[1.0, 10.0, 1.0, 10.0, 1.0, 10.0, 5.0, 50.0]),
            e: of(&[0.5, 0.25]),
            kept: Vec::new(),
        };
        close(&triplets.scores(2), &[4.0 + 4.0 + 1.0, 10.0 + 40.0 + 0.5]);
    }

    #[test]
    fn all_but_the_budget_is_cut_and_what_is_equal_to_the_last_of_it() {
        let scores = vec![0.3, 0.1, 0.9, 0.2, 0.2];
        for (budget, expected) in [(1, Some(0.3)), (2, Some(0.2)), (3, Some(0.2)), (4, Some(0.1)), (5, None), (9, None)]
        {
            assert_eq!(threshold(scores.clone(), budget), expected, "{budget}");
        }
        assert_eq!(kept(&scores, Some(0.2)), [1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(kept(&scores, None), [1.0; 5]);
    }

    /// Against the change of Σ c · (E ∘ A) for constants c.
    #[test]
    fn a_gradient_is_split_by_the_product_rule() {
        let (k, e) = (300, [0.5, -2.0, 0.0]);
        let (a, c) = (random(3 * k, 1), random(3 * k, 2));
        let mut gradient = c.clone();
        let of_e = split_gradient(&a, &e, &mut gradient);
        let mut product = a.clone();
        scale_rows(&mut product, &e);
        for (row, e) in e.iter().enumerate() {
            let values = |of: &[f32]| of[row * k..][..k].to_vec();
            assert_eq!(values(&gradient), values(&c).iter().map(|x| x * e).collect::<Vec<_>>());
            assert_eq!(values(&product), values(&a).iter().map(|x| x * e).collect::<Vec<_>>());
            let expected: f64 = values(&a).iter().zip(values(&c)).map(|(a, c)| f64::from(*a) * f64::from(c)).sum();
            assert!((f64::from(of_e[row]) - expected).abs() < 1e-5 * expected.abs().max(1.0));
        }
    }

    /// ‖P·Pᵀ − I‖ of the rows of P
    fn off_orthogonal(rows: &[Vec<f64>]) -> f64 {
        let dots = rows.iter().enumerate().flat_map(|(i, a)| rows.iter().enumerate().map(move |(j, b)| (i == j, a, b)));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dots.map(|(same, a, b)| (dot(a, b) - f64::from(u8::from(same))).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn what_pulls_towards_orthogonality_is_the_gradient_of_the_norm() {
        let (r, k, weight) = (3, 530, 0.7);
        let values: Vec<f32> = random(r * k, 4).iter().map(|x| 0.1 * x).collect();
        let transposed: Vec<f32> = (0..k * r).map(|at| values[at % r * k + at / r]).collect();
        let (mut of_rows, mut of_columns) = (vec![1.0; r * k], vec![1.0; r * k]);
        add_orthogonal_rows(&values, r, weight, &mut of_rows);
        add_orthogonal_columns(&transposed, r, weight, &mut of_columns);
        let rows: Vec<Vec<f64>> = values.chunks(k).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
        for (row, column) in [(0, 0), (1, 257), (2, 529)] {
            let moved = |by: f64| {
                let mut rows = rows.clone();
                rows[row][column] += by;
                off_orthogonal(&rows)
            };
            let expected = 1.0 + weight * (moved(1e-5) - moved(-1e-5)) / 2e-5;
            for found in [of_rows[row * k + column], of_columns[column * r + row]] {
                assert!((f64::from(found) - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
        assert!(of_rows.iter().any(|g| (g - 1.0).abs() > 1e-2));
        // Where they are orthonormal there is nothing to pull.
        let mut none = vec![0.0; 4];
        add_orthogonal_rows(&[0.0, 1.0, 1.0, 0.0], 2, weight, &mut none);
        assert_eq!(none, [0.0; 4]);
    }

    #[test]
    fn what_a_and_b_begin_with_is_normal() {
        let values = initial(Stream::new(1, 2), 100_001);
        let mean =
            |of: &dyn Fn(f64) -> f64| values.iter().map(|&x| of(f64::from(x))).sum::<f64>() / values.len() as f64;
        assert!(mean(&|x| x).abs() < 3e-4 && (mean(&|x| x * x).sqrt() / DEVIATION - 1.0).abs() < 1e-2);
        // 4.55 % of a normal distribution are beyond two deviations.
        assert!((mean(&|x| f64::from(u8::from(x.abs() > 2.0 * DEVIATION))) - 0.0455).abs() < 3e-3);
    }
}
