//! In place of the library in the emulated build.

use crate::ops::linear::{Input, Segment};
use crate::ops::linear_backward::{Backward, InputGradient, SegmentBackward};
use crate::device::{Stream, ViewMut};
use crate::error::{CudaError, Result};
use half::bf16;

/// No value of this type exists: the emulated build has no cuBLASLt.
#[derive(Debug)]
pub enum CublasLt {}

impl CublasLt {
    /// An error: the emulated build has no cuBLASLt.
    pub fn open() -> Result<Self> {
        Err(CudaError::Device("cuBLASLt runs on a GPU, and this is the emulated build".into()))
    }

    pub fn workspace_len(&self, _: &Input<'_>, _: &[Segment<'_>]) -> usize {
        match *self {}
    }

    pub fn forward(&self, _: &Input<'_>, _: &mut [Segment<'_>], _: ViewMut<'_, bf16>, _: Stream) -> Result<()> {
        match *self {}
    }

    pub fn dx_workspace_len(&self, _: &Backward<'_>, _: &[SegmentBackward<'_>]) -> usize {
        match *self {}
    }

    pub fn dx(
        &self,
        _: &Backward<'_>,
        _: &[SegmentBackward<'_>],
        _: InputGradient<'_>,
        _: ViewMut<'_, bf16>,
        _: Stream,
    ) -> Result<()> {
        match *self {}
    }
}
