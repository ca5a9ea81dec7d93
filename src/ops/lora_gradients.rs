//! The gradients of the LoRA matrices: `dA += Tᵀ · dropout(X)`, `dB += dYᵀ · S`, in f32, over chunks of 256 tokens in
//! order.

use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::operand::rows;
use super::rows::Rows;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use half::bf16;

/// The inputs of the gradients, beside T and dY.
#[derive(Clone, Copy, Debug)]
pub struct ForwardInputs<'a> {
    /// At least `(m - 1) * ldx + k` elements
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[m, lora_columns]` of [`super::lora_down()`]
    pub s: Rows<'a>,
}

/// Destinations of the gradients of one segment's pair, which are added to; none: not wanted.
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
    call("lora_gradients_workspace_size", backward, segments, inputs, gradients)?;
    Ok(workspace_of(backward, segments, inputs, gradients))
}

/// Bytes of workspace for segments of (n, r), each with one adapter and both gradients wanted, T given: before there is
/// any operand. They grow with m, so that the workspace of the longest batch serves every one.
pub fn workspace_bytes_of(m: usize, k: usize, segments: &[(usize, usize)]) -> usize {
    let ranks = |r: usize| r.next_multiple_of(8);
    let columns = segments.iter().map(|&(_, r)| ranks(r)).sum();
    let da = (columns > 0).then_some(Product { ld: k, columns: k, ranks: columns, adapters: 1 });
    let db = segments.iter().map(|&(n, r)| Product { ld: n, columns: n, ranks: ranks(r), adapters: 1 });
    partial_bytes(m, db.chain(da))
}

/// A sum over tokens: `[m, ranks]`ᵀ · `[m, columns]`, for each of the adapters.
pub(super) struct Product {
    pub ld: usize,
    pub columns: usize,
    pub ranks: usize,
    pub adapters: usize,
}

/// Bytes for T, if it is computed inside, and for the sums of chunks of tokens.
fn workspace_of(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    inputs: &ForwardInputs<'_>,
    gradients: &[PairGradient<'_>],
) -> usize {
    let Backward { m, k, t, .. } = *backward;
    let (mut products, mut wants_da) = (Vec::new(), false);
    let pairs = || segments.iter().zip(gradients).filter_map(|(segment, pair)| Some((segment, segment.lora?, pair)));
    let several = pairs().any(|(_, lora, _)| lora.adapters.is_some());
    for (segment, lora, pair) in pairs() {
        let (ranks, adapters) = (lora.r.next_multiple_of(8), lora.adapters.map_or(1, |adapters| adapters.count));
        wants_da |= pair.da.is_some();
        if several && pair.da.is_some() {
            products.push(Product { ld: inputs.ldx, columns: k, ranks, adapters });
        }
        if pair.db.is_some() {
            products.push(Product { ld: segment.lddy, columns: segment.n, ranks, adapters });
        }
    }
    let columns = lora_columns(segments);
    // X is read once for all segments, unless tokens differ by adapter.
    if wants_da && !several {
        products.push(Product { ld: inputs.ldx, columns: k, ranks: columns, adapters: 1 });
    }
    let t_bytes = if wants_da && t.is_none() { m * columns * size_of::<bf16>() } else { 0 };
    t_bytes + partial_bytes(m, products.into_iter())
}

/// Bytes for the sums of chunks of tokens: none where the matrices are large enough to keep a GPU busy by themselves.
pub(super) fn partial_bytes(m: usize, products: impl Iterator<Item = Product>) -> usize {
    /// Tokens of a chunk, columns of a block.
    const CHUNK: usize = 256;
    const COLUMNS: usize = 128;
    /// Below this many blocks a larger card has idle multiprocessors; at twice that they are busy.
    const FEW: usize = 96;
    // The generic kernel, which takes the others, needs no workspace.
    let products: Vec<_> = products.filter(|p| p.ld.is_multiple_of(8) && p.columns.is_multiple_of(8)).collect();
    let rank_tile = match products.iter().map(|product| product.ranks).max().unwrap_or(0) {
        ..=16 => 16,
        17..=32 => 32,
        _ => 64,
    };
    let tiles_of = |p: &Product| p.columns.div_ceil(COLUMNS) * p.ranks.div_ceil(rank_tile) * p.adapters;
    let (tiles, chunks) = (products.iter().map(tiles_of).sum::<usize>(), m.div_ceil(CHUNK));
    if m == 0 || tiles == 0 || tiles >= FEW {
        return 0;
    }
    let groups = (2 * FEW).div_ceil(tiles).min(chunks).min(65_535);
    let groups = chunks.div_ceil(chunks.div_ceil(groups));
    if groups > 1 { tiles * chunks * rank_tile * COLUMNS * size_of::<f32>() } else { 0 }
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
    let (found, needed) = (workspace.len(), workspace_of(backward, segments, inputs, gradients));
    call.operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    // SAFETY: `call` checked every length against the shapes, and the line above that of the workspace.
    let status =
        unsafe { call!(qk_lora_gradients(&call.linear(), workspace.address().cast(), found, stream.as_raw())) };
    call.operation.status(status)
}

pub(super) fn call(
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
    call.input.lds = inputs.s.check(operation, "s", backward.m, lora_columns(segments))?;
    call.input.x = inputs.x.address().cast();
    call.input.ldx = operation.dimension("ldx", inputs.ldx)?;
    call.input.s = inputs.s.view.address().cast();
    for (i, (segment, gradient)) in segments.iter().zip(gradients).enumerate() {
        let Some(lora) = &segment.lora else {
            operation.check(gradient.da.is_none() && gradient.db.is_none(), || {
                format!("segment {i} has no LoRA pair, and so no gradient of one")
            })?;
            continue;
        };
        let count = lora.adapters.map_or(1, |adapters| adapters.count);
        if let Some(da) = &gradient.da {
            operation.length("dA", da.len(), operation.size(&[count, lora.r, backward.k])?)?;
            call.segments[i].da = da.address();
        }
        if let Some(db) = &gradient.db {
            operation.length("dB", db.len(), operation.size(&[count, segment.n, lora.r])?)?;
            call.segments[i].db = db.address();
        }
    }
    Ok(call)
}
