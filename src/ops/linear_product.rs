//! The forward pass of all segments of the linear layer as one product, for the GEMM of a library:
//! `Y = [X | S] · [deq(W) | B]ᵀ (+ bias)`, B of a segment in its rows and in its columns of S, among zeros.

pub use super::product::Product;

use super::check::Operation;
use super::linear::{Call, Input, Segment, Weight, lora_columns};
use super::product::{joins_w, part, sizes, stride, unwritten};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// Elements of workspace that [`linear_product`] needs.
pub fn workspace_len(input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    let shapes: Vec<(usize, usize)> = segments.iter().map(|of| (of.n, of.lora.map_or(0, |lora| lora.r))).collect();
    let is_dense = segments.first().is_some_and(|segment| matches!(segment.weight, Weight::Dense(_)));
    let has_bias = segments.iter().any(|segment| segment.bias.is_some());
    let s = if input.s.is_some() { 0 } else { part(input.m * lora_columns(segments)) };
    workspace_len_of(input.m, input.k, &shapes, is_dense, has_bias) + s
}

/// Elements of workspace for segments of (n, r) whose S is given, before there is any operand. They grow with m, so
/// that the workspace of the longest batch serves every one.
pub fn workspace_len_of(m: usize, k: usize, segments: &[(usize, usize)], is_dense: bool, has_bias: bool) -> usize {
    let (n, columns) = sizes(segments);
    let width = stride(k + columns);
    let w = if joins_w(segments, columns, is_dense) { part(n * width) } else { 0 };
    let x = if columns > 0 { part(m * width) } else { 0 };
    w + x + if has_bias { part(n) } else { 0 }
}

/// Puts the operands together in `workspace`, which has at least [`workspace_len`] elements. Adapters by an index are
/// refused. No y is written.
pub fn linear_product<'a>(
    input: &'a Input<'_>,
    segments: &'a [Segment<'_>],
    workspace: &'a mut ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<Product<'a>> {
    let call = Call::without_outputs("linear_product", input, segments)?;
    check_adapters(&call.operation, segments.iter().any(|of| of.lora.is_some_and(|lora| lora.adapters.is_some())))?;
    let (found, needed) = (workspace.len(), workspace_len(input, segments));
    call.operation
        .check(found >= needed, || format!("the workspace has {found} elements, expected at least {needed}"))?;
    let (linear, bytes, mut product) = (call.linear(), found * size_of::<bf16>(), unwritten());
    // SAFETY: `Call` checked every length against the shapes; the workspace's is passed on and was checked too.
    let status =
        unsafe { call!(qk_linear_product(&linear, &mut product, workspace.address().cast(), bytes, stream.as_raw())) };
    call.operation.status(status)?;
    // SAFETY: the product's operands are those of the call and parts of the workspace, all borrowed for the lifetime.
    Ok(unsafe { Product::of_c(&product, input.m, false) })
}

/// Tokens of one product share a weight.
pub(super) fn check_adapters(operation: &Operation, several: bool) -> Result<()> {
    operation.check(!several, || "one product for all tokens takes no adapters by an index".into())
}
