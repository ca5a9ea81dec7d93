//! The gradient of RMSNorm. Formula: [`crate::reference::rms_norm_backward`].

use super::check::{Operation, struct_size};
use super::rows::{Rows, RowsMut};
use crate::device::{Stream, View};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// `dx` `[m, h]` = (or, with `accumulate`, +=) the gradient of RMSNorm at `x` `[m, h]` for `dy` `[m, h]`.
pub fn rms_norm_backward<'a>(
    dy: impl Into<Rows<'a>>,
    x: View<'_, bf16>,
    weight: View<'_, f32>,
    eps: f32,
    accumulate: bool,
    dx: impl Into<RowsMut<'a>>,
    stream: Stream,
) -> Result<()> {
    let (h, dy, dx) = (weight.len(), dy.into(), dx.into());
    let m = x.len().checked_div(h).unwrap_or(0);
    let operation = Operation { name: "rms_norm_backward", shape: format!("M {m}, H {h}") };
    operation.check(h > 0, || "the weight is empty".into())?;
    let count = operation.size(&[m, h])?;
    operation.length("x", x.len(), count)?;
    let (lddy, lddx) = (dy.check(&operation, "dy", m, h)?, dx.check(&operation, "dx", m, h)?);
    let args = sys::qk_rms_norm_backward_args {
        struct_size: struct_size::<sys::qk_rms_norm_backward_args>(),
        eps,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        dy: dy.view.address().cast(),
        x: x.address().cast(),
        weight: weight.address(),
        dx: dx.view.address().cast(),
        accumulate: accumulate.into(),
        reserved: 0,
        lddy,
        lddx,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rms_norm_backward(&args, stream.as_raw())) })
}
