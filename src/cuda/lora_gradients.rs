//! The gradients of the LoRA matrices: `dA += Tᵀ · dropout(X)`, `dB += dYᵀ · S`, in f32, over chunks of 256 tokens in order.

use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::operand::{rows, size};
use super::{Result, Stream, View, ViewMut, sys};
use half::bf16;

/// What the gradients are made of, beside T and dY.
#[derive(Clone, Copy, Debug)]
pub struct ForwardInputs<'a> {
    /// At least `(m - 1) * ldx + k` elements
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[m, lora_columns]` of [`super::linear::lora_down`]
    pub s: View<'a, bf16>,
}

/// Where the gradients of one segment's pair are added; none: not wanted.
#[derive(Debug, Default)]
pub struct PairGradient<'a> {
    /// `[r, k]`, or `[count, r, k]` with adapters
    pub da: Option<ViewMut<'a, f32>>,
    /// `[n, r]`, or `[count, n, r]` with adapters
    pub db: Option<ViewMut<'a, f32>>,
}

/// Bytes of workspace that [`lora_gradients`] needs.
pub fn workspace_bytes(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    inputs: &ForwardInputs<'_>,
    gradients: &mut [PairGradient<'_>],
) -> Result<usize> {
    workspace_of(&call("lora_gradients_workspace_size", backward, segments, inputs, gradients)?)
}

/// Adds to the `gradients` of every segment. `workspace` has at least [`workspace_bytes`].
pub fn lora_gradients(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    inputs: &ForwardInputs<'_>,
    gradients: &mut [PairGradient<'_>],
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let call = call("lora_gradients", backward, segments, inputs, gradients)?;
    let (found, needed) = (workspace.len(), workspace_of(&call)?);
    call.operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    // SAFETY: `call` checked every length against the shapes, and the line above that of the workspace.
    let status = unsafe { sys::qk_lora_gradients(&call.linear(), workspace.address().cast(), found, stream.0) };
    call.operation.status(status)
}

fn workspace_of(call: &Call) -> Result<usize> {
    let mut bytes = 0;
    // SAFETY: reads the structs only, which `call` holds.
    call.operation.status(unsafe { sys::qk_lora_gradients_workspace_size(&call.linear(), &mut bytes) })?;
    Ok(bytes)
}

fn call(
    name: &'static str,
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    inputs: &ForwardInputs<'_>,
    gradients: &mut [PairGradient<'_>],
) -> Result<Call> {
    let mut call = Call::new(name, backward, segments)?;
    let operation = &call.operation;
    operation.check(gradients.len() == segments.len(), || {
        format!("{} pairs of gradients, expected one for each of {} segments", gradients.len(), segments.len())
    })?;
    rows(operation, "x", inputs.x.len(), backward.m, backward.k, inputs.ldx)?;
    operation.length("s", inputs.s.len(), size(operation, &[backward.m, lora_columns(segments)])?)?;
    call.input.x = inputs.x.address().cast();
    call.input.ldx = operation.dimension("ldx", inputs.ldx)?;
    call.input.s = inputs.s.address().cast();
    for (i, (segment, gradient)) in segments.iter().zip(gradients).enumerate() {
        let Some(lora) = &segment.lora else {
            operation.check(gradient.da.is_none() && gradient.db.is_none(), || {
                format!("segment {i} has no LoRA pair, and so no gradient of one")
            })?;
            continue;
        };
        let count = lora.adapters.map_or(1, |adapters| adapters.count);
        if let Some(da) = &gradient.da {
            operation.length("dA", da.len(), size(operation, &[count, lora.r, backward.k])?)?;
            call.segments[i].da = da.address();
        }
        if let Some(db) = &gradient.db {
            operation.length("dB", db.len(), size(operation, &[count, segment.n, lora.r])?)?;
            call.segments[i].db = db.address();
        }
    }
    Ok(call)
}
