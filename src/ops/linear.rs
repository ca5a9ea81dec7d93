//! Operands of the fused linear layer, which its functions share.

use super::check::Operation;
use super::operand::{self, Operands, rows};
pub use super::operand::{Adapters, Dropout, Lora, Weight};
use super::rows::Rows;
use crate::device::{View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// One row segment of an operand (q, k or v; gate or up), with its own output.
#[derive(Debug)]
pub struct Segment<'a> {
    /// N, out features
    pub n: usize,
    /// W `[n, k]`, in NF4 or bf16
    pub weight: Weight<'a>,
    /// A and B; none: no low-rank term.
    pub lora: Option<Lora<'a>>,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// `[m, ldy]` without what follows the last row's n columns: at least `(m - 1) * ldy + n` elements
    pub y: ViewMut<'a, bf16>,
    /// Elements from row to row of y, at least n.
    pub ldy: usize,
}

/// The input of all segments.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// M, tokens
    pub m: usize,
    /// K, in features
    pub k: usize,
    /// At least `(m - 1) * ldx + k` elements
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[m, lora_columns]` of [`lora_down`](super::lora_down()), or none: computed inside, in the workspace.
    pub s: Option<Rows<'a>>,
    /// Dropout of the input of S, where S is computed.
    pub dropout: Option<Dropout<'a>>,
}

/// The kernel that a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    TensorCore,
    /// M ≤ 16
    SmallM,
    /// K or ldx off the tile, or a block size other than 64: slow
    Generic,
}

/// Columns of S: every segment's rank, rounded up to 8.
pub fn lora_columns(segments: &[Segment<'_>]) -> usize {
    operand::lora_columns(segments.iter().map(|segment| segment.lora.as_ref()))
}

/// The structs of one call; the C side reads them before it returns.
pub(super) struct Call {
    pub operation: Operation,
    pub input: sys::qk_linear_args,
    pub segments: Vec<sys::qk_segment>,
    operands: Operands,
}

impl Call {
    /// The structs, with every length checked. Outputs are borrowed mutably by the caller for the call's length.
    pub fn new(name: &'static str, input: &Input<'_>, segments: &mut [Segment<'_>]) -> Result<Self> {
        let call = Self::without_outputs(name, input, segments)?;
        for segment in segments {
            rows(&call.operation, "y", segment.y.len(), input.m, segment.n, segment.ldy)?;
        }
        Ok(call)
    }

    /// The structs of a function that writes no y, with every length checked.
    pub fn without_outputs(name: &'static str, input: &Input<'_>, segments: &[Segment<'_>]) -> Result<Self> {
        let operation = operand::operation(name, input.m, input.k, segments.iter().map(|segment| segment.n))?;
        rows(&operation, "x", input.x.len(), input.m, input.k, input.ldx)?;
        let lds = input.s.map_or(Ok(0), |s| s.check(&operation, "s", input.m, lora_columns(segments)))?;
        let mut operands = Operands::default();
        let linear = sys::qk_linear_args {
            struct_size: size_of::<sys::qk_linear_args>() as u32,
            num_segments: segments.len() as u32,
            m: operation.dimension("M", input.m)?,
            k: operation.dimension("K", input.k)?,
            x: input.x.address().cast(),
            ldx: operation.dimension("ldx", input.ldx)?,
            segments: std::ptr::null(),
            s: input.s.map_or(std::ptr::null(), |s| s.view.address().cast()),
            dropout: operands.dropout(&operation, input.dropout, input.m)?,
            lds,
            room: std::ptr::null_mut(),
        };
        let mut call = Self { operation, input: linear, segments: Vec::new(), operands };
        for segment in segments {
            call.push(input, segment)?;
        }
        Ok(call)
    }

    fn push(&mut self, input: &Input<'_>, segment: &Segment<'_>) -> Result<()> {
        let (operation, n) = (&self.operation, segment.n);
        let (nf4, dense) = self.operands.weight(operation, &segment.weight, n, input.k)?;
        let lora = match &segment.lora {
            Some(lora) => self.operands.lora(operation, lora, input.m, n, input.k)?,
            None => std::ptr::null(),
        };
        if let Some(bias) = &segment.bias {
            operation.length("bias", bias.len(), n)?;
        }
        self.segments.push(sys::qk_segment {
            struct_size: size_of::<sys::qk_segment>() as u32,
            reserved: 0,
            n: operation.dimension("N", n)?,
            nf4,
            dense,
            lora,
            bias: segment.bias.map_or(std::ptr::null(), |bias| bias.address().cast()),
            y: segment.y.address().cast(),
            ldy: operation.dimension("ldy", segment.ldy)?,
        });
        Ok(())
    }

    pub fn linear(&self) -> sys::qk_linear_args {
        sys::qk_linear_args { segments: self.segments.as_ptr(), ..self.input }
    }
}
