//! The gradient of SwiGLU and GeGLU. Formula: [`crate::reference::swiglu_backward`].

use super::check::struct_size;
use super::swiglu::{activation_of, swiglu_shape};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::shape::GateActivation;
use crate::sys;
use half::bf16;

/// Turns `gate_up` `[m, 2·i]` into its gradient for `dout` `[m, i]`; `out` `[m, i]`, if wanted, gets the forward
/// result.
pub fn swiglu_backward(
    dout: View<'_, bf16>,
    gate_up: ViewMut<'_, bf16>,
    i: usize,
    activation: GateActivation,
    out: Option<ViewMut<'_, bf16>>,
    stream: Stream,
) -> Result<()> {
    let (operation, m) = swiglu_shape("swiglu_backward", gate_up.len(), i)?;
    operation.length("dout", dout.len(), gate_up.len() / 2)?;
    if let Some(out) = &out {
        operation.length("out", out.len(), gate_up.len() / 2)?;
    }
    let args = sys::qk_swiglu_args {
        struct_size: struct_size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.address().cast(),
        out: out.as_ref().map_or(std::ptr::null_mut(), |out| out.address().cast()),
        dout: dout.address().cast(),
        activation: activation_of(activation),
        reserved2: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_swiglu_backward(&args, stream.as_raw())) })
}
