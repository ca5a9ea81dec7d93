//! Which code computes a forward pass. The default is the fused kernels; another row is only taken by a caller that names it.

use super::cublaslt::CublasLt;
use super::linear::{self, Input, Segment};
use super::{Result, Stream, ViewMut};
use half::bf16;

/// A row of the dispatch table of [`forward`].
#[derive(Clone, Copy, Debug, Default)]
pub enum Dispatch<'a> {
    /// The fused kernel that [`linear::path`] names.
    #[default]
    Fused,
    /// Weights dequantised into the workspace, then products by cuBLASLt. Y is rounded once more where there is a low-rank term, which
    /// is added to the rounded base product; sums are in the library's order.
    DequantizeCublasLt(&'a CublasLt),
}

impl std::fmt::Display for Dispatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::DequantizeCublasLt(_) => "dequantise + cuBLASLt",
        })
    }
}

/// Elements of workspace that [`forward`] needs.
pub fn workspace_len(dispatch: Dispatch<'_>, input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    match dispatch {
        Dispatch::Fused => linear::workspace_len(input, segments),
        Dispatch::DequantizeCublasLt(library) => library.workspace_len(input, segments),
    }
}

/// Writes every segment's y, as [`linear::forward`] does, by the code of `dispatch`. The workspace has at least [`workspace_len`]
/// elements.
pub fn forward(
    dispatch: Dispatch<'_>,
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    match dispatch {
        Dispatch::Fused => linear::forward(input, segments, workspace, stream),
        Dispatch::DequantizeCublasLt(library) => library.forward(input, segments, workspace, stream),
    }
}
