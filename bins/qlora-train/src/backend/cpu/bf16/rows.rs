//! Operations of one row at a time on bf16 values: computed in f32, rounded once.

use crate::backend::cpu::elementwise::{LANES, exp, for_rotated_rows, gelu_exponent, gelu_slope};
use crate::backend::cpu::gemm::simd::vectorized;
use half::bf16;
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::{AttentionShape, GateActivation};
use rayon::prelude::*;

/// The nearest bf16, ties to even; NaN stays NaN. Without a branch or call, so that loops over it become vectors.
#[inline(always)]
pub fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet } else { rounded })
}

/// The value as f32.
#[inline(always)]
pub fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

vectorized! {
    pub fn round_row<'a>(from: &'a [f32], to: &'a mut [bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = round(*from);
        }
    }
}

vectorized! {
    pub fn round_scaled<'a>(to: &'a mut [bf16], from: &'a [f32], scale: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = round(from * scale);
        }
    }
}

/// Rows of a task at least.
const MIN_ROWS: usize = 16;

/// `1 / √(mean(x²) + eps)`
#[inline(always)]
pub fn inverse_rms(x: &[bf16], eps: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += widen(*x) * widen(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += widen(*x) * widen(*x);
    }
    1.0 / (sums.iter().sum::<f32>() / x.len() as f32 + eps).sqrt()
}

/// `y = w ∘ x / √(mean(x²) + eps)`
pub fn rms_norm(x: &[bf16], weight: &[f32], eps: f32, out: &mut [bf16]) {
    let h = weight.len();
    let rows = out.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h)).with_min_len(MIN_ROWS);
    rows.for_each(|(out, x)| rms_norm_row(x, weight, eps, out));
}

vectorized! {
    /// [`rms_norm`] of one row.
    pub fn rms_norm_row<'a>(x: &'a [bf16], weight: &'a [f32], eps: f32, out: &'a mut [bf16]) {
        let inverse = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = round(w * (widen(*x) * inverse));
        }
    }
}

/// `sum = x + delta`, rounded, and the norm of the rounded sum.
pub fn add_rms_norm(x: &[bf16], delta: &[bf16], sum: &mut [bf16], weight: &[f32], eps: f32, out: &mut [bf16]) {
    let h = weight.len();
    let rows = out.par_chunks_exact_mut(h).zip(sum.par_chunks_exact_mut(h));
    let rows = rows.zip(x.par_chunks_exact(h).zip(delta.par_chunks_exact(h))).with_min_len(MIN_ROWS);
    rows.for_each(|((out, sum), (x, delta))| {
        add_row(x, delta, sum);
        rms_norm_row(sum, weight, eps, out);
    });
}

/// `sum = x + rms_norm(delta)`, the norm rounded, and the sum.
pub fn rms_norm_add(x: &[bf16], delta: &[bf16], weight: &[f32], eps: f32, sum: &mut [bf16]) {
    let h = weight.len();
    let rows = sum.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h).zip(delta.par_chunks_exact(h)));
    rows.with_min_len(MIN_ROWS).for_each(|(sum, (x, delta))| {
        rms_norm_row(delta, weight, eps, sum);
        add_to_row(x, sum);
    });
}

vectorized! {
    fn add_to_row<'a>(x: &'a [bf16], sum: &'a mut [bf16]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = round(widen(*sum) + widen(*x));
        }
    }
}

vectorized! {
    fn add_row<'a>(x: &'a [bf16], y: &'a [bf16], sum: &'a mut [bf16]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = round(widen(*x) + widen(*y));
        }
    }
}

/// `dX = ∂y/∂x · dY`, or += with `accumulate`.
pub fn rms_norm_backward(dy: &[bf16], x: &[bf16], weight: &[f32], eps: f32, accumulate: bool, dx: &mut [bf16]) {
    let h = weight.len();
    let rows = dx.par_chunks_exact_mut(h).zip(dy.par_chunks_exact(h).zip(x.par_chunks_exact(h)));
    rows.with_min_len(MIN_ROWS).for_each(|(dx, (dy, x))| {
        if !accumulate {
            dx.fill(bf16::ZERO);
        }
        rms_norm_backward_row(dy, x, weight, eps, dx);
    });
}

vectorized! {
    /// `dX += ∂y/∂x · dY` of one row.
    pub fn rms_norm_backward_row<'a>(dy: &'a [bf16], x: &'a [bf16], weight: &'a [f32], eps: f32, dx: &'a mut [bf16]) {
        let inverse = inverse_rms(x, eps);
        let mut sums = [0.0f32; LANES];
        for ((w, dy), x) in weight.chunks(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)) {
            for (sum, ((w, dy), x)) in sums.iter_mut().zip(w.iter().zip(dy).zip(x)) {
                *sum += w * widen(*dy) * widen(*x);
            }
        }
        let along_x = inverse * inverse * inverse * sums.iter().sum::<f32>() / weight.len() as f32;
        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
            *dx = round(widen(*dx) + (inverse * w * widen(*dy) - along_x * widen(*x)));
        }
    }
}

/// Rotates queries and keys of `qkv` in place, backwards for the gradient.
pub fn rope(qkv: &mut [bf16], shape: AttentionShape, positions: &[u32], table: &RopeTable<f32>, inverse: bool) {
    let d = shape.head_dim;
    for_rotated_rows(qkv, shape, positions, table, |cos, sin, row| rotate_row(cos, sin, inverse, d, row));
}

vectorized! {
    fn rotate_row<'a>(cos: &'a [f32], sin: &'a [f32], inverse: bool, head_dim: usize, row: &'a mut [bf16]) {
        let sign = if inverse { -1.0 } else { 1.0 };
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * cos.len()].split_at_mut(cos.len());
            for (((x, y), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b, sin) = (widen(*x), widen(*y), sign * sin);
                *x = round(a * cos - b * sin);
                *y = round(b * cos + a * sin);
            }
        }
    }
}

/// `out = activation(gate) ∘ up` for rows gate‖up of `2·width` values.
pub fn swiglu(gate_up: &[bf16], out: &mut [bf16], width: usize, activation: GateActivation) {
    let rows = out.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(MIN_ROWS);
    rows.for_each(|(out, row)| activate_row(row, out, activation));
}

fn activate_row(row: &[bf16], out: &mut [bf16], activation: GateActivation) {
    let (gate, up) = row.split_at(out.len());
    match activation {
        GateActivation::Silu => swiglu_row(gate, up, out),
        GateActivation::GeluTanh => geglu_row(gate, up, out),
    }
}

vectorized! {
    fn swiglu_row<'a>(gate: &'a [bf16], up: &'a [bf16], out: &'a mut [bf16]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = widen(*gate);
            *out = round(gate / (1.0 + exp(-gate)) * widen(*up));
        }
    }
}

vectorized! {
    fn geglu_row<'a>(gate: &'a [bf16], up: &'a [bf16], out: &'a mut [bf16]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = widen(*gate);
            *out = round(gate / (1.0 + exp(-gelu_exponent(gate))) * widen(*up));
        }
    }
}

/// Turns gate‖up into its gradient; `out` becomes what [`swiglu`] gives, while a row is in the caches.
pub fn swiglu_backward(
    dout: &[bf16],
    gate_up: &mut [bf16],
    out: Option<&mut [bf16]>,
    width: usize,
    activation: GateActivation,
) {
    let rows = gate_up.par_chunks_mut(2 * width).zip(dout.par_chunks(width)).with_min_len(MIN_ROWS);
    let gradient = |row: &mut [bf16], dout: &[bf16]| {
        let (gate, up) = row.split_at_mut(width);
        match activation {
            GateActivation::Silu => swiglu_backward_row(dout, gate, up),
            GateActivation::GeluTanh => geglu_backward_row(dout, gate, up),
        }
    };
    match out {
        None => rows.for_each(|(row, dout)| gradient(row, dout)),
        Some(out) => rows.zip(out.par_chunks_mut(width)).for_each(|((row, dout), out)| {
            activate_row(row, out, activation);
            gradient(row, dout);
        }),
    }
}

vectorized! {
    fn swiglu_backward_row<'a>(dout: &'a [bf16], gate: &'a mut [bf16], up: &'a mut [bf16]) {
        for ((dout, gate), up) in dout.iter().zip(gate).zip(up) {
            let (d, g, u) = (widen(*dout), widen(*gate), widen(*up));
            let s = 1.0 / (1.0 + exp(-g));
            let silu = g * s;
            *gate = round(d * u * s * (1.0 + g * (1.0 - s)));
            *up = round(d * silu);
        }
    }
}

vectorized! {
    fn geglu_backward_row<'a>(dout: &'a [bf16], gate: &'a mut [bf16], up: &'a mut [bf16]) {
        for ((dout, gate), up) in dout.iter().zip(gate).zip(up) {
            let (d, g, u) = (widen(*dout), widen(*gate), widen(*up));
            let s = 1.0 / (1.0 + exp(-gelu_exponent(g)));
            let gelu = g * s;
            *gate = round(d * u * s * (1.0 + g * (1.0 - s) * gelu_slope(g)));
            *up = round(d * gelu);
        }
    }
}

#[cfg(test)]
mod tests;
