//! The gradient of RMSNorm. Formula: [`crate::reference::rms_norm_backward`].

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// `dx` `[m, h]` = (or, with `accumulate`, +=) the gradient of RMSNorm at `x` `[m, h]` for `dy` `[m, h]`.
pub fn rms_norm_backward(
    dy: View<'_, bf16>,
    x: View<'_, bf16>,
    weight: View<'_, f32>,
    eps: f32,
    accumulate: bool,
    dx: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let h = weight.len();
    let m = x.len().checked_div(h).unwrap_or(0);
    let operation = Operation { name: "rms_norm_backward", shape: format!("M {m}, H {h}") };
    operation.check(h > 0, || "the weight is empty".into())?;
    let count = operation.size(&[m, h])?;
    for (what, len) in [("x", x.len()), ("dy", dy.len()), ("dx", dx.len())] {
        operation.length(what, len, count)?;
    }
    let args = sys::qk_rms_norm_backward_args {
        struct_size: struct_size::<sys::qk_rms_norm_backward_args>(),
        eps,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        dy: dy.address().cast(),
        x: x.address().cast(),
        weight: weight.address(),
        dx: dx.address().cast(),
        accumulate: accumulate.into(),
        reserved: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rms_norm_backward(&args, stream.as_raw())) })
}
