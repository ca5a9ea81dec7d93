//! Dispatch of a forward pass or a dX to the code that computes it. The default is the fused kernels; another row is
//! only taken by a caller that names it.

use super::cublaslt::CublasLt;
use super::linear::{Input, Segment};
use super::linear_backward::{Backward, SegmentBackward};
use super::linear_dx::{self, InputGradient, linear_dx};
use super::linear_forward::{self, linear_forward};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// A row of the dispatch tables of [`forward`] and [`dx`].
#[derive(Clone, Copy, Debug, Default)]
pub enum Dispatch<'a> {
    /// The fused kernel that [`linear_forward::path`] or [`linear_dx::path`] names.
    #[default]
    Fused,
    /// Weights dequantized into the workspace, then products by cuBLASLt, each added to the rounded sum of those
    /// before: Y is rounded once more where there is a low-rank term, dX once a product. Sums are in the library's
    /// order. Adapters by an index are refused, and dropout in dX.
    DequantizeCublasLt(&'a CublasLt),
}

impl std::fmt::Display for Dispatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::DequantizeCublasLt(_) => "dequantize + cuBLASLt",
        })
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
/// [`workspace_len`] elements.
pub fn forward(
    dispatch: Dispatch<'_>,
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    match dispatch {
        Dispatch::Fused => linear_forward(input, segments, workspace, stream),
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
pub fn dx(
    dispatch: Dispatch<'_>,
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    gradient: InputGradient<'_>,
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    match dispatch {
        Dispatch::Fused => linear_dx(backward, segments, gradient, workspace, stream),
        Dispatch::DequantizeCublasLt(library) => library.dx(backward, segments, gradient, workspace, stream),
    }
}
