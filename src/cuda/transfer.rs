//! Pinned host memory, and how fast the device copies from and to it.

use super::measure::Timer;
use super::{CudaError, Device, Result};
use cudarc::driver::{result, sys};

/// Bytes a second between pinned host memory and the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    pub to_device: f64,
    pub from_device: f64,
}

/// Host memory that the device copies from and to by itself.
pub(super) struct Pinned {
    address: *mut u8,
    bytes: usize,
}

fn driver_error(what: &str, error: result::DriverError) -> CudaError {
    CudaError::driver(what, error.0 as i32, format!("{error:?}"))
}

impl Pinned {
    /// In the current context.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        // SAFETY: a context is current, and at least one byte is asked for.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|error| driver_error(&format!("{bytes} bytes of pinned host memory"), error))?;
        // SAFETY: as many bytes as were just allocated.
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), 0, bytes) };
        Ok(Self { address: address.cast(), bytes })
    }

    pub(super) fn address(&self) -> *const u8 {
        self.address
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and written in `new`.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once. An error here has no one to go to.
        let _ = unsafe { result::free_host(self.address.cast()) };
    }
}

impl Timer {
    /// Copies `bytes` each way: the median of 7. An error too where that much memory cannot be pinned.
    pub fn transfer(&self, device: &Device, bytes: usize) -> Result<Transfer> {
        let failed = |error| driver_error("a copy between host and device", error);
        let mut host = Pinned::new(bytes)?;
        let mut buffer = device.zeros::<u8>(bytes)?;
        self.synchronize()?;
        let address = buffer.view_mut().address() as sys::CUdeviceptr;
        let to_device = median(|| {
            self.seconds(|stream| {
                // SAFETY: both have `bytes` bytes and outlive the copy, which `seconds` waits for.
                unsafe { result::memcpy_htod_async(address, host.bytes(), stream.0.cast()) }.map_err(failed)
            })
        })?;
        let from_device = median(|| {
            self.seconds(|stream| {
                // SAFETY: as above.
                unsafe { result::memcpy_dtoh_async(host.bytes(), address, stream.0.cast()) }.map_err(failed)
            })
        })?;
        Ok(Transfer { to_device: bytes as f64 / to_device, from_device: bytes as f64 / from_device })
    }
}

fn median(mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut seconds = (0..7).map(|_| measure()).collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
