//! DoRA: magnitudes of outputs, and the norms of rows that they take the place of. ‖W + s·B·A‖² is ‖W‖² + 2s·⟨Z, B⟩ row
//! by row with Z = (W + s/2·B·A)·Aᵀ, which is a forward pass of r tokens: no matrix of the weight's size is made.

use super::Cuda;
use super::operands::{CudaBuffer, CudaVector, CudaWeight};
use crate::backend::{LinearGroup, Lora, Magnitude, Segment};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, Stream};
use qlora_kernels::ops::linear::{self, Input};
use qlora_kernels::ops::magnitude_backward::workspace_bytes;
use qlora_kernels::ops::{self, OutputGradient, RowSquares};
use std::ops::Range;

type Group = LinearGroup<Cuda>;

/// The plan's line.
const NORMS: &str = "DoRA norms";

fn widths(group: &Group) -> Vec<usize> {
    group.segments.iter().map(|segment| segment.n).collect()
}

/// Bytes of workspace that the gradients of the group's magnitudes take, of at most `tokens` at a time.
pub fn gradient_bytes(group: &Group, tokens: usize) -> usize {
    let with = group.segments.iter().filter(|segment| segment.lora.as_ref().is_some_and(|of| of.magnitude.is_some()));
    with.map(|segment| workspace_bytes(tokens, segment.n)).max().unwrap_or(0)
}

impl Cuda {
    /// ‖W‖² of each row, of elements as the products have them; empty in a dry run.
    pub(super) fn squares_of_rows(&mut self, weight: &CudaWeight, n: usize, k: usize) -> Result<Vec<f32>> {
        let mut squares: Buffer<f32> = self.memory.alloc(NORMS, n)?;
        if self.memory.is_dry_run() {
            return Ok(Vec::new());
        }
        ops::row_squares(&weight.view(&self.pinned), k, squares.view_mut(), self.memory.stream())?;
        self.memory.download(&squares)
    }

    /// The norms of every layer of the group that has magnitudes, of A and B as the products read them.
    pub(super) fn refresh_norms(&mut self, group: &mut Group) -> Result<()> {
        let k = group.k;
        for Segment { n, weight, lora, .. } in &mut group.segments {
            let Some(Lora { r, scale, a, b, magnitude: Some(magnitude), .. }) = lora else { continue };
            let (n, r, scale) = (*n, *r, *scale);
            let mut z: Buffer<bf16> = self.memory.alloc(NORMS, r * n)?;
            let mut s: Buffer<bf16> = self.memory.alloc(NORMS, r * r.next_multiple_of(8))?;
            if self.memory.is_dry_run() {
                continue;
            }
            let (a, b, stream) = (a.working.view(), b.working.view(), self.memory.stream());
            let lora = linear::Lora { r, scale: scale / 2.0, a, b, adapters: None };
            let input = Input { m: r, k, x: a, ldx: k, s: None, dropout: None };
            let (weight, y) = (weight.view(&self.pinned), z.view_mut());
            let mut segments = [linear::Segment { n, weight, lora: Some(lora), bias: None, y, ldy: n }];
            ops::linear_forward(&input, &mut segments, s.view_mut(), stream)?;
            let rows = RowSquares { r, scale, squares: magnitude.squares.f32(), z: z.view(), b };
            ops::magnitude_norms(&rows, magnitude.norms.f32_mut(), stream)?;
        }
        Ok(())
    }
}

/// `y = m / norm ∘ (y − bias) + bias`
pub fn forward(tokens: &Range<usize>, group: &Group, y: &mut CudaBuffer, stream: Stream) -> Result<()> {
    let (m, (y, ldy)) = (tokens.len(), y.strided_mut(tokens)?);
    let outputs = y.columns(&widths(group));
    for (Segment { bias, lora, .. }, y) in group.segments.iter().zip(outputs) {
        let Some(Lora { magnitude: Some(magnitude), .. }) = lora else { continue };
        let (values, norms) = (magnitude.m.values(), magnitude.norms.f32());
        let layer = ops::Magnitude { magnitude: values, norms, bias: bias.as_ref().map(CudaVector::bf16) };
        ops::magnitude(&layer, m, y, ldy, stream)?;
    }
    Ok(())
}

/// `dm += Σ dY ∘ (Z − bias) / norm`, then `Z = m / norm ∘ dY`; where a layer has no magnitudes, `Z = dY`.
pub fn backward(
    tokens: &Range<usize>,
    dy: &CudaBuffer,
    z: &mut CudaBuffer,
    group: &mut Group,
    workspace: &mut Buffer<u8>,
    stream: Stream,
) -> Result<()> {
    let (m, mut column) = (tokens.len(), 0);
    let ((dy, lddy), (z, ldz)) = (dy.strided(tokens)?, z.strided_mut(tokens)?);
    let outputs = z.columns(&widths(group));
    for (Segment { n, bias, lora, .. }, z) in group.segments.iter_mut().zip(outputs) {
        let output = OutputGradient { m, n: *n, dy: dy.skip(column), lddy, z, ldz };
        column += *n;
        let Some(Lora { magnitude: Some(Magnitude { m: param, norms, .. }), .. }) = lora else {
            ops::magnitude_backward(None, output, None, workspace.view_mut(), stream)?;
            continue;
        };
        let (values, gradient) = param.values_for_gradient();
        let layer = ops::Magnitude { magnitude: values, norms: norms.f32(), bias: bias.as_ref().map(CudaVector::bf16) };
        ops::magnitude_backward(Some(&layer), output, gradient, workspace.view_mut(), stream)?;
    }
    Ok(())
}
