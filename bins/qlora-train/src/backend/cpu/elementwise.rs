//! Operations of one row at a time: the reference's formulas, vectorized and split over threads.

use super::gemm::simd::vectorized;
use super::table::TableGradient;
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::{AttentionShape, GateActivation};
use rayon::prelude::*;
use std::ops::Range;

/// `e^x` within 2 units in the last place over the normal range (tested), 0 below it; NaN stays NaN. Written without
/// branches or calls so that the compiler vectorizes it.
///
/// Range reduction x = n·ln 2 + f with a two-part ln 2, then the degree-6 Taylor-like polynomial of Cephes' expf.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (y, exponent) = reduced_exp(x.clamp(LEAST_EXPONENT, 88.7));
    // Two factors: 2^128 is not a float, but 2^64·2^64·y is.
    let half = exponent >> 1;
    let result = y * power_of_two(half) * power_of_two(exponent.wrapping_sub(half));
    if x < LEAST_EXPONENT { 0.0 } else { result }
}

/// [`exp`] of x up to 88, bit for bit, and e^88 beyond: for probabilities, with fewer instructions.
#[inline(always)]
pub fn exp_up_to_88(x: f32) -> f32 {
    let (y, exponent) = reduced_exp(x.clamp(LEAST_EXPONENT, 88.0));
    let result = y * power_of_two(exponent);
    if x < LEAST_EXPONENT { 0.0 } else { result }
}

/// Below it e^x is taken for 0.
const LEAST_EXPONENT: f32 = -87.3;

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// y and n of `e^x = y · 2^n`.
#[inline(always)]
fn reduced_exp(x: f32) -> (f32, i32) {
    // 1.5 · 2²³: adding it rounds to the nearest integer, which is then found in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let n = rounded - ROUND;
    let f = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4_f32;
    let p = p * f + 1.398_2e-3;
    let p = p * f + 8.333_452e-3;
    let p = p * f + 4.166_579_6e-2;
    let p = p * f + 1.666_666_5e-1;
    let p = p * f + 5e-1;
    (p * (f * f) + f + 1.0, exponent)
}

/// Values of one task of an operation that takes one at a time.
const PART: usize = 1 << 14;
/// Rows of a task at least.
const MIN_ROWS: usize = 16;

/// Interleaved partial sums: as many as the widest vectors have lanes, so that the order of a sum is the same on every
/// processor.
pub const LANES: usize = 16;

/// Replaces every x by `e^(x − shift)` and returns their sum (in [`LANES`] interleaved parts, added in order).
#[inline(always)]
pub fn exp_of_differences(values: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = exp(*x - shift);
            *sum += *x;
        }
    }
    for (x, sum) in rest.iter_mut().zip(&mut sums) {
        *x = exp(*x - shift);
        *sum += *x;
    }
    sums.iter().sum()
}

vectorized! {
    /// [`exp_of_differences`], vectorized.
    pub fn exp_shifted<'a>(values: &'a mut [f32], shift: f32) -> f32 {
        exp_of_differences(values, shift)
    }
}

#[inline(always)]
pub fn scale_all(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|x| *x *= factor);
}

vectorized! {
    /// [`scale_all`], vectorized.
    pub fn multiply_row<'a>(values: &'a mut [f32], factor: f32) {
        scale_all(values, factor);
    }
}

/// The largest of `values` and `least`; NaN is passed over.
#[inline(always)]
pub fn larger_of(values: &[f32], least: f32) -> f32 {
    let larger = |x: f32, y: f32| if y > x { y } else { x };
    let mut all = [least; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (all, x) in all.iter_mut().zip(chunk) {
            *all = larger(*all, *x);
        }
    }
    for (all, x) in all.iter_mut().zip(rest) {
        *all = larger(*all, *x);
    }
    all.into_iter().fold(least, larger)
}

vectorized! {
    /// [`larger_of`], vectorized.
    pub fn largest<'a>(values: &'a [f32], least: f32) -> f32 {
        larger_of(values, least)
    }
}

vectorized! {
    /// From scores P and dO·Vᵀ of one row to probabilities and the scores' gradients: `p = e^(p − lse)`,
    /// `ds = scale·p·(ds − delta)`.
    pub fn score_gradients<'a>(lse: &'a [f32], delta: &'a [f32], scale: f32, p: &'a mut [f32], ds: &'a mut [f32]) {
        for (((p, ds), lse), delta) in p.iter_mut().zip(ds).zip(lse).zip(delta) {
            *p = exp(*p - lse);
            *ds = scale * *p * (*ds - delta);
        }
    }
}

vectorized! {
    /// From dO·Vᵀ of one query to its scores' gradients: `ds = scale·p·(ds − delta)`.
    pub fn gradients_of_row<'a>(p: &'a [f32], delta: f32, scale: f32, ds: &'a mut [f32]) {
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = scale * p * (*ds - delta);
        }
    }
}

pub fn add(x: &[f32], y: &[f32], sum: &mut [f32]) {
    sum.par_chunks_mut(PART).zip(x.par_chunks(PART).zip(y.par_chunks(PART))).for_each(|(sum, (x, y))| {
        sum.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum = x + y);
    });
}

/// `sum += x`
pub fn add_to(x: &[f32], sum: &mut [f32]) {
    sum.par_chunks_mut(PART).zip(x.par_chunks(PART)).for_each(|(sum, x)| {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    });
}

/// Σ x·y of two rows of equal length, in L interleaved parts.
#[inline(always)]
pub fn dot<const L: usize>(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; L];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<L>(), y.as_chunks::<L>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..L {
            sums[lane] += x[lane] * y[lane];
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *sum += x * y;
    }
    sums.iter().sum()
}

/// Rows whose part of a sum over rows is summed on its own.
const SUMMED: usize = 256;
/// Columns of a task of such a sum.
const COLUMNS: usize = 64;

/// `dw += Σ dY ∘ X / rms(X)` over rows of as many values as `dw` has, which begin at `starts` in both; `per_chunk` of
/// them are summed on their own. `inverse` gives 1 / rms of a row.
pub fn norm_gradient<T: Copy + Into<f32> + Sync>(
    dy: &[T],
    x: &[T],
    starts: &[usize],
    per_chunk: usize,
    inverse: impl Fn(&[T]) -> f32 + Sync,
    gradient: &mut [f32],
) {
    let width = gradient.len();
    let inverses: Vec<f32> = starts.par_iter().with_min_len(MIN_ROWS).map(|&at| inverse(&x[at..][..width])).collect();
    gradient.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, gradient)| {
        let column = part * COLUMNS;
        for (starts, inverses) in starts.chunks(per_chunk).zip(inverses.chunks(per_chunk)) {
            let mut sums = [0.0f32; COLUMNS];
            for (at, inverse) in starts.iter().zip(inverses) {
                let (dy, x) = (&dy[at + column..][..gradient.len()], &x[at + column..][..gradient.len()]);
                for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                    *sum += (*dy).into() * ((*x).into() * inverse);
                }
            }
            gradient.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient += sum);
        }
    });
}

/// [`norm_gradient`] of every row.
pub fn rms_norm_gradient<T: Copy + Into<f32> + Sync>(
    dy: &[T],
    x: &[T],
    inverse: impl Fn(&[T]) -> f32 + Sync,
    gradient: &mut [f32],
) {
    let starts: Vec<usize> = (0..x.len()).step_by(gradient.len()).collect();
    norm_gradient(dy, x, &starts, SUMMED, inverse, gradient);
}

/// [`norm_gradient`] of the rows of a norm over columns `columns` of rows of `stride` values.
pub fn head_norm_gradient<T: Copy + Into<f32> + Sync>(
    dy: &[T],
    x: &[T],
    stride: usize,
    columns: Range<usize>,
    inverse: impl Fn(&[T]) -> f32 + Sync,
    gradient: &mut [f32],
) {
    let heads = columns.len() / gradient.len();
    let begins = (0..x.len()).step_by(stride);
    let starts: Vec<usize> =
        begins.flat_map(|row| columns.clone().step_by(gradient.len()).map(move |column| row + column)).collect();
    norm_gradient(dy, x, &starts, SUMMED * heads, inverse, gradient);
}

/// `dW[id] += scale · dY` of the rows of each token, in order; of some tokens alone where the gradient is theirs.
pub fn embed_backward<T: Copy + Into<f32> + Sync>(
    dy: &[T],
    ids: &[u32],
    scale: f32,
    width: usize,
    TableGradient { data, tokens }: TableGradient,
) {
    let mut rows: Vec<(u32, usize)> = ids.iter().enumerate().map(|(row, &id)| (id, row)).collect();
    rows.sort_unstable();
    data.par_chunks_exact_mut(width).enumerate().with_min_len(MIN_ROWS).for_each(|(at, gradient)| {
        let id = tokens.map_or(at, |tokens| tokens[at] as usize);
        let first = rows.partition_point(|&(other, _)| (other as usize) < id);
        for (_, row) in rows[first..].iter().take_while(|&&(other, _)| other as usize == id) {
            let dy = &dy[row * width..][..width];
            gradient.iter_mut().zip(dy).for_each(|(gradient, dy)| *gradient += scale * (*dy).into());
        }
    });
}

/// `1 / √(mean(x²) + eps)`
#[inline(always)]
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot::<LANES>(x, x) / x.len() as f32 + eps).sqrt()
}

/// `y = w ∘ x / √(mean(x²) + eps)` (as [`qlora_kernels::reference::rms_norm`])
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let h = weight.len();
    let rows = out.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h)).with_min_len(MIN_ROWS);
    rows.for_each(|(out, x)| rms_norm_row(x, weight, eps, out));
}

vectorized! {
    /// [`rms_norm`] of one row.
    pub fn rms_norm_row<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) {
        let inverse = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = w * (x * inverse);
        }
    }
}

/// `dX = ∂y/∂x · dY`, or += with `accumulate` (as [`qlora_kernels::reference::rms_norm_backward`])
pub fn rms_norm_backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f32, accumulate: bool, dx: &mut [f32]) {
    let h = weight.len();
    let rows = dx.par_chunks_exact_mut(h).zip(dy.par_chunks_exact(h).zip(x.par_chunks_exact(h)));
    rows.with_min_len(MIN_ROWS).for_each(|(dx, (dy, x))| {
        if !accumulate {
            dx.fill(0.0);
        }
        rms_norm_backward_row(dy, x, weight, eps, dx);
    });
}

vectorized! {
    /// `dX += ∂y/∂x · dY` of one row.
    pub fn rms_norm_backward_row<'a>(dy: &'a [f32], x: &'a [f32], weight: &'a [f32], eps: f32, dx: &'a mut [f32]) {
        let inverse = inverse_rms(x, eps);
        let mut sums = [0.0f32; LANES];
        for ((w, dy), x) in weight.chunks(LANES).zip(dy.chunks(LANES)).zip(x.chunks(LANES)) {
            for (sum, ((w, dy), x)) in sums.iter_mut().zip(w.iter().zip(dy).zip(x)) {
                *sum += w * dy * x;
            }
        }
        let along_x = inverse * inverse * inverse * sums.iter().sum::<f32>() / weight.len() as f32;
        for (((dx, dy), x), w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
            *dx += inverse * w * dy - along_x * x;
        }
    }
}

/// Rotates queries and keys in place, backwards for the gradient.
pub fn rope(qkv: &mut [f32], shape: AttentionShape, positions: &[u32], table: &RopeTable<f32>, inverse: bool) {
    let d = shape.head_dim;
    for_rotated_rows(qkv, shape, positions, table, |cos, sin, row| rotate_row(cos, sin, inverse, d, row));
}

/// Gives `rotate` the cosines and sines of every row's position, and the row's queries and keys.
pub fn for_rotated_rows<T: Send>(
    qkv: &mut [T],
    shape: AttentionShape,
    positions: &[u32],
    table: &RopeTable<f32>,
    rotate: impl Fn(&[f32], &[f32], &mut [T]) + Sync + Send,
) {
    let (width, rotated, half) = (shape.qkv(), (shape.heads + shape.kv_heads) * shape.head_dim, table.half);
    let rows = qkv.par_chunks_mut(width).zip(positions).with_min_len(MIN_ROWS);
    rows.for_each(|(qkv, &position)| {
        let at = position as usize * half;
        rotate(&table.cos[at..at + half], &table.sin[at..at + half], &mut qkv[..rotated]);
    });
}

vectorized! {
    fn rotate_row<'a>(cos: &'a [f32], sin: &'a [f32], inverse: bool, head_dim: usize, row: &'a mut [f32]) {
        let direction = if inverse { -1.0 } else { 1.0 };
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * cos.len()].split_at_mut(cos.len());
            for (((x, y), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b, sin) = (*x, *y, direction * sin);
                *x = a * cos - b * sin;
                *y = b * cos + a * sin;
            }
        }
    }
}

/// The argument of a gate's sigmoid, for gelu in its tanh form: (1 + tanh(u)) / 2 is the sigmoid of 2·u.
#[inline(always)]
pub fn gelu_exponent(gate: f32) -> f32 {
    GELU_ROOT * (gate + GELU_CUBIC * gate * gate * gate)
}

/// The slope of [`gelu_exponent`].
#[inline(always)]
pub fn gelu_slope(gate: f32) -> f32 {
    GELU_ROOT * (1.0 + 3.0 * GELU_CUBIC * gate * gate)
}

/// 2·√(2/π)
const GELU_ROOT: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.044_715;

pub fn swiglu(gate_up: &[f32], out: &mut [f32], i: usize, activation: GateActivation) {
    out.par_chunks_mut(i).zip(gate_up.par_chunks(2 * i)).with_min_len(MIN_ROWS).for_each(|(out, row)| {
        activate_row(row, out, activation);
    });
}

fn activate_row(row: &[f32], out: &mut [f32], activation: GateActivation) {
    let (gate, up) = row.split_at(out.len());
    match activation {
        GateActivation::Silu => swiglu_row(gate, up, out),
        GateActivation::GeluTanh => geglu_row(gate, up, out),
    }
}

vectorized! {
    fn swiglu_row<'a>(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

vectorized! {
    fn geglu_row<'a>(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gelu_exponent(gate))) * up;
        }
    }
}

/// Turns gate‖up into its gradient; `out` becomes what [`swiglu`] gives, while a row is in the caches.
pub fn swiglu_backward(
    dout: &[f32],
    gate_up: &mut [f32],
    out: Option<&mut [f32]>,
    i: usize,
    activation: GateActivation,
) {
    let rows = gate_up.par_chunks_mut(2 * i).zip(dout.par_chunks(i)).with_min_len(MIN_ROWS);
    let gradient = |row: &mut [f32], dout: &[f32]| {
        let (gate, up) = row.split_at_mut(i);
        match activation {
            GateActivation::Silu => swiglu_backward_row(dout, gate, up),
            GateActivation::GeluTanh => geglu_backward_row(dout, gate, up),
        }
    };
    match out {
        None => rows.for_each(|(row, dout)| gradient(row, dout)),
        Some(out) => rows.zip(out.par_chunks_mut(i)).for_each(|((row, dout), out)| {
            activate_row(row, out, activation);
            gradient(row, dout);
        }),
    }
}

vectorized! {
    fn swiglu_backward_row<'a>(dout: &'a [f32], gate: &'a mut [f32], up: &'a mut [f32]) {
        for ((dout, gate), up) in dout.iter().zip(gate).zip(up) {
            let s = 1.0 / (1.0 + exp(-*gate));
            let silu = *gate * s;
            *gate = dout * *up * s * (1.0 + *gate * (1.0 - s));
            *up = dout * silu;
        }
    }
}

vectorized! {
    fn geglu_backward_row<'a>(dout: &'a [f32], gate: &'a mut [f32], up: &'a mut [f32]) {
        for ((dout, gate), up) in dout.iter().zip(gate).zip(up) {
            let s = 1.0 / (1.0 + exp(-gelu_exponent(*gate)));
            let gelu = *gate * s;
            *gate = dout * *up * s * (1.0 + *gate * (1.0 - s) * gelu_slope(*gate));
            *up = dout * gelu;
        }
    }
}

#[cfg(test)]
mod tests;
