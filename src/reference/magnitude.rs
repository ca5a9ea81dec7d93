//! Magnitudes of a linear layer's outputs (DoRA, Liu et al. 2024): `Y = m / ‖W + scale·B·A‖ ∘ (Z − bias) + bias`, Z
//! being the layer's output with its low-rank term. No gradient goes through the norms, which are those of rows.

use super::{LoraTerm, Real, axpy, dot};

/// ‖W + scale·B·A‖ of each row, from the whole matrix.
pub fn magnitude_norms<T: Real>(
    w: &[T], // [N, K]
    lora: &LoraTerm<T>,
    norms: &mut [T], // [N]
    k: usize,
) {
    for (row, norm) in norms.iter_mut().enumerate() {
        let mut sum = w[row * k..(row + 1) * k].to_vec();
        for j in 0..lora.r {
            axpy(lora.scale * lora.b[row * lora.r + j], &lora.a[j * k..(j + 1) * k], &mut sum);
        }
        *norm = dot(&sum, &sum).sqrt();
    }
}

/// m / norm; a row of zeros stays one.
fn factor<T: Real>(m: T, norm: T) -> T {
    if norm == T::ZERO { T::ZERO } else { m / norm }
}

/// `Y = m / norms ∘ (Y − bias) + bias`
pub fn magnitude<T: Real>(
    m: &[T],            // [N]
    norms: &[T],        // [N]
    bias: Option<&[T]>, // [N]
    y: &mut [T],        // [M, N]
) {
    for y in y.chunks_exact_mut(m.len()) {
        for (i, y) in y.iter_mut().enumerate() {
            let bias = bias.map_or(T::ZERO, |bias| bias[i]);
            *y = factor(m[i], norms[i]) * (*y - bias) + bias;
        }
    }
}

/// `dm += Σ dY ∘ (Z − bias) / norms`, then `Z = m / norms ∘ dY`, the gradient of the output before its magnitudes.
pub fn magnitude_backward<T: Real>(
    dy: &[T],           // [M, N]
    m: &[T],            // [N]
    norms: &[T],        // [N]
    bias: Option<&[T]>, // [N]
    z: &mut [T],        // [M, N]
    dm: &mut [T],       // [N]
) {
    for (z, dy) in z.chunks_exact_mut(m.len()).zip(dy.chunks_exact(m.len())) {
        for i in 0..m.len() {
            let bias = bias.map_or(T::ZERO, |bias| bias[i]);
            dm[i] += factor(dy[i] * (z[i] - bias), norms[i]);
            z[i] = factor(m[i], norms[i]) * dy[i];
        }
    }
}
