//! A stub in place of the library in builds without kernels.

use crate::device::{Buffer, Device, Stream};
use crate::error::{CudaError, Result};
use crate::ops::linear::{Input, Segment};
use crate::ops::linear_backward::{Backward, SegmentBackward};
use crate::ops::linear_dx::InputGradient;
use crate::ops::product::Workspace;

/// No value of this type exists.
#[derive(Debug)]
pub enum CublasLt {}

impl CublasLt {
    /// An error: cuBLASLt runs on a GPU.
    pub fn open() -> Result<Self> {
        Err(CudaError::Device("cuBLASLt runs on a GPU, which this build does not use".into()))
    }

    /// An error, as [`Self::open`].
    pub fn with_workspace(_: Buffer<u8>) -> Result<Self> {
        Self::open()
    }

    /// False: this build loads no library.
    pub fn is_present() -> bool {
        false
    }

    /// An error, as [`Self::open`].
    pub fn load(_: &Device) -> Result<String> {
        Self::open().map(|library| library.version())
    }

    /// Never called.
    pub fn version(&self) -> String {
        match *self {}
    }

    /// Never called.
    pub fn algorithms(&self) -> Vec<String> {
        match *self {}
    }

    /// Never called.
    pub fn workspace_len(&self, _: &Input<'_>, _: &[Segment<'_>]) -> usize {
        match *self {}
    }

    /// Never called.
    pub fn forward<'a>(
        &self,
        _: &Input<'_>,
        _: &mut [Segment<'_>],
        _: impl Into<Workspace<'a>>,
        _: Stream,
    ) -> Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn dx_workspace_len(&self, _: &Backward<'_>, _: &[SegmentBackward<'_>]) -> usize {
        match *self {}
    }

    /// Never called.
    pub fn dx<'a>(
        &self,
        _: &Backward<'_>,
        _: &[SegmentBackward<'_>],
        _: InputGradient<'_>,
        _: impl Into<Workspace<'a>>,
        _: Stream,
    ) -> Result<()> {
        match *self {}
    }
}
