//! The low-rank projection of the linear layer's input: `S = bf16(scale · dropout(X) · Aᵀ)`.

use super::linear::{Call, Input, Segment, lora_columns};
use super::rows::RowsMut;
use crate::device::Stream;
use crate::error::Result;

/// `s` `[m, lora_columns]` = bf16(scale · X · Aᵀ) of every segment; padding columns become zero. The segments' y is not
/// written and may be of no elements.
pub fn lora_down<'a>(
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    s: impl Into<RowsMut<'a>>,
    stream: Stream,
) -> Result<()> {
    let (columns, s) = (lora_columns(segments), s.into());
    let mut call = Call::without_outputs("lora_down", &Input { s: None, ..*input }, segments)?;
    call.input.lds = s.check(&call.operation, "s", input.m, columns)?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `s`.
    call.operation.status(unsafe { call!(qk_lora_down(&call.linear(), s.view.address().cast(), stream.as_raw())) })
}
