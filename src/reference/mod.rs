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

// Whatever a file of operations makes public is a reference.
pub use adamw::*;
pub use attention::*;
pub use embedding::*;
pub use linear::*;
pub use loss::*;
pub use magnitude::*;
pub use norm::*;
pub use rope::*;
pub use swiglu::*;

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
