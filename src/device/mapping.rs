//! Mapping of a file in memory that several processes have.

use crate::error::{CudaError, Result};
use std::fs::File;

/// The first bytes of a file, mapped as long as this is held. Other processes may write the file meanwhile: its bytes
/// are for devices, and the host makes no slice of them.
pub(super) struct Mapping {
    address: *mut u8,
    bytes: usize,
}

impl Mapping {
    /// An error for a file that is shorter, or that could be cut while it is mapped: only one of memory that is sealed
    /// against shrinking cannot.
    pub fn new(file: &File, bytes: usize, is_writable: bool) -> Result<Self> {
        Ok(Self { address: mapped(file, bytes, is_writable)?, bytes })
    }

    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self);
    }
}

#[cfg(all(target_os = "linux", not(kernels = "absent")))]
fn mapped(file: &File, bytes: usize, is_writable: bool) -> Result<*mut u8> {
    use rustix::fs::{SealFlags, fcntl_get_seals};
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let failed = |why: String| CudaError::Device(format!("{bytes} bytes of a file in memory cannot be mapped: {why}"));
    let seals = fcntl_get_seals(file).map_err(|error| failed(error.to_string()))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(failed("it is not sealed against shrinking".into()));
    }
    let found = file.metadata().map_err(|error| failed(error.to_string()))?.len();
    if bytes == 0 || found < bytes as u64 {
        return Err(failed(format!("it has {found}")));
    }
    let access = if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    // SAFETY: a range of addresses that the system chooses, so that it is no other memory's.
    let address = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0) };
    Ok(address.map_err(|error| failed(error.to_string()))?.cast())
}

#[cfg(all(target_os = "linux", not(kernels = "absent")))]
fn unmap(mapping: &Mapping) {
    // SAFETY: `mapped` gave it for as many bytes; it is unmapped once. An error here has no one to go to.
    let _ = unsafe { rustix::mm::munmap(mapping.address.cast(), mapping.bytes) };
}

#[cfg(not(all(target_os = "linux", not(kernels = "absent"))))]
fn mapped(_: &File, _: usize, _: bool) -> Result<*mut u8> {
    Err(CudaError::Device("memory that processes share needs Linux and a build with kernels".into()))
}

#[cfg(not(all(target_os = "linux", not(kernels = "absent"))))]
fn unmap(_: &Mapping) {}
