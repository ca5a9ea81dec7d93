//! dX of all segments of the linear layer as one product, for the GEMM of a library: `dX = [dY | T] · [deq(W) ; A]`.

use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::linear_product::check_adapters;
use super::operand::{Weight, rows};
use super::product::{Product, Workspace, follows, joins_w, part, sizes, stride, unwritten};
use crate::device::Stream;
use crate::error::Result;
use half::bf16;

/// True if the segments' dY are columns of one matrix, one behind the other.
fn has_one_dy(segments: &[SegmentBackward<'_>]) -> bool {
    let Some(first) = segments.first() else { return true };
    let mut column = 0;
    segments.iter().all(|segment| {
        let begins = first.dy.address().wrapping_add(column);
        column += segment.n;
        segment.lddy == first.lddy && segment.dy.address() == begins
    })
}

/// Elements of workspace that [`linear_dx_product`] needs where dY has no room for T.
pub fn workspace_len(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
    scratch_len(backward, segments, false)
}

fn scratch_len(backward: &Backward<'_>, segments: &[SegmentBackward<'_>], has_room: bool) -> usize {
    let shapes: Vec<(usize, usize)> = segments.iter().map(|of| (of.n, of.lora.map_or(0, |lora| lora.r))).collect();
    let is_dense = segments.first().is_some_and(|segment| matches!(segment.weight, Weight::Dense(_)));
    let columns = lora_columns(segments);
    let (n, _) = sizes(&shapes);
    let t = if backward.t.is_some() || has_room { 0 } else { part(backward.m * columns) };
    let one_dy = has_one_dy(segments);
    let apart = if columns == 0 && !one_dy { part(backward.m * stride(n)) } else { 0 };
    let behind = |first: &SegmentBackward<'_>| follows(backward.t, columns, first.dy, first.lddy, n);
    let in_place = has_room || (one_dy && segments.first().is_some_and(behind));
    workspace_len_of(backward.m, backward.k, &shapes, is_dense, in_place) + apart + t
}

/// Elements of workspace for segments of (n, r) whose T is given and whose dY are columns of one matrix, before there
/// is any operand. They grow with m, so that the workspace of the longest batch serves every one. `has_room`: dY has
/// room for T.
pub fn workspace_len_of(m: usize, k: usize, segments: &[(usize, usize)], is_dense: bool, has_room: bool) -> usize {
    let (n, columns) = sizes(segments);
    let w = if joins_w(segments, columns, is_dense) { part((n + columns) * stride(k)) } else { 0 };
    w + if columns > 0 && !has_room { part(m * stride(n + columns)) } else { 0 }
}

/// Puts the operands together in `workspace`, which has at least [`workspace_len`] elements, or [`workspace_len_of`]
/// where dY has room for T. Adapters by an index, and dropout of a low-rank term, are refused. No dX is written.
pub fn linear_dx_product<'a>(
    backward: &'a Backward<'_>,
    segments: &'a [SegmentBackward<'_>],
    workspace: &'a mut Workspace<'_>,
    stream: Stream,
) -> Result<Product<'a>> {
    let mut call = Call::new("linear_dx_product", backward, segments)?;
    let operation = &call.operation;
    check_adapters(operation, segments.iter().any(|of| of.lora.is_some_and(|lora| lora.adapters.is_some())))?;
    let drops = backward.dropout.is_some_and(|dropout| dropout.p > 0.0) && lora_columns(segments) > 0;
    operation.check(!drops, || "one product of all terms has no dropout of one of them".into())?;
    let (columns, Workspace { scratch, has_room }) = (lora_columns(segments), workspace);
    if let Some(first) = segments.first().filter(|_| *has_room && columns > 0) {
        let n: usize = segments.iter().map(|segment| segment.n).sum();
        rows(operation, "dy with T", first.dy.len(), backward.m, n + columns, first.lddy)?;
        call.input.room = first.dy.address().wrapping_add(n).cast_mut().cast();
    }
    let (found, needed) = (scratch.len(), scratch_len(backward, segments, *has_room));
    operation.check(found >= needed, || format!("the workspace has {found} elements, expected at least {needed}"))?;
    let (linear, bytes, mut product) = (call.linear(), found * size_of::<bf16>(), unwritten());
    // SAFETY: `Call::new` checked every length against the shapes; the workspace's is passed on and was checked too.
    let status =
        unsafe { call!(qk_linear_dx_product(&linear, &mut product, scratch.address().cast(), bytes, stream.as_raw())) };
    operation.status(status)?;
    // SAFETY: the product's operands are those of the call and parts of the workspace, all borrowed for the lifetime.
    Ok(unsafe { Product::of_c(&product, backward.m, true) })
}
