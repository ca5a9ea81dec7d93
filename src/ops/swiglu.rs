//! SwiGLU and GeGLU. Formula: [`crate::reference::swiglu`].

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::shape::GateActivation;
use crate::sys;
use half::bf16;

/// `out` `[m, i]` = activation(gate) ∘ up of `gate_up` `[m, 2·i]`.
pub fn swiglu(
    gate_up: View<'_, bf16>,
    i: usize,
    activation: GateActivation,
    out: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let (operation, m) = swiglu_shape("swiglu", gate_up.len(), i)?;
    operation.length("out", out.len(), gate_up.len() / 2)?;
    let args = sys::qk_swiglu_args {
        struct_size: struct_size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.address().cast_mut().cast(),
        out: out.address().cast(),
        dout: std::ptr::null(),
        activation: activation_of(activation),
        reserved2: 0,
    };
    // SAFETY: every length was checked; the forward function only reads `gate_up`; `args` is read before the return.
    operation.status(unsafe { call!(qk_swiglu(&args, stream.as_raw())) })
}

/// The value of `enum qk_activation`.
pub(super) fn activation_of(activation: GateActivation) -> u32 {
    match activation {
        GateActivation::Silu => sys::QK_SILU,
        GateActivation::GeluTanh => sys::QK_GELU_TANH,
    }
}

/// The operation and M of rows of gate‖up.
pub(super) fn swiglu_shape(name: &'static str, len: usize, i: usize) -> Result<(Operation, usize)> {
    let m = len.checked_div(2 * i).unwrap_or(0);
    let operation = Operation { name, shape: format!("M {m}, I {i}") };
    operation
        .check(i > 0 && len.is_multiple_of(2 * i), || format!("gate_up has {len} elements, expected rows of 2·{i}"))?;
    Ok((operation, m))
}
