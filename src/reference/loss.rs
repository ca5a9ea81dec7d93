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
    for (m, &target) in targets.iter().enumerate().filter(|(_, target)| **target >= 0) {
        let weight = weights.map_or(scale, |weights| scale * weights[m]);
        if weights.is_some_and(|weights| weights[m] == T::ZERO) {
            continue;
        }
        let x = &x[m * h..(m + 1) * h];
        let capped = w.chunks_exact(h).map(|w| soft_capped(dot(x, w), soft_cap));
        let (logits, slopes): (Vec<T>, Vec<T>) = capped.unzip();
        let max = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
        let mut sum = T::ZERO;
        logits.iter().for_each(|&z| sum += (z - max).exp());
        loss += weight * (max + sum.ln() - logits[target as usize]);
        if let Some(dx) = dx.as_deref_mut() {
            for (v, &z) in logits.iter().enumerate() {
                let p = (z - max).exp() / sum - if v == target as usize { T::ONE } else { T::ZERO };
                axpy(weight * p * slopes[v], &w[v * h..(v + 1) * h], &mut dx[m * h..(m + 1) * h]);
            }
        }
    }
    loss
}
