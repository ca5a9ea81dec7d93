//! Frozen linear layers with a low-rank term.

use super::Cuda;
use super::operands::CudaBuffer;
use crate::backend::{LinearGroup, Lora};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{View, ViewMut};
use qlora_kernels::ops::linear::{self, Dropout, Input, Segment};
use qlora_kernels::ops::linear_backward::{self, Backward, InputGradient, SegmentBackward};
use qlora_kernels::ops::lora_gradients::{ForwardInputs, PairGradient, lora_gradients, workspace_bytes_of};
use qlora_kernels::philox;

type Group = LinearGroup<Cuda>;

/// The group's low-rank columns: each rank is rounded up to 8.
pub fn columns(group: &Group) -> usize {
    group.segments.iter().filter_map(|s| s.lora.as_ref()).map(|lora| lora.r.next_multiple_of(8)).sum()
}

fn lora(lora: &Lora<Cuda>) -> linear::Lora<'_> {
    let (a, b) = (lora.a.working.view(), lora.b.working.view());
    linear::Lora { r: lora.r, scale: lora.scale, a, b, adapters: None }
}

/// Batches are numbered by their draw, so every one begins with token 0.
fn mask(dropout: Option<philox::Dropout>) -> Option<Dropout> {
    dropout.map(|d| Dropout {
        p: d.p(),
        seed: d.seed,
        dropout_id: d.dropout_id,
        dropout_step: d.dropout_step,
        first_token: 0,
    })
}

/// The segments with their columns of `y`, which has no elements where it is not written.
fn segments<'a>(group: &'a Group, y: ViewMut<'a, bf16>) -> Vec<Segment<'a>> {
    let widths: Vec<usize> = group.segments.iter().map(|segment| segment.n).collect();
    let ldy = group.n();
    let outputs = y.columns(&widths);
    let segment = |(segment, y): (&'a crate::backend::Segment<Cuda>, ViewMut<'a, bf16>)| Segment {
        n: segment.n,
        weight: segment.weight.view(),
        lora: segment.lora.as_ref().map(lora),
        bias: segment.bias.as_ref().map(|bias| bias.bf16.view()),
        y,
        ldy,
    };
    group.segments.iter().zip(outputs).map(segment).collect()
}

/// The segments with their columns of `dy`.
fn segments_backward<'a>(group: &'a Group, dy: View<'a, bf16>) -> Vec<SegmentBackward<'a>> {
    let lddy = group.n();
    let mut column = 0;
    let mut segments = Vec::with_capacity(group.segments.len());
    for segment in &group.segments {
        segments.push(SegmentBackward {
            n: segment.n,
            weight: segment.weight.view(),
            lora: segment.lora.as_ref().map(lora),
            dy: dy.skip(column),
            lddy,
        });
        column += segment.n;
    }
    segments
}

impl Cuda {
    /// Room for the sums of this group's gradients over the longest batch.
    pub(super) fn make_room_for_gradients(&mut self, group: &Group) -> Result<()> {
        let pairs: Vec<(usize, usize)> =
            group.segments.iter().filter_map(|s| s.lora.as_ref().map(|lora| (s.n, lora.r))).collect();
        if !self.dims.training || pairs.is_empty() {
            return Ok(());
        }
        let needed = workspace_bytes_of(self.dims.tokens, group.k, &pairs);
        if needed > self.gradients.len() {
            self.gradients = self.memory.take("workspace", 0)?;
            self.gradients = self.memory.take("workspace", needed)?;
        }
        Ok(())
    }

    pub(super) fn project(
        &mut self,
        x: &CudaBuffer,
        group: &Group,
        dropout: Option<philox::Dropout>,
        s: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, k) = (self.tokens(), group.k);
        let input = Input { m, k, x: x.rows(m), ldx: k, s: None, dropout: mask(dropout) };
        // Nothing is written to the outputs.
        let mut segments = segments(group, self.empty.view_mut());
        Ok(linear::lora_down(&input, &mut segments, s.rows_mut(m), stream)?)
    }

    pub(super) fn forward(
        &mut self,
        x: &CudaBuffer,
        s: Option<&CudaBuffer>,
        group: &Group,
        y: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, k) = (self.tokens(), group.k);
        let input = Input { m, k, x: x.rows(m), ldx: k, s: s.map(|s| s.rows(m)), dropout: None };
        let mut segments = segments(group, y.rows_mut(m));
        #[cfg(feature = "emulation")]
        self.paths.push(linear::path(&input, &mut segments)?);
        Ok(linear::forward(&input, &mut segments, self.empty.view_mut(), stream)?)
    }

    pub(super) fn project_back(&mut self, dy: &CudaBuffer, group: &Group, t: &mut CudaBuffer) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        let backward = Backward { m, k: group.k, t: None, dropout: None };
        let segments = segments_backward(group, dy.rows(m));
        Ok(linear_backward::lora_dy_b(&backward, &segments, t.rows_mut(m), stream)?)
    }

    pub(super) fn backward(
        &mut self,
        dy: &CudaBuffer,
        t: Option<&CudaBuffer>,
        group: &Group,
        dropout: Option<philox::Dropout>,
        dx: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, k) = (self.tokens(), group.k);
        let backward = Backward { m, k, t: t.map(|t| t.rows(m)), dropout: mask(dropout) };
        let segments = segments_backward(group, dy.rows(m));
        let gradient = InputGradient { dx: dx.rows_mut(m), lddx: k, accumulate: false };
        Ok(linear_backward::dx(&backward, &segments, gradient, self.empty.view_mut(), stream)?)
    }

    pub(super) fn add_gradients(
        &mut self,
        x: &CudaBuffer,
        dy: &CudaBuffer,
        s: &CudaBuffer,
        t: &CudaBuffer,
        group: &mut Group,
        dropout: Option<philox::Dropout>,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, k) = (self.tokens(), group.k);
        let backward = Backward { m, k, t: Some(t.rows(m)), dropout: mask(dropout) };
        let lddy = group.n();
        let mut column = 0;
        let (mut segments, mut pairs) = (Vec::new(), Vec::new());
        for crate::backend::SegmentOf { n, weight, lora, .. } in &mut group.segments {
            let mut pair = PairGradient::default();
            let lora = lora.as_mut().map(|lora| {
                let (r, scale) = (lora.r, lora.scale);
                let (a, da) = lora.a.for_gradient();
                let (b, db) = lora.b.for_gradient();
                pair = PairGradient { da, db };
                linear::Lora { r, scale, a, b, adapters: None }
            });
            segments.push(SegmentBackward { n: *n, weight: weight.view(), lora, dy: dy.rows(m).skip(column), lddy });
            pairs.push(pair);
            column += *n;
        }
        let inputs = ForwardInputs { x: x.rows(m), ldx: k, s: s.rows(m) };
        let workspace = self.gradients.view_mut();
        Ok(lora_gradients(&backward, &segments, &inputs, &mut pairs, workspace, stream)?)
    }
}
