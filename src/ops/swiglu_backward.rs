//! The gradient of SwiGLU and GeGLU. Formula: [`crate::reference::swiglu_backward`].

use super::check::struct_size;
use super::rows::RowsMut;
use super::swiglu::{activation_of, swiglu_operation};
use crate::device::{Stream, View};
use crate::error::Result;
use crate::shape::GateActivation;
use crate::sys;
use half::bf16;

/// Turns `gate_up` `[m, 2·i]` into its gradient for `dout` `[m, i]`; `out` `[m, i]`, if wanted, gets the forward
/// result.
pub fn swiglu_backward<'a>(
    dout: View<'_, bf16>,
    gate_up: impl Into<RowsMut<'a>>,
    i: usize,
    activation: GateActivation,
    out: Option<RowsMut<'_>>,
    stream: Stream,
) -> Result<()> {
    let gate_up = gate_up.into();
    let m = gate_up.count(2 * i);
    let operation = swiglu_operation("swiglu_backward", m, i)?;
    let ldgate_up = gate_up.check(&operation, "gate_up", m, 2 * i)?;
    operation.length("dout", dout.len(), operation.size(&[m, i])?)?;
    let ldout = out.as_ref().map_or(Ok(0), |out| out.check(&operation, "out", m, i))?;
    let args = sys::qk_swiglu_args {
        struct_size: struct_size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.view.address().cast(),
        out: out.as_ref().map_or(std::ptr::null_mut(), |out| out.view.address().cast()),
        dout: dout.address().cast(),
        activation: activation_of(activation),
        reserved2: 0,
        ldgate_up,
        ldout,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_swiglu_backward(&args, stream.as_raw())) })
}
