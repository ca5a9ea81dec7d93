//! The driver of a build without kernels: no device can be opened, so that no other call is ever made.

use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use crate::error::{CudaError, Result};
use std::ffi::c_void;

/// No value of this type exists.
pub enum Stub {}

fn refused<T>() -> Result<T> {
    Err(CudaError::Device("this build has no CUDA support; rebuild with `--features cuda`".into()))
}

impl Driver for Stub {
    type Event = Self;
    type Slab = Self;
    type Graph = Self;

    fn open(_: usize) -> Result<Self> {
        refused()
    }

    fn cuda_version() -> Result<String> {
        refused()
    }

    fn name(&self) -> String {
        match *self {}
    }

    fn identity(&self) -> Result<String> {
        match *self {}
    }

    fn info(&self) -> Result<DeviceInfo> {
        match *self {}
    }

    fn mem_info(&self) -> Result<MemInfo> {
        match *self {}
    }

    fn bind(&self) -> Result<()> {
        match *self {}
    }

    fn synchronize(&self) -> Result<()> {
        match *self {}
    }

    fn alloc(&self, _: usize) -> Result<*mut u8> {
        match *self {}
    }

    unsafe fn free(&self, _: *mut u8, _: usize) {
        match *self {}
    }

    fn slab(&self, _: u64, _: bool) -> Result<Self> {
        match *self {}
    }

    fn part(&self, _: &Self, _: u64, _: usize) -> Result<*mut u8> {
        match *self {}
    }

    unsafe fn free_part(&self, _: &Self, _: *mut u8, _: usize) {
        match *self {}
    }

    fn alloc_pinned(&self, _: usize) -> Result<*mut u8> {
        match *self {}
    }

    unsafe fn free_pinned(&self, _: *mut u8, _: usize) {
        match *self {}
    }

    fn pins_read_only(&self) -> Result<bool> {
        match *self {}
    }

    unsafe fn pin(&self, _: *mut u8, _: usize, _: bool) -> Result<()> {
        match *self {}
    }

    unsafe fn unpin(&self, _: *mut u8) {
        match *self {}
    }

    unsafe fn clear(&self, _: *mut u8, _: usize) -> Result<()> {
        match *self {}
    }

    unsafe fn write(&self, _: *mut u8, _: &[u8]) -> Result<()> {
        match *self {}
    }

    unsafe fn read(&self, _: *mut u8, _: *const u8, _: usize) -> Result<()> {
        match *self {}
    }

    unsafe fn copy(&self, _: Queue, _: *mut u8, _: *const u8, _: usize) -> Result<()> {
        match *self {}
    }

    fn raw(&self, _: Queue) -> *mut c_void {
        match *self {}
    }

    fn event(&self, _: bool) -> Result<Self> {
        match *self {}
    }

    fn record(&self, _: &mut Self, _: Queue) -> Result<()> {
        match *self {}
    }

    fn queue_waits(&self, _: Queue, _: &Self) -> Result<()> {
        match *self {}
    }

    fn is_done(&self, _: &Self) -> Result<bool> {
        match *self {}
    }

    fn host_waits(&self, _: &Self) -> Result<()> {
        match *self {}
    }

    fn elapsed(&self, _: &Self, _: &Self) -> Result<f64> {
        match *self {}
    }

    fn begin_capture(&self) -> Result<()> {
        match *self {}
    }

    fn end_capture(&self) -> Result<(Self, usize)> {
        match *self {}
    }

    unsafe fn launch(&self, _: &Self) -> Result<()> {
        match *self {}
    }
}
