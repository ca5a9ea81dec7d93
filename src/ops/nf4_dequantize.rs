//! NF4 weights as matrices of bf16 or f32. The format: [`crate::nf4`].

use super::check::Operation;
use super::nf4::{Float, Weight};
use crate::device::{Stream, ViewMut};
use crate::error::Result;

/// `out` `[n, k]` = code · absmax in f32, rounded once to `T`.
pub fn nf4_dequantize<T: Float>(weight: &Weight<'_>, out: ViewMut<'_, T>, stream: Stream) -> Result<()> {
    let operation = Operation {
        name: "nf4_dequantize",
        shape: format!("N {}, K {}, block {}", weight.n, weight.k, weight.block_size),
    };
    let description = weight.describe(&operation)?;
    operation.length("out", out.len(), weight.n * weight.k)?;
    // SAFETY: `describe` checked the weight's lengths and the line above the output's; the struct is read before the
    // return.
    operation.status(unsafe { call!(qk_nf4_dequantize(&description, out.address().cast(), T::DTYPE, stream.as_raw())) })
}
