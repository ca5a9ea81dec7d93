//! The low-rank projection of the linear layer's input: `S = bf16(scale · dropout(X) · Aᵀ)`.

use super::linear::{Call, Input, Segment, lora_columns};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// `s` `[m, lora_columns]` = bf16(scale · X · Aᵀ) of every segment; padding columns become zero. The segments' y is not
/// written and may be of no elements.
pub fn lora_down(input: &Input<'_>, segments: &mut [Segment<'_>], s: ViewMut<'_, bf16>, stream: Stream) -> Result<()> {
    let columns = lora_columns(segments);
    let call = Call::without_outputs("lora_down", &Input { s: None, ..*input }, segments)?;
    call.operation.length("s", s.len(), input.m * columns)?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `s`.
    call.operation.status(unsafe { call!(qk_lora_down(&call.linear(), s.address().cast(), stream.as_raw())) })
}
