//! The kernels on cudarc's contexts, streams and memory (feature `cuda`).
//!
//! [`context`] opens a GPU without panicking where there is no driver or an old one. [`Queue`] puts calls on one stream: its
//! [`read`](Queue::read) and [`write`](Queue::write) make a stream wait for the work of others on the same memory and, when
//! dropped, let others wait for it, as cudarc's event tracking does for its own launches.
//!
//! ```no_run
//! # use qlora_kernels::cuda::{nf4, typed, Result};
//! # fn example(codes: &cudarc::driver::CudaSlice<u8>, absmax: &cudarc::driver::CudaSlice<f32>,
//! #     out: &mut cudarc::driver::CudaSlice<f32>, stream: &cudarc::driver::CudaStream) -> Result<()> {
//! let queue = typed::Queue::new(stream);
//! let (codes, absmax, mut out) = (queue.read(codes)?, queue.read(absmax)?, queue.write(out)?);
//! let absmax = nf4::Absmax::F32(absmax.view());
//! let layout = nf4::Layout::RowMajor;
//! queue.dequantize(&nf4::Weight { n: 64, k: 128, block_size: 64, layout, codes: codes.view(), absmax }, out.view_mut())
//! # }
//! ```

use super::linear::{self, Input, Segment};
use super::nf4::{self, AbsmaxMut, Float, Weight};
use super::{CudaError, Element, Result, Stream, View, ViewMut};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop, sys};
use half::bf16;
use std::sync::Arc;

/// The oldest driver that this build's functions are all in, as `cuDriverGetVersion` counts.
const DRIVER_VERSION: i32 = 13000;

/// What the driver supports, for example "13.0". An error where there is none, or one that is too old for this build.
pub fn driver() -> Result<String> {
    // cudarc panics where the library or a symbol of it is missing: look first.
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::Device("no NVIDIA driver: libcuda.so is not on this machine".into()));
    }
    let mut version = 0;
    // SAFETY: may be called before the driver is initialised; writes one integer.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    check_driver((status == sys::CUresult::CUDA_SUCCESS).then_some(version))
}

/// The primary context of a GPU. An error, not a panic, where there is no driver, an old one, no such GPU or one that is too old.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>> {
    driver()?;
    let unusable = |error| CudaError::Device(format!("GPU {ordinal} cannot be used: {error:?}"));
    let context = CudaContext::new(ordinal).map_err(unusable)?;
    check_capability(ordinal, context.compute_capability().map_err(unusable)?)?;
    Ok(context)
}

/// The kernels need the tensor cores and asynchronous copies of sm_80.
fn check_capability(ordinal: usize, (major, minor): (i32, i32)) -> Result<()> {
    if major >= 8 {
        return Ok(());
    }
    Err(CudaError::Device(format!("GPU {ordinal} is of sm_{major}{minor}; the kernels need sm_80 or newer (Ampere)")))
}

fn check_driver(version: Option<i32>) -> Result<String> {
    let name = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let found = match version {
        Some(version @ DRIVER_VERSION..) => return Ok(name(version)),
        Some(version) => format!("the NVIDIA driver supports CUDA {}", name(version)),
        None => "the NVIDIA driver does not tell its version".into(),
    };
    Err(CudaError::Device(format!("{found}; this build needs 13.0 (driver 580 or newer)")))
}

/// Memory that calls on a [`Queue`] read, until it is dropped.
pub struct Read<'a, T> {
    view: View<'a, T>,
    _guard: SyncOnDrop<'a>,
}

/// Memory that calls on a [`Queue`] write, until it is dropped.
pub struct Write<'a, T> {
    view: ViewMut<'a, T>,
    _guard: SyncOnDrop<'a>,
}

impl<T: Element> Read<'_, T> {
    /// Borrows `self`, so that the guard is still held when the call is queued.
    pub fn view(&self) -> View<'_, T> {
        self.view
    }
}

impl<T: Element> Write<'_, T> {
    /// As [`Read::view`].
    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the memory of `self.view`, which cannot be written through `self` while this view borrows it.
        unsafe { View::from_raw_parts(self.view.address(), self.view.len()) }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        // SAFETY: the memory of `self.view`; the exclusive borrow keeps other views away.
        unsafe { ViewMut::from_raw_parts(self.view.address(), self.view.len()) }
    }
}

/// Calls on one stream of cudarc's. Every function has the errors of the one it wraps.
#[derive(Clone, Copy)]
pub struct Queue<'a> {
    stream: &'a CudaStream,
}

impl<'a> Queue<'a> {
    pub fn new(stream: &'a CudaStream) -> Self {
        Self { stream }
    }

    /// An error if the memory is of another context.
    pub fn read<T: Element, M: DevicePtr<T>>(&self, memory: &'a M) -> Result<Read<'a, T>> {
        self.check_context(memory)?;
        let len = memory.len();
        let (address, _guard) = memory.device_ptr(self.stream);
        // SAFETY: cudarc's memory has `len` elements of T; the borrow and the guard keep it allocated and unwritten until
        // what this stream has queued so far is done.
        let view = unsafe { View::from_raw_parts(address as *const T, len) };
        Ok(Read { view, _guard })
    }

    /// An error if the memory is of another context.
    pub fn write<T: Element, M: DevicePtrMut<T>>(&self, memory: &'a mut M) -> Result<Write<'a, T>> {
        self.check_context(memory)?;
        let len = memory.len();
        let (address, _guard) = memory.device_ptr_mut(self.stream);
        // SAFETY: as in `read`, and the borrow is exclusive.
        let view = unsafe { ViewMut::from_raw_parts(address as *mut T, len) };
        Ok(Write { view, _guard })
    }

    fn check_context<T>(&self, memory: &impl DeviceSlice<T>) -> Result<()> {
        if memory.stream().context() == self.stream.context() {
            return Ok(());
        }
        let (found, expected) = (memory.stream().context().ordinal(), self.stream.context().ordinal());
        Err(CudaError::Device(format!("memory of a context of GPU {found} on a stream of another, of GPU {expected}")))
    }

    /// The stream for a call that follows at once, with its context made current.
    fn stream(&self) -> Result<Stream> {
        self.stream
            .context()
            .bind_to_thread()
            .map_err(|error| CudaError::Device(format!("the context cannot be made current: {error:?}")))?;
        // SAFETY: cudarc's stream, alive for the borrow, in the context that was just made current.
        Ok(unsafe { Stream::from_raw(self.stream.cu_stream().cast()) })
    }

    /// [`nf4::quantize`]
    pub fn quantize<T: Float>(
        &self,
        weight: View<'_, T>,
        n: usize,
        k: usize,
        block_size: usize,
        codes: ViewMut<'_, u8>,
        absmax: AbsmaxMut<'_>,
    ) -> Result<()> {
        nf4::quantize(weight, n, k, block_size, codes, absmax, self.stream()?)
    }

    /// [`nf4::dequantize`]
    pub fn dequantize<T: Float>(&self, weight: &Weight<'_>, out: ViewMut<'_, T>) -> Result<()> {
        nf4::dequantize(weight, out, self.stream()?)
    }

    /// [`nf4::absmax_transpose`]
    pub fn absmax_transpose(
        &self,
        input: View<'_, u8>,
        out: ViewMut<'_, u8>,
        rows: usize,
        columns: usize,
    ) -> Result<()> {
        nf4::absmax_transpose(input, out, rows, columns, self.stream()?)
    }

    /// [`linear::lora_down`]
    pub fn lora_down(&self, input: &Input<'_>, segments: &mut [Segment<'_>], s: ViewMut<'_, bf16>) -> Result<()> {
        linear::lora_down(input, segments, s, self.stream()?)
    }

    /// [`linear::forward`]
    pub fn forward(&self, input: &Input<'_>, segments: &mut [Segment<'_>], workspace: ViewMut<'_, bf16>) -> Result<()> {
        linear::forward(input, segments, workspace, self.stream()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_an_error_that_names_both_versions() {
        assert_eq!(check_driver(Some(13000)), Ok("13.0".to_owned()));
        assert_eq!(check_driver(Some(13020)), Ok("13.2".to_owned()));
        let error = check_driver(Some(12080)).unwrap_err().to_string();
        assert!(error.contains("12.8") && error.contains("13.0") && error.contains("580"), "{error}");
        assert!(check_driver(None).is_err());
    }

    #[test]
    fn an_old_gpu_is_an_error_that_names_what_is_needed() {
        assert!(check_capability(0, (8, 0)).is_ok() && check_capability(0, (12, 1)).is_ok());
        let error = check_capability(3, (7, 5)).unwrap_err().to_string();
        assert!(error.contains("GPU 3") && error.contains("sm_75") && error.contains("sm_80"), "{error}");
    }
}
