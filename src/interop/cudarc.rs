//! The kernels on cudarc's contexts, streams and memory (feature `cuda`).
//!
//! Memory becomes a [`View`] or a [`ViewMut`], and a stream a [`Stream`]; every function of [`ops`](crate::ops) then
//! takes them. Work belongs on the stream of its memory: cudarc's event tracking does not see it, so that an engine
//! with several streams orders them itself (`CudaStream::join`). [`device::context`](crate::device::context) opens a
//! GPU without a panic where there is no driver or an old one.
//!
//! ```no_run
//! # use qlora_kernels::{ops::{nf4, nf4_dequantize}, Result};
//! # fn example(codes: &cudarc::driver::CudaSlice<u8>, absmax: &cudarc::driver::CudaSlice<f32>,
//! #     out: &mut cudarc::driver::CudaSlice<f32>, stream: &cudarc::driver::CudaStream) -> Result<()> {
//! let absmax = nf4::Absmax::F32(absmax.into());
//! let weight = nf4::Weight { n: 64, k: 128, block_size: 64, layout: nf4::Layout::RowMajor, codes: codes.into(), absmax
//! }; nf4_dequantize::<f32>(&weight, out.into(), stream.try_into()?)
//! # }
//! ```

use crate::device::{Element, Stream, View, ViewMut};
use crate::error::{CudaError, Result};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

impl<'a, T: Element> From<&'a CudaSlice<T>> for View<'a, T> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        let (address, _guard) = slice.device_ptr(slice.stream());
        // SAFETY: cudarc's memory has `len` elements of T. The borrow keeps it allocated and unwritten; it is freed in
        // the order of its stream, on which the work belongs.
        unsafe { Self::from_raw_parts(address as *const T, slice.len()) }
    }
}

impl<'a, T: Element> From<&'a mut CudaSlice<T>> for ViewMut<'a, T> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        let (len, stream) = (slice.len(), slice.stream().clone());
        let (address, _guard) = slice.device_ptr_mut(&stream);
        // SAFETY: as for a `View`, and the borrow is exclusive.
        unsafe { Self::from_raw_parts(address as *mut T, len) }
    }
}

impl TryFrom<&CudaStream> for Stream {
    type Error = CudaError;

    /// Makes the stream's context that of this thread.
    fn try_from(stream: &CudaStream) -> Result<Self> {
        let unusable = |error| CudaError::Device(format!("the context cannot be made current: {error:?}"));
        stream.context().bind_to_thread().map_err(unusable)?;
        // SAFETY: cudarc's stream, in the context that was just made current; a call on it follows while its owner
        // keeps it.
        Ok(unsafe { Self::from_raw(stream.cu_stream().cast()) })
    }
}
