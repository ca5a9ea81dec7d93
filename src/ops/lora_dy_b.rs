//! The low-rank projection of the gradient of the linear layer's output: `T = bf16(scale · dY · B)`.

use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// `t` `[m, lora_columns]` = bf16(scale · dY · B) of every segment; padding columns become zero.
pub fn lora_dy_b(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    t: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let call = Call::new("lora_dy_b", &Backward { t: None, ..*backward }, segments)?;
    call.operation.length("t", t.len(), backward.m * lora_columns(segments))?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `t`.
    call.operation.status(unsafe { call!(qk_lora_dy_b(&call.linear(), t.address().cast(), stream.as_raw())) })
}
