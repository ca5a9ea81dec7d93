//! The output layer and the cross-entropy in one operation, so that no caller ever holds `[M, vocab]` logits.

use super::{Real, axpy, dot, soft_capped};

/// Σ over supervised tokens of `scale · weights[m] · (logsumexp(z) − z[target])`, z = x·Wᵀ, and its gradient, written
/// over `dx`. A token with a negative target or a weight of 0 is not supervised: it costs nothing and its gradient is
/// zero.
pub fn linear_cross_entropy<T: Real>(
    x: &[T],                  // [M, H]
    w: &[T],                  // [V, H]
    targets: &[i32],          // [M]
    weights: Option<&[T]>,    // [M]; none: 1 each
    scale: T,                 // 1 / supervised tokens of the whole optimizer step
    soft_cap: Option<f32>,    // logits z are cap·tanh(z/cap)
    mut dx: Option<&mut [T]>, // [M, H]
    h: usize,
) -> T {
    if let Some(dx) = dx.as_deref_mut() {
        dx.fill(T::ZERO);
    }
    let mut loss = T::ZERO;
    for (m, target, weight) in supervised(targets, weights, scale) {
        let token = Token::of(&x[m * h..(m + 1) * h], w, target, soft_cap);
        loss += weight * token.loss;
        if let Some(dx) = dx.as_deref_mut() {
            for (v, gradient) in token.gradients(weight) {
                axpy(gradient, &w[v * h..(v + 1) * h], &mut dx[m * h..(m + 1) * h]);
            }
        }
    }
    loss
}

/// `dW +=` the gradient of [`linear_cross_entropy`] in the output layer.
pub fn linear_cross_entropy_head<T: Real>(
    x: &[T],               // [M, H]
    w: &[T],               // [V, H]
    targets: &[i32],       // [M]
    weights: Option<&[T]>, // [M]; none: 1 each
    scale: T,
    soft_cap: Option<f32>,
    dw: &mut [T], // [V, H]
    h: usize,
) {
    for (m, target, weight) in supervised(targets, weights, scale) {
        let x = &x[m * h..(m + 1) * h];
        for (v, gradient) in Token::of(x, w, target, soft_cap).gradients(weight) {
            axpy(gradient, x, &mut dw[v * h..(v + 1) * h]);
        }
    }
}

/// The supervised tokens, each with its target and what its loss is multiplied by.
fn supervised<'a, T: Real>(
    targets: &'a [i32],
    weights: Option<&'a [T]>,
    scale: T,
) -> impl Iterator<Item = (usize, usize, T)> + 'a {
    let tokens = targets.iter().enumerate().filter(|(_, target)| **target >= 0);
    tokens.filter_map(move |(m, &target)| {
        let weight = weights.map_or(T::ONE, |weights| weights[m]);
        let factor = weights.map_or(scale, |weights| scale * weights[m]);
        (weight != T::ZERO).then_some((m, target as usize, factor))
    })
}

/// One token's logits, and its loss.
struct Token<T> {
    logits: Vec<T>,
    /// Derivatives of the soft cap at each logit
    slopes: Vec<T>,
    max: T,
    /// Σ e^(logit − max)
    sum: T,
    target: usize,
    loss: T,
}

impl<T: Real> Token<T> {
    fn of(x: &[T], w: &[T], target: usize, soft_cap: Option<f32>) -> Self {
        let capped = w.chunks_exact(x.len()).map(|w| soft_capped(dot(x, w), soft_cap));
        let (logits, slopes): (Vec<T>, Vec<T>) = capped.unzip();
        let max = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
        let mut sum = T::ZERO;
        logits.iter().for_each(|&z| sum += (z - max).exp());
        let loss = max + sum.ln() - logits[target];
        Self { logits, slopes, max, sum, target, loss }
    }

    /// The number of each logit, and `weight` times the gradient of the loss in x·wᵀ.
    fn gradients(&self, weight: T) -> impl Iterator<Item = (usize, T)> {
        self.logits.iter().enumerate().map(move |(v, &z)| {
            let p = (z - self.max).exp() / self.sum - if v == self.target { T::ONE } else { T::ZERO };
            (v, weight * p * self.slopes[v])
        })
    }
}
