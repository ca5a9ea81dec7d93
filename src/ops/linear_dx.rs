//! The gradient of the fused linear layer with respect to its input:
//! `dX = mask(Σ T_s · A_s) + Σ dY_s · deq(W_s)`, `T_s = bf16(scale · dY_s · B_s)`, f32 sums, dX rounded once.

use super::linear::Path;
use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::operand::{TILE_K, Weight, rows};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// Where dX goes.
#[derive(Debug)]
pub struct InputGradient<'a> {
    /// At least `(m - 1) * lddx + k` elements
    pub dx: ViewMut<'a, bf16>,
    /// Elements from row to row of dx, at least k.
    pub lddx: usize,
    /// dX becomes bf16(dX + gradient), else bf16(gradient).
    pub accumulate: bool,
}

/// Elements of workspace that [`linear_dx`] needs.
pub fn workspace_len(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
    if backward.t.is_some() { 0 } else { backward.m * lora_columns(segments) }
}

/// The kernel that [`linear_dx`] will take.
pub fn path(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> Result<Path> {
    Call::new("linear_dx_path", backward, segments)?;
    let whole = backward.k.is_multiple_of(TILE_K)
        && segments.iter().all(|segment| segment.lddy.is_multiple_of(8) && segment.weight.has_fast_blocks());
    Ok(if whole { Path::TensorCore } else { Path::Generic })
}

/// Writes dX. All weights are NF4, or all dense. `workspace` has at least [`workspace_len`] elements.
pub fn linear_dx(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    gradient: InputGradient<'_>,
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let needed = workspace_len(backward, segments);
    let dense = segments.iter().filter(|segment| matches!(segment.weight, Weight::Dense(_))).count();
    let mut call = Call::new("linear_dx", backward, segments)?;
    let operation = &call.operation;
    operation.check(dense == 0 || dense == segments.len(), || "NF4 and dense segments do not mix".into())?;
    rows(operation, "dx", gradient.dx.len(), backward.m, backward.k, gradient.lddx)?;
    operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    call.input.dx = gradient.dx.address().cast();
    call.input.lddx = call.operation.dimension("lddx", gradient.lddx)?;
    call.input.accumulate = gradient.accumulate.into();
    let (linear, bytes) = (call.linear(), workspace.len() * size_of::<bf16>());
    // SAFETY: `Call::new` checked every length against the shapes, the lines above those of dx and the workspace.
    let status = unsafe {
        match dense {
            0 => call!(qk_linear_dx(&linear, workspace.address().cast(), bytes, stream.as_raw())),
            _ => call!(qk_linear_dx_dense(&linear, workspace.address().cast(), bytes, stream.as_raw())),
        }
    };
    call.operation.status(status)
}
