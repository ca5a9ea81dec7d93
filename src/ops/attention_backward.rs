//! The gradient of causal attention. Formula: [`crate::reference::attention_backward`].

use super::attention::{Attention, check};
use super::rows::{Rows, RowsMut};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::shape::AttentionShape;
use half::bf16;

/// Elements of workspace that [`attention_backward`] needs.
pub fn workspace_len(input: &Attention<'_>) -> usize {
    workspace_len_of(input.m, &input.shape)
}

/// Elements of workspace for `m` tokens of this shape, before there is any operand: two for each query, and partial
/// sums of dK and dV where tiles of 128 keys (64 if D is above 128) are fewer than blocks should be. They grow with m,
/// so that the workspace of the longest batch serves every one.
pub fn workspace_len_of(m: usize, shape: &AttentionShape) -> usize {
    const BLOCKS: usize = 256;
    let keys_of_a_tile = if shape.head_dim > 128 { 64 } else { 128 };
    let group = shape.heads.checked_div(shape.kv_heads).unwrap_or(0);
    let blocks = |tiles: usize| {
        let keys = tiles * shape.kv_heads;
        let splits = BLOCKS.div_ceil(keys.max(1)).min(group);
        if splits > 1 { splits * keys } else { 0 }
    };
    let most = (1..=m.div_ceil(keys_of_a_tile).min(BLOCKS)).map(blocks).max().unwrap_or(0);
    2 * m.next_multiple_of(32) * shape.heads + most * keys_of_a_tile * 2 * shape.head_dim
}

/// `dqkv` `[m, qkv]` from `dout`, `out` `[m, H·D]` and `lse` `[m, H]`.
pub fn attention_backward<'a>(
    input: &Attention<'_>,
    dout: View<'_, bf16>,
    out: impl Into<Rows<'a>>,
    lse: View<'_, f32>,
    dqkv: impl Into<RowsMut<'a>>,
    workspace: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    let ((operation, mut args), out, dqkv) = (check("attention_backward", input)?, out.into(), dqkv.into());
    operation.length("dout", dout.len(), input.m * input.shape.out())?;
    args.ldout = out.check(&operation, "out", input.m, input.shape.out())?;
    operation.length("lse", lse.len(), input.m * input.shape.heads)?;
    args.lddqkv = dqkv.check(&operation, "dqkv", input.m, input.shape.qkv())?;
    let needed = workspace_len(input);
    operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    (args.out, args.lse) = (out.view.address().cast_mut().cast(), lse.address().cast_mut());
    (args.dout, args.dqkv) = (dout.address().cast(), dqkv.view.address().cast());
    let bytes = workspace.len() * size_of::<f32>();
    // SAFETY: as in `attention`, whose `out` and `lse` are only read.
    operation.status(unsafe { call!(qk_attention_backward(&args, workspace.address().cast(), bytes, stream.as_raw())) })
}
