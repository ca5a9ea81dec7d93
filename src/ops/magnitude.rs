//! Magnitudes of a linear layer's outputs (DoRA). Formula: [`crate::reference::magnitude`].

use super::check::{Operation, struct_size};
use super::operand::rows;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;
use std::ptr::{null, null_mut};

/// The magnitudes of a layer with n outputs.
#[derive(Clone, Copy, Debug)]
pub struct Magnitude<'a> {
    /// `[n]`
    pub magnitude: View<'a, f32>,
    /// `[n]`: of [`super::magnitude_norms()`]. Where one is 0, output and gradients are as if the magnitude were 0.
    pub norms: View<'a, f32>,
    /// `[n]`: what the layer adds after its products
    pub bias: Option<View<'a, bf16>>,
}

impl Magnitude<'_> {
    /// The fields of one layer, with lengths checked.
    pub(super) fn describe(&self, operation: &Operation, n: usize) -> Result<sys::qk_magnitude_args> {
        operation.length("the magnitudes", self.magnitude.len(), n)?;
        operation.length("the norms", self.norms.len(), n)?;
        if let Some(bias) = &self.bias {
            operation.length("the bias", bias.len(), n)?;
        }
        Ok(sys::qk_magnitude_args {
            magnitude: self.magnitude.address(),
            norms: self.norms.address(),
            bias: self.bias.map_or(null(), |bias| bias.address().cast()),
            ..without(operation, n)?
        })
    }
}

/// The fields of a layer that has no magnitudes, and no operand yet.
pub(super) fn without(operation: &Operation, n: usize) -> Result<sys::qk_magnitude_args> {
    Ok(sys::qk_magnitude_args {
        struct_size: struct_size::<sys::qk_magnitude_args>(),
        reserved: 0,
        m: 0,
        n: operation.dimension("N", n)?,
        magnitude: null(),
        norms: null(),
        bias: null(),
        y: null_mut(),
        ldy: 0,
        dy: null(),
        lddy: 0,
        dmagnitude: null_mut(),
    })
}

/// `y` `[m, n]`, rows `ldy` apart, the layer's output with its bias, becomes magnitude / norms ∘ (y − bias) + bias.
pub fn magnitude(layer: &Magnitude<'_>, m: usize, y: ViewMut<'_, bf16>, ldy: usize, stream: Stream) -> Result<()> {
    let n = layer.magnitude.len();
    let operation = Operation { name: "magnitude", shape: format!("M {m}, N {n}") };
    rows(&operation, "y", y.len(), m, n, ldy)?;
    let args = sys::qk_magnitude_args {
        m: operation.dimension("M", m)?,
        y: y.address().cast(),
        ldy: operation.dimension("ldy", ldy)?,
        ..layer.describe(&operation, n)?
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_magnitude(&args, stream.as_raw())) })
}
