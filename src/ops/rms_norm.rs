//! RMSNorm, with the sum of the residual stream before or after it. Formula: [`crate::reference::rms_norm`].

use super::check::{Operation, struct_size};
use super::rows::RowsMut;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// The residual stream, as [`rms_norm`] reads it.
#[derive(Debug)]
pub enum Residual<'a> {
    /// `[m, h]`: the norm of x.
    Plain(View<'a, bf16>),
    /// x and delta `[m, h]`, sum `[m, h]`: sum = bf16(x + delta), and the norm of that.
    Add { x: View<'a, bf16>, delta: View<'a, bf16>, sum: ViewMut<'a, bf16> },
    /// x and delta `[m, h]`: the sum is written over x, and the norm is that of the sum.
    AddInPlace { x: ViewMut<'a, bf16>, delta: View<'a, bf16> },
    /// delta and x `[m, h]`: y = bf16(x + bf16(the norm of delta)).
    After { delta: View<'a, bf16>, x: View<'a, bf16> },
}

/// `y` `[m, h]` = RMSNorm of the (summed) residual stream, or the stream with a norm added to it; h is the length of
/// `weight`.
pub fn rms_norm<'a>(
    input: Residual<'_>,
    weight: View<'_, f32>,
    eps: f32,
    y: impl Into<RowsMut<'a>>,
    stream: Stream,
) -> Result<()> {
    let (h, y) = (weight.len(), y.into());
    let m = y.count(h);
    let operation = Operation { name: "rms_norm", shape: format!("M {m}, H {h}") };
    operation.check(h > 0, || "the weight is empty".into())?;
    let count = operation.size(&[m, h])?;
    let ldy = y.check(&operation, "y", m, h)?;
    let none = std::ptr::null();
    let mut residual = none;
    let (x, delta, sum) = match &input {
        Residual::Plain(x) => {
            operation.length("x", x.len(), count)?;
            (x.address(), none, std::ptr::null_mut())
        }
        Residual::After { delta, x } => {
            operation.length("delta", delta.len(), count)?;
            operation.length("x", x.len(), count)?;
            residual = x.address();
            (delta.address(), none, std::ptr::null_mut())
        }
        Residual::Add { x, delta, sum } => {
            operation.length("x", x.len(), count)?;
            operation.length("delta", delta.len(), count)?;
            operation.length("the sum", sum.len(), count)?;
            (x.address(), delta.address(), sum.address())
        }
        Residual::AddInPlace { x, delta } => {
            operation.length("x", x.len(), count)?;
            operation.length("delta", delta.len(), count)?;
            (x.address().cast_const(), delta.address(), x.address())
        }
    };
    let args = sys::qk_rms_norm_args {
        struct_size: struct_size::<sys::qk_rms_norm_args>(),
        eps,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        x: x.cast(),
        delta: delta.cast(),
        weight: weight.address(),
        sum: sum.cast(),
        y: y.view.address().cast(),
        residual: residual.cast(),
        ldy,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rms_norm(&args, stream.as_raw())) })
}
