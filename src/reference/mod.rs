//! Naive implementations of every operation of a Llama step, forward and backward, generic over the float.
//!
//! In f64 they are the oracle of every test. They are written to be obviously
//! right: plain loops, no blocking, no parallelism, no dependencies. Matrices are row-major slices; the shapes stand
//! at each parameter. M counts tokens, N out features, K in features.

mod adamw;
mod attention;
mod embedding;
mod linear;
mod loss;
mod magnitude;
mod norm;
mod rope;
mod swiglu;

pub use adamw::adamw;
pub use attention::{attention, attention_backward};
pub use embedding::{embedding_backward, embedding_backward_of_rows};
pub use linear::{LoraTerm, linear, linear_dx, lora_down, lora_dy_b, lora_gradients};
pub use loss::{linear_cross_entropy, linear_cross_entropy_head};
pub use magnitude::{magnitude, magnitude_backward, magnitude_norms};
pub use norm::{head_norm, head_norm_backward, head_norm_gradients, rms_norm, rms_norm_backward, rms_norm_gradient};
pub use rope::{rope, rope_inverse};
pub use swiglu::{swiglu, swiglu_backward};

pub use crate::real::Real;

/// Σ aᵢ·bᵢ in order.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sum = T::ZERO;
    for (&x, &y) in a.iter().zip(b) {
        sum += x * y;
    }
    sum
}

/// `cap·tanh(x/cap)` and its derivative; x and 1 without a cap.
pub(crate) fn soft_capped<T: Real>(x: T, cap: Option<f32>) -> (T, T) {
    let Some(cap) = cap.map(|cap| T::of(cap.into())) else { return (x, T::ONE) };
    // tanh(y) = 1 − 2 / (1 + e^2y)
    let tanh = T::ONE - T::of(2.0) / (T::ONE + (T::of(2.0) * x / cap).exp());
    (cap * tanh, T::ONE - tanh * tanh)
}

/// y += alpha·x
pub(crate) fn axpy<T: Real>(alpha: T, x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}
