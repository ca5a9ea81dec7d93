//! The gradients of the LoRA matrices: `dA += Tᵀ · dropout(X)`, `dB += dYᵀ · S`, in f32, over chunks of 256 tokens in order.

use super::linear::{Lora, Weight};
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

/// The same for segments of (n, r), each with one adapter and both gradients wanted, T given: before there is any operand. It grows
/// with m, so that the workspace of the longest batch serves every one.
pub fn workspace_bytes_of(m: usize, k: usize, segments: &[(usize, usize)]) -> Result<usize> {
    // Aligned as every operand has to be; never followed.
    let address = std::ptr::without_provenance_mut::<bf16>(4096);
    let f32s = |len: usize| {
        // SAFETY: made to be measured: the query follows no pointer.
        unsafe { ViewMut::from_raw_parts(address.cast::<f32>(), len) }
    };
    let bf16s = |len: usize| {
        // SAFETY: as above.
        unsafe { View::from_raw_parts(address.cast_const(), len) }
    };
    let columns: usize = segments.iter().map(|&(_, r)| r.next_multiple_of(8)).sum();
    let operand = |&(n, r): &(usize, usize)| SegmentBackward {
        n,
        weight: Weight::Dense(bf16s(n.saturating_mul(k))),
        lora: Some(Lora {
            r,
            scale: 1.0,
            a: bf16s(r.saturating_mul(k)),
            b: bf16s(n.saturating_mul(r)),
            adapters: None,
        }),
        dy: bf16s(m.saturating_mul(n)),
        lddy: n,
    };
    let pair = |&(n, r): &(usize, usize)| PairGradient {
        da: Some(f32s(r.saturating_mul(k))),
        db: Some(f32s(n.saturating_mul(r))),
    };
    let low_rank = bf16s(m.saturating_mul(columns));
    let backward = Backward { m, k, t: Some(low_rank), dropout: None };
    let inputs = ForwardInputs { x: bf16s(m.saturating_mul(k)), ldx: k, s: low_rank };
    let (operands, mut pairs): (Vec<_>, Vec<_>) = segments.iter().map(|s| (operand(s), pair(s))).unzip();
    workspace_bytes(&backward, &operands, &inputs, &mut pairs)
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
