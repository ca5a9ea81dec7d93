//! SwiGLU (Shazeer 2020): `silu(gate) ∘ up`, silu(x) = x·σ(x). gate and up are the halves of one row.

use super::Real;

fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

pub fn swiglu<T: Real>(
    gate_up: &[T], // [M, 2·I]
    out: &mut [T], // [M, I]
    i: usize,
) {
    for (row, out) in gate_up.chunks_exact(2 * i).zip(out.chunks_exact_mut(i)) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = row[j] * sigmoid(row[j]) * row[i + j];
        }
    }
}

/// Turns gate‖up into its gradient in place: silu'(x) = σ(x)·(1 + x·(1 − σ(x))).
pub fn swiglu_backward<T: Real>(
    dout: &[T],        // [M, I]
    gate_up: &mut [T], // [M, 2·I]
    i: usize,
) {
    for (row, dout) in gate_up.chunks_exact_mut(2 * i).zip(dout.chunks_exact(i)) {
        for j in 0..i {
            let (gate, up) = (row[j], row[i + j]);
            let s = sigmoid(gate);
            row[j] = dout[j] * up * s * (T::ONE + gate * (T::ONE - s));
            row[i + j] = dout[j] * gate * s;
        }
    }
}
