//! The gradient of causal attention. Formula: [`crate::reference::attention_backward`].

use super::attention::{Attention, check};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use half::bf16;

/// Elements of workspace that [`attention_backward`] needs.
pub fn workspace_len(input: &Attention<'_>) -> usize {
    input.m * input.shape.heads
}

/// `dqkv` `[m, qkv]` from `dout`, `out` `[m, H·D]` and `lse` `[m, H]`.
pub fn attention_backward(
    input: &Attention<'_>,
    dout: View<'_, bf16>,
    out: View<'_, bf16>,
    lse: View<'_, f32>,
    dqkv: ViewMut<'_, bf16>,
    workspace: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    let (operation, mut args) = check("attention_backward", input)?;
    operation.length("dout", dout.len(), input.m * input.shape.out())?;
    operation.length("out", out.len(), input.m * input.shape.out())?;
    operation.length("lse", lse.len(), input.m * input.shape.heads)?;
    operation.length("dqkv", dqkv.len(), input.m * input.shape.qkv())?;
    let needed = workspace_len(input);
    operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    (args.out, args.lse) = (out.address().cast_mut().cast(), lse.address().cast_mut());
    (args.dout, args.dqkv) = (dout.address().cast(), dqkv.address().cast());
    let bytes = workspace.len() * size_of::<f32>();
    // SAFETY: as in `attention`, whose `out` and `lse` are only read.
    operation.status(unsafe { call!(qk_attention_backward(&args, workspace.address().cast(), bytes, stream.as_raw())) })
}
