//! The fused linear layer: `Y = X · deq(W)ᵀ + bf16(scale · X · Aᵀ) · Bᵀ (+ bias)`, f32 sums, Y rounded once.

use super::linear::{Call, Input, Path, Segment, Weight, lora_columns};
use super::operand::TILE_K;
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// Rows at most of the kernel for few tokens.
const SMALL_M: usize = 16;

/// Elements of workspace that [`linear_forward`] needs.
pub fn workspace_len(input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    if input.s.is_some() { 0 } else { input.m * lora_columns(segments) }
}

/// The kernel that [`linear_forward`] will take.
pub fn path(input: &Input<'_>, segments: &mut [Segment<'_>]) -> Result<Path> {
    Call::new("linear_path", input, segments)?;
    let whole = input.k.is_multiple_of(TILE_K)
        && input.ldx.is_multiple_of(8)
        && segments.iter().all(|segment| segment.weight.has_fast_blocks());
    Ok(match whole {
        false => Path::Generic,
        true if input.m <= SMALL_M => Path::SmallM,
        true => Path::TensorCore,
    })
}

/// Writes every segment's y. All weights are NF4, or all dense. `workspace` has at least [`workspace_len`] elements.
pub fn linear_forward(
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let needed = workspace_len(input, segments);
    let dense = segments.iter().filter(|segment| matches!(segment.weight, Weight::Dense(_))).count();
    let call = Call::new("linear_forward", input, segments)?;
    call.operation.check(dense == 0 || dense == call.segments.len(), || "NF4 and dense segments do not mix".into())?;
    call.operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    let (linear, bytes) = (call.linear(), workspace.len() * size_of::<bf16>());
    // SAFETY: `Call::new` checked every length against the shapes; the workspace's is passed on and was checked too.
    let status = unsafe {
        match dense {
            0 => call!(qk_linear_forward(&linear, workspace.address().cast(), bytes, stream.as_raw())),
            _ => call!(qk_linear_forward_dense(&linear, workspace.address().cast(), bytes, stream.as_raw())),
        }
    };
    call.operation.status(status)
}
