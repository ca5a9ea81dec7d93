//! The forward pass of all segments of the linear layer as one product, for the GEMM of a library:
//! `Y = [X | S] · [deq(W) | B]ᵀ (+ bias)`, B of a segment in its rows and in its columns of S, among zeros.

pub use super::product::Product;

use super::check::Operation;
use super::linear::{Call, Input, Segment, Weight, lora_columns};
use super::operand::rows;
use super::product::{Workspace, follows, joins_w, part, sizes, stride, unwritten};
use crate::device::Stream;
use crate::error::Result;
use half::bf16;

/// Elements of workspace that [`linear_product`] needs where X has no room for S.
pub fn workspace_len(input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    scratch_len(input, segments, false)
}

fn scratch_len(input: &Input<'_>, segments: &[Segment<'_>], has_room: bool) -> usize {
    let shapes: Vec<(usize, usize)> = segments.iter().map(|of| (of.n, of.lora.map_or(0, |lora| lora.r))).collect();
    let is_dense = segments.first().is_some_and(|segment| matches!(segment.weight, Weight::Dense(_)));
    let has_bias = segments.iter().any(|segment| segment.bias.is_some());
    let columns = lora_columns(segments);
    let s = if input.s.is_some() || has_room { 0 } else { part(input.m * columns) };
    let in_place = has_room || follows(input.s, columns, input.x, input.ldx, input.k);
    workspace_len_of(input.m, input.k, &shapes, is_dense, has_bias, in_place) + s
}

/// Elements of workspace for segments of (n, r) whose S is given, before there is any operand. They grow with m, so
/// that the workspace of the longest batch serves every one. `has_room`: X has room for S.
pub fn workspace_len_of(
    m: usize,
    k: usize,
    segments: &[(usize, usize)],
    is_dense: bool,
    has_bias: bool,
    has_room: bool,
) -> usize {
    let (n, columns) = sizes(segments);
    let width = stride(k + columns);
    let w = if joins_w(segments, columns, is_dense) { part(n * width) } else { 0 };
    let x = if columns > 0 && !has_room { part(m * width) } else { 0 };
    w + x + if has_bias { part(n) } else { 0 }
}

/// Puts the operands together in `workspace`, which has at least [`workspace_len`] elements, or [`workspace_len_of`]
/// where X has room for S. Adapters by an index are refused. No y is written.
pub fn linear_product<'a>(
    input: &'a Input<'_>,
    segments: &'a [Segment<'_>],
    workspace: &'a mut Workspace<'_>,
    stream: Stream,
) -> Result<Product<'a>> {
    let mut call = Call::without_outputs("linear_product", input, segments)?;
    check_adapters(&call.operation, segments.iter().any(|of| of.lora.is_some_and(|lora| lora.adapters.is_some())))?;
    let (columns, Workspace { scratch, has_room }) = (lora_columns(segments), workspace);
    if *has_room && columns > 0 {
        rows(&call.operation, "x with S", input.x.len(), input.m, input.k + columns, input.ldx)?;
        call.input.room = input.x.address().wrapping_add(input.k).cast_mut().cast();
    }
    let (found, needed) = (scratch.len(), scratch_len(input, segments, *has_room));
    call.operation
        .check(found >= needed, || format!("the workspace has {found} elements, expected at least {needed}"))?;
    let (linear, bytes, mut product) = (call.linear(), found * size_of::<bf16>(), unwritten());
    // SAFETY: `Call` checked every length against the shapes; the workspace's is passed on and was checked too.
    let status =
        unsafe { call!(qk_linear_product(&linear, &mut product, scratch.address().cast(), bytes, stream.as_raw())) };
    call.operation.status(status)?;
    // SAFETY: the product's operands are those of the call and parts of the workspace, all borrowed for the lifetime.
    Ok(unsafe { Product::of_c(&product, input.m, false) })
}

/// Tokens of one product share a weight.
pub(super) fn check_adapters(operation: &Operation, several: bool) -> Result<()> {
    operation.check(!several, || "one product for all tokens takes no adapters by an index".into())
}
