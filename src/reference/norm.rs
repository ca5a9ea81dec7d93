//! RMSNorm (Zhang and Sennrich 2019): `y = w ∘ x / √(mean(x²) + eps)`.

use super::{Real, dot};
use crate::shape::AttentionShape;

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

/// The columns of each head of q and k in rows q‖k‖v, and whether it is one of k.
fn heads(shape: AttentionShape) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    let d = shape.head_dim;
    (0..shape.heads + shape.kv_heads).map(move |head| (head * d..(head + 1) * d, usize::from(head >= shape.heads)))
}

/// [`rms_norm`] of each head of q and k on its own; v is copied.
pub fn head_norm<T: Real>(
    x: &[T],            // [M, (H + 2·Hkv)·D]: q‖k‖v
    weights: [&[T]; 2], // [D] of q, [D] of k
    eps: T,
    shape: AttentionShape,
    y: &mut [T], // [M, (H + 2·Hkv)·D]
) {
    y.copy_from_slice(x);
    for (x, y) in x.chunks_exact(shape.qkv()).zip(y.chunks_exact_mut(shape.qkv())) {
        for (head, of) in heads(shape) {
            rms_norm(&x[head.clone()], weights[of], eps, &mut y[head]);
        }
    }
}

/// `dX += ∂y/∂x · dY`
pub fn head_norm_backward<T: Real>(
    dy: &[T],           // [M, (H + 2·Hkv)·D]
    x: &[T],            // [M, (H + 2·Hkv)·D]
    weights: [&[T]; 2], // [D] of q, [D] of k
    eps: T,
    shape: AttentionShape,
    dx: &mut [T], // [M, (H + 2·Hkv)·D]
) {
    let (width, values) = (shape.qkv(), (shape.heads + shape.kv_heads) * shape.head_dim);
    for ((dy, x), dx) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        for (head, of) in heads(shape) {
            rms_norm_backward(&dy[head.clone()], &x[head.clone()], weights[of], eps, &mut dx[head]);
        }
        for (dx, &dy) in dx[values..].iter_mut().zip(&dy[values..]) {
            *dx += dy;
        }
    }
}
