//! RMSNorm (Zhang and Sennrich 2019): `y = w ∘ x / √(mean(x²) + eps)`.

use super::{Real, dot};
use crate::shape::AttentionShape;

fn inverse_rms<T: Real>(x: &[T], eps: T) -> T {
    T::ONE / (dot(x, x) / T::of(x.len() as f64) + eps).sqrt()
}

/// `y = w ∘ x / √(mean(x²) + eps)` of every row.
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

/// `dw += Σ dY ∘ x / rms(x)`, the gradient of the weight.
pub fn rms_norm_gradient<T: Real>(
    dy: &[T], // [M, H]
    x: &[T],  // [M, H]
    eps: T,
    dweight: &mut [T], // [H]
) {
    let h = dweight.len();
    for (dy, x) in dy.chunks_exact(h).zip(x.chunks_exact(h)) {
        let inverse = inverse_rms(x, eps);
        for i in 0..h {
            dweight[i] += dy[i] * (x[i] * inverse);
        }
    }
}

/// The columns of each part of q and k in rows q‖k‖v that is normalized on its own, as wide as its weight, and whether
/// it is one of k.
fn parts(shape: AttentionShape, widths: [usize; 2]) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    let (q, k) = (shape.out(), shape.kv_heads * shape.head_dim);
    let of = move |start: usize, len: usize, width: usize, k: usize| {
        (start..start + len).step_by(width).map(move |at| (at..at + width, k))
    };
    of(0, q, widths[0], 0).chain(of(q, k, widths[1], 1))
}

/// [`rms_norm`] of each head of q and k on its own, or of all of q and all of k, as the weights are wide; v is copied.
pub fn head_norm<T: Real>(
    x: &[T],            // [M, (H + 2·Hkv)·D]: q‖k‖v
    weights: [&[T]; 2], // [D] of q, [D] of k; or [H·D], [Hkv·D]
    eps: T,
    shape: AttentionShape,
    y: &mut [T], // [M, (H + 2·Hkv)·D]
) {
    y.copy_from_slice(x);
    for (x, y) in x.chunks_exact(shape.qkv()).zip(y.chunks_exact_mut(shape.qkv())) {
        for (part, of) in parts(shape, weights.map(<[T]>::len)) {
            rms_norm(&x[part.clone()], weights[of], eps, &mut y[part]);
        }
    }
}

/// `dX += ∂y/∂x · dY`
pub fn head_norm_backward<T: Real>(
    dy: &[T],           // [M, (H + 2·Hkv)·D]
    x: &[T],            // [M, (H + 2·Hkv)·D]
    weights: [&[T]; 2], // [D] of q, [D] of k; or [H·D], [Hkv·D]
    eps: T,
    shape: AttentionShape,
    dx: &mut [T], // [M, (H + 2·Hkv)·D]
) {
    let (width, values) = (shape.qkv(), (shape.heads + shape.kv_heads) * shape.head_dim);
    for ((dy, x), dx) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        for (part, of) in parts(shape, weights.map(<[T]>::len)) {
            rms_norm_backward(&dy[part.clone()], &x[part.clone()], weights[of], eps, &mut dx[part]);
        }
        for (dx, &dy) in dx[values..].iter_mut().zip(&dy[values..]) {
            *dx += dy;
        }
    }
}

/// [`rms_norm_gradient`] of every part of q, and of every part of k, as the weights are wide.
pub fn head_norm_gradients<T: Real>(
    dy: &[T], // [M, (H + 2·Hkv)·D]
    x: &[T],  // [M, (H + 2·Hkv)·D]
    eps: T,
    shape: AttentionShape,
    dweights: [&mut [T]; 2], // [D] of q, [D] of k; or [H·D], [Hkv·D]
) {
    let widths = [dweights[0].len(), dweights[1].len()];
    for (dy, x) in dy.chunks_exact(shape.qkv()).zip(x.chunks_exact(shape.qkv())) {
        for (part, of) in parts(shape, widths) {
            rms_norm_gradient(&dy[part.clone()], &x[part], eps, &mut *dweights[of]);
        }
    }
}
