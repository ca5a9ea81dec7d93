//! RMSNorm (Zhang and Sennrich 2019): `y = w ∘ x / √(mean(x²) + eps)`.

use super::{Real, dot};

fn inverse_rms<T: Real>(x: &[T], eps: T) -> T {
    T::ONE / (dot(x, x) / T::of(x.len() as f64) + eps).sqrt()
}

pub fn rms_norm<T: Real>(
    x: &[T],      // [M, H]
    weight: &[T], // [H]
    eps: T,
    y: &mut [T], // [M, H]
) {
    let h = weight.len();
    for (x, y) in x.chunks_exact(h).zip(y.chunks_exact_mut(h)) {
        let inverse = inverse_rms(x, eps);
        for i in 0..h {
            y[i] = weight[i] * (x[i] * inverse);
        }
    }
}

/// `dX += ∂y/∂x · dY`. With g = w ∘ dY and ρ = 1/rms: `dx = ρ·g − x·ρ³·(g·x)/H`.
pub fn rms_norm_backward<T: Real>(
    dy: &[T],     // [M, H]
    x: &[T],      // [M, H]
    weight: &[T], // [H]
    eps: T,
    dx: &mut [T], // [M, H]
) {
    let h = weight.len();
    for ((dy, x), dx) in dy.chunks_exact(h).zip(x.chunks_exact(h)).zip(dx.chunks_exact_mut(h)) {
        let inverse = inverse_rms(x, eps);
        let mut g_dot_x = T::ZERO;
        for i in 0..h {
            g_dot_x += weight[i] * dy[i] * x[i];
        }
        let along_x = inverse * inverse * inverse * g_dot_x / T::of(h as f64);
        for i in 0..h {
            dx[i] += inverse * weight[i] * dy[i] - along_x * x[i];
        }
    }
}
