//! The gradient of the weight of RMSNorm. Formulas: [`crate::reference::rms_norm_gradient`],
//! [`crate::reference::head_norm_gradients`].

use super::check::{Operation, struct_size};
use super::operand::rows;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// Tokens whose part of a sum over tokens is summed on its own.
const CHUNK: usize = 256;

/// Inputs of the gradient: each row has `parts` parts, one behind the other, normalized with one weight.
#[derive(Clone, Copy, Debug)]
pub struct NormGradient<'a> {
    /// M, tokens
    pub m: usize,
    /// 1, or the heads of q or of k
    pub parts: usize,
    /// The first column of the first part.
    pub column: usize,
    /// Elements from row to row of x.
    pub ld: usize,
    /// Elements from row to row of dy.
    pub lddy: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// `[m, lddy]`: the gradient of the norm's output, before any rotation
    pub dy: View<'a, bf16>,
    /// `[m, ld]`: what the norm read, after any rotation
    pub x: View<'a, bf16>,
}

/// Bytes of workspace of [`norm_gradient`] for a weight of `width` elements. They grow with m, so that those of the
/// longest batch serve every one.
pub fn workspace_bytes(m: usize, parts: usize, width: usize) -> usize {
    (m * parts + m.div_ceil(CHUNK) * width) * size_of::<f32>()
}

/// `dweight` += Σ dy ∘ x / rms(x) over tokens and parts, of 256 tokens at a time. `workspace` has at least
/// [`workspace_bytes`].
pub fn norm_gradient(
    norm: &NormGradient<'_>,
    dweight: ViewMut<'_, f32>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let (&NormGradient { m, parts, column, ld, lddy, eps, dy, x }, width) = (norm, dweight.len());
    let shape = format!("M {m}, {parts} parts of {width} from column {column} on, {ld} apart");
    let operation = Operation { name: "norm_gradient", shape };
    let columns = operation.size(&[parts, width])?.saturating_add(column);
    rows(&operation, "dy", dy.len(), m, columns, lddy)?;
    rows(&operation, "x", x.len(), m, columns, ld)?;
    let (found, needed) = (workspace.len(), workspace_bytes(m, parts, width));
    operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    let args = sys::qk_norm_gradient_args {
        struct_size: struct_size::<sys::qk_norm_gradient_args>(),
        eps,
        m: operation.dimension("M", m)?,
        parts: operation.dimension("the number of parts", parts)?,
        width: operation.dimension("the width", width)?,
        ld: operation.dimension("ld", ld)?,
        column: operation.dimension("the first column", column)?,
        dy: dy.address().cast(),
        x: x.address().cast(),
        dweight: dweight.address(),
        lddy: operation.dimension("lddy", lddy)?,
    };
    // SAFETY: every length was checked against the shape, the workspace's too; `args` is read before the return.
    operation.status(unsafe { call!(qk_norm_gradient(&args, workspace.address().cast(), found, stream.as_raw())) })
}
