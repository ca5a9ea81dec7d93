//! The calls of a build without kernels: nothing can be loaded, so that no other is ever made.

use super::calls::{Calls, Handle, ID_BYTES};
use crate::error::{CudaError, Result};
use std::ffi::c_void;

/// No value of this type exists.
pub enum Stub {}

impl Calls for Stub {
    fn load() -> Result<Self> {
        Err(CudaError::Device("NCCL adds up on GPUs, which this build does not use".into()))
    }

    fn version(&self) -> Result<String> {
        match *self {}
    }

    fn unique_id(&self) -> Result<[u8; ID_BYTES]> {
        match *self {}
    }

    fn init_rank(&self, _: &[u8; ID_BYTES], _: usize, _: usize) -> Result<Handle> {
        match *self {}
    }

    unsafe fn is_call_done(&self, _: Handle) -> Result<bool> {
        match *self {}
    }

    unsafe fn all_reduce(&self, _: Handle, _: &[(*mut f32, usize)], _: *mut c_void) -> Result<()> {
        match *self {}
    }

    unsafe fn abort(&self, _: Handle) {
        match *self {}
    }

    unsafe fn destroy(&self, _: Handle) {
        match *self {}
    }
}
