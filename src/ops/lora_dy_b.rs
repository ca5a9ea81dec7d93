//! The low-rank projection of the gradient of the linear layer's output: `T = bf16(scale · dY · B)`.

use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::rows::RowsMut;
use crate::device::Stream;
use crate::error::Result;

/// `t` `[m, lora_columns]` = bf16(scale · dY · B) of every segment; padding columns become zero.
pub fn lora_dy_b<'a>(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    t: impl Into<RowsMut<'a>>,
    stream: Stream,
) -> Result<()> {
    let (columns, t) = (lora_columns(segments), t.into());
    let mut call = Call::new("lora_dy_b", &Backward { t: None, ..*backward }, segments)?;
    call.input.ldt = t.check(&call.operation, "t", backward.m, columns)?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `t`.
    call.operation.status(unsafe { call!(qk_lora_dy_b(&call.linear(), t.view.address().cast(), stream.as_raw())) })
}
