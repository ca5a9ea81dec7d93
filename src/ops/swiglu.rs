//! SwiGLU and GeGLU. Formula: [`crate::reference::swiglu`].

use super::check::{Operation, struct_size};
use super::rows::{Rows, RowsMut};
use crate::device::Stream;
use crate::error::Result;
use crate::shape::GateActivation;
use crate::sys;

/// `out` `[m, i]` = activation(gate) ∘ up of `gate_up` `[m, 2·i]`.
pub fn swiglu<'a>(
    gate_up: impl Into<Rows<'a>>,
    i: usize,
    activation: GateActivation,
    out: impl Into<RowsMut<'a>>,
    stream: Stream,
) -> Result<()> {
    let (gate_up, out) = (gate_up.into(), out.into());
    let m = gate_up.count(2 * i);
    let operation = swiglu_operation("swiglu", m, i)?;
    let ldgate_up = gate_up.check(&operation, "gate_up", m, 2 * i)?;
    let ldout = out.check(&operation, "out", m, i)?;
    let args = sys::qk_swiglu_args {
        struct_size: struct_size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.view.address().cast_mut().cast(),
        out: out.view.address().cast(),
        dout: std::ptr::null(),
        activation: activation_of(activation),
        reserved2: 0,
        ldgate_up,
        ldout,
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

/// The operation of m rows of gate‖up.
pub(super) fn swiglu_operation(name: &'static str, m: usize, i: usize) -> Result<Operation> {
    let operation = Operation { name, shape: format!("M {m}, I {i}") };
    operation.check(i > 0, || "rows of no elements".into())?;
    Ok(operation)
}
