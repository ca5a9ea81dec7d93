//! The gradients of magnitudes and of the outputs before them. Formula: [`crate::reference::magnitude_backward`].

use super::check::Operation;
use super::magnitude::{Magnitude, without};
use super::operand::rows;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;
use std::ptr::null_mut;

/// Tokens whose part of a sum over tokens is summed on its own.
const CHUNK: usize = 256;

/// Bytes of workspace of [`magnitude_backward`] where the gradient of the magnitudes is wanted. They grow with m, so
/// that those of the longest batch serve every one.
pub fn workspace_bytes(m: usize, n: usize) -> usize {
    m.div_ceil(CHUNK) * n * size_of::<f32>()
}

/// The gradient of a layer's output, and what it is made over.
#[derive(Debug)]
pub struct OutputGradient<'a> {
    /// M, tokens
    pub m: usize,
    /// N, out features
    pub n: usize,
    /// `[m, n]`, rows `lddy` apart: the gradient of the output with magnitudes
    pub dy: View<'a, bf16>,
    /// Elements from row to row of dy, at least n.
    pub lddy: usize,
    /// `[m, n]`, rows `ldz` apart: the output before its magnitudes, which becomes its gradient
    pub z: ViewMut<'a, bf16>,
    /// Elements from row to row of z, at least n.
    pub ldz: usize,
}

/// `dmagnitude` `[n]` += Σ dy ∘ (z − bias) / norms, of 256 tokens at a time, and z = magnitude / norms ∘ dy. A layer
/// without magnitudes gets z = dy. `workspace` has at least [`workspace_bytes`] where `dmagnitude` is wanted.
pub fn magnitude_backward(
    layer: Option<&Magnitude<'_>>,
    output: OutputGradient<'_>,
    dmagnitude: Option<ViewMut<'_, f32>>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let OutputGradient { m, n, dy, lddy, z, ldz } = output;
    let operation = Operation { name: "magnitude_backward", shape: format!("M {m}, N {n}") };
    rows(&operation, "dy", dy.len(), m, n, lddy)?;
    rows(&operation, "z", z.len(), m, n, ldz)?;
    if let Some(dmagnitude) = &dmagnitude {
        operation.length("the gradient of the magnitudes", dmagnitude.len(), n)?;
        operation.check(layer.is_some(), || "a layer without magnitudes has no gradient of them".into())?;
        let (found, needed) = (workspace.len(), workspace_bytes(m, n));
        operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    }
    let described = match layer {
        Some(layer) => layer.describe(&operation, n)?,
        None => without(&operation, n)?,
    };
    let args = sys::qk_magnitude_args {
        m: operation.dimension("M", m)?,
        y: z.address().cast(),
        ldy: operation.dimension("ldz", ldz)?,
        dy: dy.address().cast(),
        lddy: operation.dimension("lddy", lddy)?,
        dmagnitude: dmagnitude.map_or(null_mut(), |gradient| gradient.address()),
        ..described
    };
    let (room, bytes) = (workspace.address().cast(), workspace.len());
    // SAFETY: every length was checked against the shape, the workspace's too; `args` is read before the return.
    operation.status(unsafe { call!(qk_magnitude_backward(&args, room, bytes, stream.as_raw())) })
}
