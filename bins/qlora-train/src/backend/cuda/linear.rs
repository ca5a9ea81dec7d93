//! Frozen linear layers with a low-rank term.

use super::dispatch::Layers;
use super::magnitude;
use super::operands::{CudaBuffer, CudaVector, CudaWeight};
use super::pinned::PinnedWeights;
use super::{Cuda, Paths};
use crate::backend::{LinearGroup, Lora, Segment as GroupSegment};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Stream, View, ViewMut};
use qlora_kernels::ops::dispatch::{self, Dispatch, Row, Workspace};
use qlora_kernels::ops::linear::{self, Dropout, Input, Segment};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::lora_gradients::{ForwardInputs, PairGradient, lora_gradients, workspace_bytes_of};
use qlora_kernels::ops::{self, linear_forward};
use qlora_kernels::rng;
use std::ops::Range;

type Group = LinearGroup<Cuda>;

/// The group in numbers.
pub fn layers(group: &Group) -> Layers<'_> {
    let rank = |lora: &Lora<Cuda>| lora.r;
    Layers {
        label: &group.label,
        k: group.k,
        segments: group.segments.iter().map(|of| (of.n, of.lora.as_ref().map_or(0, rank))).collect(),
        is_dense: matches!(group.segments[0].weight, CudaWeight::Dense(_)),
        has_bias: group.segments.iter().any(|segment| segment.bias.is_some()),
    }
}

/// The group's low-rank columns: each rank is rounded up to 8.
pub fn columns(group: &Group) -> usize {
    group.segments.iter().filter_map(|s| s.lora.as_ref()).map(|lora| lora.r.next_multiple_of(8)).sum()
}

/// `index`: `[m]`, the adapter of each token, where layers have several pairs.
fn lora<'a>(lora: &'a Lora<Cuda>, index: Option<View<'a, i32>>) -> linear::Lora<'a> {
    let (a, b) = (lora.a.working.view(), lora.b.working.view());
    let adapters = lora.several.as_ref().zip(index).map(|(several, index)| linear::Adapters {
        count: several.count,
        index,
        scales: Some(several.scales.f32()),
    });
    linear::Lora { r: lora.r, scale: lora.scale, a, b, adapters }
}

/// Batches are numbered by their draw, so every one begins with token 0.
/// `step_on_device`: where the kernels find the step, in place of the mask's own.
pub fn mask<'a>(
    dropout: Option<rng::Dropout>,
    tokens: &Range<usize>,
    step_on_device: Option<View<'a, u32>>,
) -> Option<Dropout<'a>> {
    let first_token = tokens.start as u64;
    dropout.map(|d| Dropout {
        p: d.p(),
        seed: d.seed,
        dropout_id: d.dropout_id,
        dropout_step: d.dropout_step,
        first_token,
        step_on_device,
    })
}

/// The segments with their columns of `y`, whose rows are `ldy` apart; `y` has no elements where it is not written.
fn segments<'a>(
    group: &'a Group,
    pinned: &'a PinnedWeights,
    index: Option<View<'a, i32>>,
    (y, ldy): (ViewMut<'a, bf16>, usize),
) -> Vec<Segment<'a>> {
    let widths: Vec<usize> = group.segments.iter().map(|segment| segment.n).collect();
    let outputs = y.columns(&widths);
    let segment = |(segment, y): (&'a GroupSegment<Cuda>, ViewMut<'a, bf16>)| Segment {
        n: segment.n,
        weight: segment.weight.view(pinned),
        lora: segment.lora.as_ref().map(|of_segment| lora(of_segment, index)),
        bias: segment.bias.as_ref().map(CudaVector::bf16),
        y,
        ldy,
    };
    group.segments.iter().zip(outputs).map(segment).collect()
}

/// The segments with their columns of `dy`, whose rows are `lddy` apart.
fn segments_backward<'a>(
    group: &'a Group,
    pinned: &'a PinnedWeights,
    (dy, lddy): (View<'a, bf16>, usize),
) -> Vec<SegmentBackward<'a>> {
    let mut column = 0;
    let mut segments = Vec::with_capacity(group.segments.len());
    for segment in &group.segments {
        segments.push(SegmentBackward {
            n: segment.n,
            weight: segment.weight.view(pinned),
            lora: segment.lora.as_ref().map(|of_segment| lora(of_segment, None)),
            dy: dy.skip(column),
            lddy,
        });
        column += segment.n;
    }
    segments
}

impl Cuda {
    /// Room for the sums of this group's gradients over the longest tile.
    pub(super) fn reserve_gradients(&mut self, group: &Group) -> Result<()> {
        let pairs: Vec<(usize, usize)> =
            group.segments.iter().filter_map(|s| s.lora.as_ref().map(|lora| (s.n, lora.r))).collect();
        if !self.dims.training || pairs.is_empty() {
            return Ok(());
        }
        let of_pairs = workspace_bytes_of(self.dims.tile, group.k, &pairs);
        self.reserve_sums(of_pairs.max(magnitude::gradient_bytes(group, self.dims.tile)))
    }

    /// So many bytes at least for sums over tokens.
    pub(super) fn reserve_sums(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.gradients.len() {
            self.gradients = self.memory.alloc("workspace", 0)?;
            self.gradients = self.memory.alloc("workspace", bytes)?;
        }
        Ok(())
    }
}

/// `unused` is an empty view: the kernel writes no output of the linear layers.
pub fn lora_down(
    tokens: &Range<usize>,
    x: &CudaBuffer,
    group: &Group,
    pinned: &PinnedWeights,
    dropout: Option<Dropout<'_>>,
    index: Option<View<'_, i32>>,
    s: &mut CudaBuffer,
    unused: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let (m, k) = (tokens.len(), group.k);
    let (x, ldx) = x.strided(tokens)?;
    let input = Input { m, k, x, ldx, s: None, dropout };
    let mut segments = segments(group, pinned, index, (unused, group.n()));
    Ok(ops::lora_down(&input, &mut segments, s.rows_mut(tokens)?, stream)?)
}

/// The workspace of a product of `x`, or of `dy` in dX: where there is room in their rows, S or T goes there.
fn scratch<'a>(workspace: ViewMut<'a, bf16>, rows: &CudaBuffer, group: &Group) -> Workspace<'a> {
    if rows.has_room(columns(group)) { Workspace::with_room(workspace) } else { workspace.into() }
}

/// By a row of the dispatch table, with its workspace; S has been computed. `paths` gets the fused kernel that was
/// taken.
pub fn forward(
    tokens: &Range<usize>,
    x: &CudaBuffer,
    s: Option<&CudaBuffer>,
    group: &Group,
    pinned: &PinnedWeights,
    index: Option<View<'_, i32>>,
    y: &mut CudaBuffer,
    (row, workspace): (Dispatch<'_>, ViewMut<'_, bf16>),
    stream: Stream,
    paths: &mut Paths,
) -> Result<()> {
    let (m, k) = (tokens.len(), group.k);
    let s = s.map(|s| s.apart(tokens)).transpose()?;
    let workspace = scratch(workspace, x, group);
    let (x, ldx) = x.strided(tokens)?;
    let input = Input { m, k, x, ldx, s, dropout: None };
    let mut segments = segments(group, pinned, index, y.strided_mut(tokens)?);
    if let Some(paths) = paths.as_mut().filter(|_| row.row() == Row::Fused) {
        paths.push(linear_forward::path(&input, &mut segments)?);
    }
    Ok(dispatch::forward(row, &input, &mut segments, workspace, stream)?)
}

pub fn lora_dy_b(
    tokens: &Range<usize>,
    dy: &CudaBuffer,
    group: &Group,
    pinned: &PinnedWeights,
    t: &mut CudaBuffer,
    stream: Stream,
) -> Result<()> {
    let backward = Backward { m: tokens.len(), k: group.k, t: None, dropout: None };
    let segments = segments_backward(group, pinned, dy.strided(tokens)?);
    Ok(ops::lora_dy_b(&backward, &segments, t.rows_mut(tokens)?, stream)?)
}

/// By a row of the dispatch table, with its workspace; T has been computed.
pub fn dx(
    tokens: &Range<usize>,
    dy: &CudaBuffer,
    t: Option<&CudaBuffer>,
    group: &Group,
    pinned: &PinnedWeights,
    dropout: Option<Dropout<'_>>,
    accumulate: bool,
    dx: &mut CudaBuffer,
    (row, workspace): (Dispatch<'_>, ViewMut<'_, bf16>),
    stream: Stream,
) -> Result<()> {
    let (m, k) = (tokens.len(), group.k);
    let t = t.map(|t| t.apart(tokens)).transpose()?;
    let workspace = scratch(workspace, dy, group);
    let backward = Backward { m, k, t, dropout };
    let segments = segments_backward(group, pinned, dy.strided(tokens)?);
    let (dx, lddx) = dx.strided_mut(tokens)?;
    let gradient = InputGradient { dx, lddx, accumulate };
    Ok(dispatch::dx(row, &backward, &segments, gradient, workspace, stream)?)
}

/// `x`, `dy`, `s` and `t` are the operands, in this order.
pub fn gradients(
    tokens: &Range<usize>,
    [x, dy, s, t]: [&CudaBuffer; 4],
    group: &mut Group,
    pinned: &PinnedWeights,
    dropout: Option<Dropout<'_>>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let (m, k) = (tokens.len(), group.k);
    let backward = Backward { m, k, t: Some(t.apart(tokens)?), dropout };
    let (dy, lddy) = dy.strided(tokens)?;
    let mut column = 0;
    let (mut segments, mut pairs) = (Vec::new(), Vec::new());
    for GroupSegment { n, weight, lora, .. } in &mut group.segments {
        let mut pair = PairGradient::default();
        let lora = lora.as_mut().map(|lora| {
            let (r, scale) = (lora.r, lora.scale);
            let (a, da) = lora.a.for_gradient();
            let (b, db) = lora.b.for_gradient();
            pair = PairGradient { da, db };
            linear::Lora { r, scale, a, b, adapters: None }
        });
        let dy = dy.skip(column);
        segments.push(SegmentBackward { n: *n, weight: weight.view(pinned), lora, dy, lddy });
        pairs.push(pair);
        column += *n;
    }
    let (x, ldx) = x.strided(tokens)?;
    let inputs = ForwardInputs { x, ldx, s: s.apart(tokens)? };
    Ok(lora_gradients(&backward, &segments, &inputs, &mut pairs, workspace, stream)?)
}
