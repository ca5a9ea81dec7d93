//! Operands of the fused linear layer's gradients, which their functions share.

use super::check::Operation;
use super::operand::{self, Dropout, Lora, Operands, Weight, rows};
use super::rows::Rows;
use crate::device::View;
use crate::error::Result;
use crate::sys;
use half::bf16;

/// One row segment of an operand, seen from the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct SegmentBackward<'a> {
    /// N, out features
    pub n: usize,
    /// W `[n, k]`, in NF4 or bf16
    pub weight: Weight<'a>,
    /// A and B; none: no low-rank term.
    pub lora: Option<Lora<'a>>,
    /// At least `(m - 1) * lddy + n` elements
    pub dy: View<'a, bf16>,
    /// Elements from row to row of dy, at least n.
    pub lddy: usize,
}

/// Inputs that the segments share.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// M, tokens
    pub m: usize,
    /// K, in features
    pub k: usize,
    /// `[m, lora_columns]` of [`lora_dy_b`](super::lora_dy_b()), or none: computed inside, in the workspace.
    pub t: Option<Rows<'a>>,
    /// That of the forward pass.
    pub dropout: Option<Dropout<'a>>,
}

/// Columns of T (and of S): every segment's rank, rounded up to 8.
pub fn lora_columns(segments: &[SegmentBackward<'_>]) -> usize {
    operand::lora_columns(segments.iter().map(|segment| segment.lora.as_ref()))
}

/// The structs of one call; the C side reads them before it returns. What only some functions read or write, they set
/// themselves.
pub(super) struct Call {
    pub operation: Operation,
    pub input: sys::qk_linear_backward_args,
    pub segments: Vec<sys::qk_segment_backward>,
    operands: Operands,
}

impl Call {
    /// The structs, with every length checked; x, dx, s and the gradients of A and B are not set.
    pub fn new(name: &'static str, backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> Result<Self> {
        let &Backward { m, k, t, dropout } = backward;
        let operation = operand::operation(name, m, k, segments.iter().map(|segment| segment.n))?;
        let ldt = t.map_or(Ok(0), |t| t.check(&operation, "t", m, lora_columns(segments)))?;
        let mut operands = Operands::default();
        let input = sys::qk_linear_backward_args {
            struct_size: size_of::<sys::qk_linear_backward_args>() as u32,
            num_segments: segments.len() as u32,
            m: operation.dimension("M", m)?,
            k: operation.dimension("K", k)?,
            x: std::ptr::null(),
            ldx: 0,
            dx: std::ptr::null_mut(),
            lddx: 0,
            accumulate: 0,
            reserved: 0,
            segments: std::ptr::null(),
            s: std::ptr::null(),
            t: t.map_or(std::ptr::null(), |t| t.view.address().cast()),
            dropout: operands.dropout(&operation, dropout, m)?,
            lds: 0,
            ldt,
            room: std::ptr::null_mut(),
        };
        let mut call = Self { operation, input, segments: Vec::new(), operands };
        for segment in segments {
            call.push(m, k, segment)?;
        }
        Ok(call)
    }

    fn push(&mut self, m: usize, k: usize, segment: &SegmentBackward<'_>) -> Result<()> {
        let (operation, n) = (&self.operation, segment.n);
        rows(operation, "dy", segment.dy.len(), m, n, segment.lddy)?;
        let (nf4, dense) = self.operands.weight(operation, &segment.weight, n, k)?;
        let lora = match &segment.lora {
            Some(lora) => self.operands.lora(operation, lora, m, n, k)?,
            None => std::ptr::null(),
        };
        self.segments.push(sys::qk_segment_backward {
            struct_size: size_of::<sys::qk_segment_backward>() as u32,
            reserved: 0,
            n: operation.dimension("N", n)?,
            nf4,
            dense,
            lora,
            dy: segment.dy.address().cast(),
            lddy: operation.dimension("lddy", segment.lddy)?,
            da: std::ptr::null_mut(),
            db: std::ptr::null_mut(),
        });
        Ok(())
    }

    pub fn linear(&self) -> sys::qk_linear_backward_args {
        sys::qk_linear_backward_args { segments: self.segments.as_ptr(), ..self.input }
    }
}
