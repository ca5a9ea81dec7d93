//! The linear layer's forward pass and its dX by products of the library, on weights that are dequantized first.

use super::library::{CublasLt, Gemm, MOST_ALIGNMENT};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::ops::check::Operation;
use crate::ops::linear::{Input, Lora, Segment, Weight, lora_columns};
use crate::ops::linear_backward::{self, Backward, SegmentBackward};
use crate::ops::linear_dx::{self, InputGradient};
use crate::ops::{linear_forward, lora_down, lora_dy_b, nf4_dequantize};
use half::bf16;

/// A workspace: S or T, and after it one weight.
struct Workspace<'a> {
    whole: ViewMut<'a, bf16>,
    low_rank: usize,
}

impl Workspace<'_> {
    fn part(&self, first: usize, len: usize) -> ViewMut<'_, bf16> {
        assert!(first + len <= self.whole.len(), "the length was checked");
        // SAFETY: within the workspace by the line above. The two parts do not overlap, and work on them is in the
        // order of one stream.
        unsafe { ViewMut::from_raw_parts(self.whole.address().add(first), len) }
    }

    /// `[n, k]` in bf16: as it is, or dequantized into the workspace.
    fn weight<'a>(&'a self, weight: &Weight<'a>, n: usize, k: usize, stream: Stream) -> Result<View<'a, bf16>> {
        match weight {
            Weight::Dense(w) => Ok(*w),
            Weight::Nf4(weight) => {
                let room = || self.part(self.low_rank, n * k);
                nf4_dequantize(weight, room(), stream)?;
                // SAFETY: what was just written, read in stream order.
                Ok(unsafe { View::from_raw_parts(room().address(), n * k) })
            }
        }
    }
}

/// Elements of S or T in the workspace, rounded up so that what follows is as aligned as the workspace.
fn low_rank_len(elements: usize) -> usize {
    elements.next_multiple_of(MOST_ALIGNMENT / size_of::<bf16>())
}

fn largest<'a>(weights: impl Iterator<Item = (&'a Weight<'a>, usize)>, k: usize) -> usize {
    weights.filter(|(weight, _)| matches!(weight, Weight::Nf4(_))).map(|(_, n)| n * k).max().unwrap_or(0)
}

/// Columns `column` on of S or T, which has m rows of `columns`.
fn columns_from(matrix: View<'_, bf16>, column: usize) -> View<'_, bf16> {
    let len = matrix.len().saturating_sub(column);
    let skipped = matrix.len() - len;
    // SAFETY: `skipped + len` elements are those of the matrix.
    unsafe { View::from_raw_parts(matrix.address().add(skipped), len) }
}

fn check_adapters<'a>(operation: &Operation, mut loras: impl Iterator<Item = Option<&'a Lora<'a>>>) -> Result<()> {
    let several = loras.any(|lora| lora.is_some_and(|lora| lora.adapters.is_some()));
    operation.check(!several, || "cuBLASLt's row of the dispatch table takes no adapters by an index".into())
}

impl CublasLt {
    /// Elements of workspace that [`Self::forward`] needs: S, if it is computed inside, and the largest weight
    /// dequantized.
    pub fn workspace_len(&self, input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
        low_rank_len(linear_forward::workspace_len(input, segments))
            + largest(segments.iter().map(|segment| (&segment.weight, segment.n)), input.k)
    }

    /// [`linear_forward()`] by products of this library. Adapters by an index are refused.
    pub fn forward(
        &self,
        input: &Input<'_>,
        segments: &mut [Segment<'_>],
        workspace: ViewMut<'_, bf16>,
        stream: Stream,
    ) -> Result<()> {
        // Checks every shape, length and alignment.
        linear_forward::path(input, segments)?;
        let operation = Operation { name: "cublaslt_forward", shape: format!("M {}, K {}", input.m, input.k) };
        check_adapters(&operation, segments.iter().map(|segment| segment.lora.as_ref()))?;
        let needed = self.workspace_len(input, segments);
        operation.check(workspace.len() >= needed, || {
            format!("the workspace has {} elements, expected at least {needed}", workspace.len())
        })?;
        let (m, k, columns) = (input.m, input.k, lora_columns(segments));
        let workspace =
            Workspace { whole: workspace, low_rank: low_rank_len(linear_forward::workspace_len(input, segments)) };
        if workspace.low_rank > 0 {
            lora_down(input, segments, workspace.part(0, m * columns), stream)?;
        }
        // SAFETY: what was just written, read in stream order; without LoRA it is empty.
        let inside = unsafe {
            View::from_raw_parts(workspace.whole.address().cast_const(), workspace.low_rank.min(m * columns))
        };
        let s = input.s.unwrap_or(inside);
        let mut column = 0;
        for segment in segments {
            let (n, ldy, y_len) = (segment.n, segment.ldy, segment.y.len());
            let w = workspace.weight(&segment.weight, n, k, stream)?;
            // SAFETY: the segment's own memory; the calls on it are in stream order.
            let y = || unsafe { ViewMut::from_raw_parts(segment.y.address(), y_len) };
            let (x, ldx, bias) = (input.x, input.ldx, segment.bias);
            self.gemm(Gemm { m, n, k, x, ldx, w, k_by_n: false, bias, y: y(), ldy, accumulate: false }, stream)?;
            if let Some(lora) = &segment.lora {
                let (x, k, w, ldx) = (columns_from(s, column), lora.r, lora.b, columns);
                let bias = None;
                self.gemm(Gemm { m, n, k, x, ldx, w, k_by_n: false, bias, y: y(), ldy, accumulate: true }, stream)?;
                column += lora.r.next_multiple_of(8);
            }
        }
        Ok(())
    }

    /// Elements of workspace that [`Self::dx`] needs: T, if it is computed inside, and the largest weight dequantized.
    pub fn dx_workspace_len(&self, backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
        low_rank_len(linear_dx::workspace_len(backward, segments))
            + largest(segments.iter().map(|segment| (&segment.weight, segment.n)), backward.k)
    }

    /// [`linear_dx()`](linear_dx::linear_dx) by products of this library: each is added to the rounded sum of those
    /// before. Dropout and adapters by an index are refused.
    pub fn dx(
        &self,
        backward: &Backward<'_>,
        segments: &[SegmentBackward<'_>],
        gradient: InputGradient<'_>,
        workspace: ViewMut<'_, bf16>,
        stream: Stream,
    ) -> Result<()> {
        // Checks every shape, length and alignment.
        linear_dx::path(backward, segments)?;
        let (m, k) = (backward.m, backward.k);
        let operation = Operation { name: "cublaslt_dx", shape: format!("M {m}, K {k}") };
        check_adapters(&operation, segments.iter().map(|segment| segment.lora.as_ref()))?;
        let dropout = backward.dropout.is_some_and(|dropout| dropout.p > 0.0);
        operation.check(!dropout, || "cuBLASLt's row of the dispatch table has no dropout".into())?;
        let needed = self.dx_workspace_len(backward, segments);
        operation.check(workspace.len() >= needed, || {
            format!("the workspace has {} elements, expected at least {needed}", workspace.len())
        })?;
        let columns = linear_backward::lora_columns(segments);
        let inside = linear_dx::workspace_len(backward, segments);
        let workspace = Workspace { whole: workspace, low_rank: low_rank_len(inside) };
        if inside > 0 {
            lora_dy_b(backward, segments, workspace.part(0, inside), stream)?;
        }
        // SAFETY: what was just written, read in stream order; without LoRA it is empty.
        let inside = unsafe { View::from_raw_parts(workspace.whole.address().cast_const(), inside) };
        let t = backward.t.unwrap_or(inside);
        let InputGradient { dx, lddx: ldy, mut accumulate } = gradient;
        // SAFETY: the gradient's own memory; the calls on it are in stream order.
        let y = || unsafe { ViewMut::from_raw_parts(dx.address(), dx.len()) };
        let (bias, n, mut column) = (None, k, 0);
        for segment in segments {
            let w = workspace.weight(&segment.weight, segment.n, k, stream)?;
            let (x, ldx, k) = (segment.dy, segment.lddy, segment.n);
            self.gemm(Gemm { m, n, k, x, ldx, w, k_by_n: true, bias, y: y(), ldy, accumulate }, stream)?;
            accumulate = true;
            if let Some(lora) = &segment.lora {
                let (x, k, w, ldx) = (columns_from(t, column), lora.r, lora.a, columns);
                self.gemm(Gemm { m, n, k, x, ldx, w, k_by_n: true, bias, y: y(), ldy, accumulate }, stream)?;
                column += lora.r.next_multiple_of(8);
            }
        }
        Ok(())
    }
}
