//! Gated MLPs (Shazeer 2020): `activation(gate) ∘ up`, with silu(x) = x·σ(x) or gelu in its tanh form. gate and up are
//! the halves of one row.

use super::Real;
use crate::shape::GateActivation;

fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// The activation at x, and its slope there.
fn activation<T: Real>(x: T, of: GateActivation) -> (T, T) {
    match of {
        GateActivation::Silu => {
            let s = sigmoid(x);
            (x * s, s * (T::ONE + x * (T::ONE - s)))
        }
        GateActivation::GeluTanh => {
            // (1 + tanh(u))/2 is σ(2·u), which keeps its digits where tanh(u) is nearly −1.
            let (twice_root, cubic) = (T::of(2.0 * (2.0 / std::f64::consts::PI).sqrt()), T::of(0.044715));
            let s = sigmoid(twice_root * (x + cubic * x * x * x));
            let slope = twice_root * (T::ONE + T::of(3.0) * cubic * x * x);
            (x * s, s * (T::ONE + x * (T::ONE - s) * slope))
        }
    }
}

/// `out = activation(gate) ∘ up` of every row gate‖up.
pub fn swiglu<T: Real>(
    gate_up: &[T], // [M, 2·I]
    out: &mut [T], // [M, I]
    i: usize,
    of: GateActivation,
) {
    for (row, out) in gate_up.chunks_exact(2 * i).zip(out.chunks_exact_mut(i)) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = activation(row[j], of).0 * row[i + j];
        }
    }
}

/// Turns gate‖up into its gradient in place.
pub fn swiglu_backward<T: Real>(
    dout: &[T],        // [M, I]
    gate_up: &mut [T], // [M, 2·I]
    i: usize,
    of: GateActivation,
) {
    for (row, dout) in gate_up.chunks_exact_mut(2 * i).zip(dout.chunks_exact(i)) {
        for j in 0..i {
            let ((value, slope), up) = (activation(row[j], of), row[i + j]);
            row[j] = dout[j] * up * slope;
            row[i + j] = dout[j] * value;
        }
    }
}
