//! Dispatch of a forward pass or a dX to the code that computes it: a table of rows, the choice of one by the shape and
//! the card ([`choose`]), and the launch of the row that the caller names.

pub use super::product::Workspace;

use super::cublaslt::CublasLt;
use super::linear::{Input, Segment};
use super::linear_backward::{Backward, SegmentBackward};
use super::linear_dx::{self, InputGradient, linear_dx};
use super::linear_forward::{self, linear_forward};
use crate::device::Stream;
use crate::error::Result;

/// A row of the dispatch tables of [`forward`] and [`dx`].
#[derive(Clone, Copy, Debug, Default)]
pub enum Dispatch<'a> {
    /// The fused kernel that [`linear_forward::path`] or [`linear_dx::path`] names.
    #[default]
    Fused,
    /// Weights dequantized into the workspace, then one product of cuBLASLt for all segments, with the low-rank term
    /// as a part of what is summed over. Y and dX are rounded once, as by the fused kernels; sums are in the library's
    /// order. Where the segments' outputs are no columns of one matrix, the forward pass is a product for each.
    /// Adapters by an index are refused, and dropout in dX.
    DequantizeCublasLt(&'a CublasLt),
}

impl Dispatch<'_> {
    /// The name of this row.
    pub fn row(&self) -> Row {
        match self {
            Self::Fused => Row::Fused,
            Self::DequantizeCublasLt(_) => Row::Dequantize,
        }
    }
}

impl std::fmt::Display for Dispatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.row(), f)
    }
}

/// The name of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Row {
    /// [`Dispatch::Fused`]
    #[default]
    Fused,
    /// [`Dispatch::DequantizeCublasLt`]
    Dequantize,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::Dequantize => "dequantize + cuBLASLt",
        })
    }
}

/// The card's properties that decide the choice, beside the shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// (9, 0) for sm_90
    pub compute_capability: (usize, usize),
    /// cuBLASLt is there.
    pub has_cublaslt: bool,
}

/// Direction of a pass through a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    /// The gradient of the input
    Dx,
}

/// All segments of a linear layer in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Forward, or the gradient of the input
    pub pass: Pass,
    /// M, tokens
    pub m: usize,
    /// All segments' out features
    pub n: usize,
    /// K, in features
    pub k: usize,
    /// Columns of S and T, 0 without LoRA
    pub columns: usize,
    /// Dropout on the low-rank path's input
    pub dropout: bool,
}

/// Tokens that the fused kernel of few tokens takes, which reads each weight once: there is nothing to win.
pub const FEW_TOKENS: usize = 16;

/// Tokens from which [`choose`] takes the library on a card of its own instructions: below, dequantizing takes longer
/// than the faster product saves. Predicted, not measured.
pub const MANY_TOKENS: usize = 1024;

impl Shape {
    /// True if [`Row::Dequantize`] computes it: more than a few tokens, rows that begin at multiples of 16 bytes, and
    /// no mask on one of the terms of a sum.
    pub fn can_dequantize(&self) -> bool {
        let masks_a_term = self.pass == Pass::Dx && self.dropout && self.columns > 0;
        self.m > FEW_TOKENS && self.n.is_multiple_of(8) && self.k.is_multiple_of(8) && !masks_a_term
    }
}

/// The row that is predicted to take least time. On sm_90 the library's products use instructions that the fused
/// kernels do not, at more than twice their rate, so that dequantizing beside them pays from about 1,000 tokens on;
/// elsewhere the fused kernels do not write and read the weights once more. A batch that is cut into tiles gets the row
/// of all of it, so that no bit depends on the cut.
pub fn choose(card: &Card, shape: &Shape) -> Row {
    let (major, _) = card.compute_capability;
    match major == 9 && card.has_cublaslt && shape.m >= MANY_TOKENS && shape.can_dequantize() {
        true => Row::Dequantize,
        false => Row::Fused,
    }
}

/// Elements of workspace that [`forward`] needs.
pub fn workspace_len(dispatch: Dispatch<'_>, input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    match dispatch {
        Dispatch::Fused => linear_forward::workspace_len(input, segments),
        Dispatch::DequantizeCublasLt(library) => library.workspace_len(input, segments),
    }
}

/// Writes every segment's y, as [`linear_forward()`] does, by the code of `dispatch`. The workspace has at least
/// [`workspace_len`] elements; for an X that has room for S, those of the row that is given, which may be fewer.
pub fn forward<'a>(
    dispatch: Dispatch<'_>,
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    workspace: impl Into<Workspace<'a>>,
    stream: Stream,
) -> Result<()> {
    let workspace = workspace.into();
    match dispatch {
        Dispatch::Fused => linear_forward(input, segments, workspace.scratch, stream),
        Dispatch::DequantizeCublasLt(library) => library.forward(input, segments, workspace, stream),
    }
}

/// Elements of workspace that [`dx`] needs.
pub fn dx_workspace_len(dispatch: Dispatch<'_>, backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
    match dispatch {
        Dispatch::Fused => linear_dx::workspace_len(backward, segments),
        Dispatch::DequantizeCublasLt(library) => library.dx_workspace_len(backward, segments),
    }
}

/// Writes dX, as [`linear_dx()`] does, by the code of `dispatch`. The workspace has at least
/// [`dx_workspace_len`] elements.
pub fn dx<'a>(
    dispatch: Dispatch<'_>,
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    gradient: InputGradient<'_>,
    workspace: impl Into<Workspace<'a>>,
    stream: Stream,
) -> Result<()> {
    let workspace = workspace.into();
    match dispatch {
        Dispatch::Fused => linear_dx(backward, segments, gradient, workspace.scratch, stream),
        Dispatch::DequantizeCublasLt(library) => library.dx(backward, segments, gradient, workspace, stream),
    }
}

#[cfg(test)]
mod tests;
