//! Naive implementations of every operation of a Llama step, forward and backward, generic over the float.
//!
//! In f64 they are the oracle of every test, in f32 the fallback of the CPU backend. They are written to be obviously
//! right: plain loops, no blocking, no parallelism, no dependencies. Matrices are row-major slices; the shapes stand
//! at each parameter. M counts tokens, N out features, K in features.

mod adamw;
mod attention;
mod linear;
mod loss;
mod norm;
mod rope;
mod swiglu;

pub use adamw::{AdamW, AdamWScalars, adamw};
pub use attention::{AttentionShape, attention, attention_backward};
pub use linear::{LoraTerm, linear, linear_dx, lora_down, lora_dy_b, lora_gradients};
pub use loss::linear_cross_entropy;
pub use norm::{rms_norm, rms_norm_backward};
pub use rope::{RopeScaling, RopeTable, rope, rope_inverse};
pub use swiglu::{swiglu, swiglu_backward};

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub, SubAssign};

/// The two floats an operation can be computed in.
pub trait Real:
    Copy
    + Debug
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
{
    const ZERO: Self;
    const ONE: Self;
    fn of(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
}

macro_rules! impl_real {
    ($t:ty) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            fn of(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
        }
    };
}
impl_real!(f32);
impl_real!(f64);

/// Σ aᵢ·bᵢ in order.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sum = T::ZERO;
    for (&x, &y) in a.iter().zip(b) {
        sum += x * y;
    }
    sum
}

/// y += alpha·x
pub(crate) fn axpy<T: Real>(alpha: T, x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += alpha * x;
    }
}
