//! The linear layer's forward pass and its dX as products of the library: weights are dequantized, and the low-rank
//! term is a part of what is summed over.

use super::CublasLt;
use super::gemm::Gemm;
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use crate::ops::check::Operation;
use crate::ops::linear::{Input, Segment};
use crate::ops::linear_backward::{Backward, SegmentBackward};
use crate::ops::linear_dx::InputGradient;
use crate::ops::linear_dx_product::{self, linear_dx_product};
use crate::ops::linear_forward;
use crate::ops::linear_product::{self, linear_product};
use crate::ops::operand::rows;
use crate::ops::product::Workspace;

/// True if the segments' outputs are columns of one matrix, one behind the other.
fn has_one_y(segments: &[Segment<'_>]) -> bool {
    let (ldy, first) = (segments[0].ldy, segments[0].y.address());
    let mut column = 0;
    let follow = segments.iter().all(|segment| {
        let begins = first.wrapping_add(column);
        column += segment.n;
        segment.ldy == ldy && segment.y.address() == begins
    });
    follow && column <= ldy
}

impl CublasLt {
    /// Elements of workspace that [`Self::forward`] needs.
    pub fn workspace_len(&self, input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
        linear_product::workspace_len(input, segments)
    }

    /// [`linear_forward()`](linear_forward::linear_forward) as one product of this library where the segments' outputs
    /// are columns of one matrix, one behind the other, and as one for each segment elsewhere. Adapters by an index are
    /// refused.
    pub fn forward<'a>(
        &self,
        input: &Input<'_>,
        segments: &mut [Segment<'_>],
        workspace: impl Into<Workspace<'a>>,
        stream: Stream,
    ) -> Result<()> {
        // Checks every shape, length and alignment, those of the outputs among them.
        linear_forward::path(input, segments)?;
        let mut workspace = workspace.into();
        let product = linear_product(input, segments, &mut workspace, stream)?;
        let (m, k, x, ldx, ldw) = (input.m, product.k, product.x, product.ldx, product.ldw);
        let whole = has_one_y(segments);
        let mut row = 0;
        for segment in segments.iter() {
            let n = if whole { product.n } else { segment.n };
            let len = if m == 0 { 0 } else { (m - 1) * segment.ldy + n };
            // SAFETY: `path` checked that the segment's y has rows of n elements; of a whole one, the last segment's y
            // ends it. The calls on it are in stream order.
            let y = unsafe { ViewMut::from_raw_parts(segment.y.address(), len) };
            let w = product.w.skip(row * ldw);
            let bias = product.bias.map(|bias| bias.skip(row).first(n));
            let ldy = segment.ldy;
            self.gemm(Gemm { m, n, k, x, ldx, w, ldw, k_by_n: false, bias, y, ldy, accumulate: false }, stream)?;
            if whole {
                break;
            }
            row += segment.n;
        }
        Ok(())
    }

    /// Elements of workspace that [`Self::dx`] needs.
    pub fn dx_workspace_len(&self, backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
        linear_dx_product::workspace_len(backward, segments)
    }

    /// [`linear_dx()`](crate::ops::linear_dx::linear_dx) as one product of this library. Dropout of a low-rank term and
    /// adapters by an index are refused.
    pub fn dx<'a>(
        &self,
        backward: &Backward<'_>,
        segments: &[SegmentBackward<'_>],
        gradient: InputGradient<'_>,
        workspace: impl Into<Workspace<'a>>,
        stream: Stream,
    ) -> Result<()> {
        let (m, InputGradient { dx: y, lddx: ldy, accumulate }) = (backward.m, gradient);
        let operation = Operation { name: "cublaslt_dx", shape: format!("M {m}, K {}", backward.k) };
        rows(&operation, "dx", y.len(), m, backward.k, ldy)?;
        let mut workspace = workspace.into();
        let product = linear_dx_product(backward, segments, &mut workspace, stream)?;
        let (n, k, x, ldx, w, ldw) = (product.n, product.k, product.x, product.ldx, product.w, product.ldw);
        self.gemm(Gemm { m, n, k, x, ldx, w, ldw, k_by_n: true, bias: None, y, ldy, accumulate }, stream)
    }
}
