//! Buffers that wait in host memory until the device needs them again.

use super::buffer::check_room;
use super::staging::Staging;
use super::{Buffer, Device, Element, HostMemory, SharedPinned};
use crate::error::Result;
use std::rc::Rc;

/// Pinned host memory for one buffer at a time: it is offloaded while the device goes on computing, and prefetched
/// before it is used. The slot keeps the buffer until its copy is done, so that its memory is not used for anything
/// else meanwhile.
///
/// ```text
/// offload ─▶ wait_offload … prefetch ─▶ wait_prefetch
/// ```
pub struct OffloadSlot<T: Element> {
    // First, so that its copy is waited for before the buffers are dropped.
    staging: Staging<T>,
    offloading: Option<Buffer<T>>,
    prefetching: Option<Buffer<T>>,
}

impl<T: Element> OffloadSlot<T> {
    /// A slot for buffers of `len` elements, in pinned memory.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Self::new_in(device, len, HostMemory::Pinned)
    }

    /// A slot for buffers of `len` elements, in host memory of this kind.
    pub fn new_in(device: &Device, len: usize, kind: HostMemory) -> Result<Self> {
        Ok(Self { staging: Staging::new(device, len, kind)?, offloading: None, prefetching: None })
    }

    /// A slot that holds `len` elements of memory of several processes, from byte `first` on: they are prefetched, and
    /// offloading anything else is an error.
    pub fn shared(memory: &Rc<SharedPinned>, first: usize, len: usize) -> Result<Self> {
        Ok(Self { staging: Staging::shared(memory, first, len)?, offloading: None, prefetching: None })
    }

    /// Begins to copy `buffer` to the host as it is after what is queued now.
    ///
    /// # Panics
    ///
    /// If the slot copies another one.
    pub fn offload(&mut self, buffer: Buffer<T>) -> Result<()> {
        assert!(self.offloading.is_none() && self.prefetching.is_none(), "a slot is for one buffer at a time");
        self.check_len(&buffer)?;
        self.staging.copy_to_host(&buffer, buffer.len())?;
        self.offloading = Some(buffer);
        Ok(())
    }

    /// Drops the offloaded buffer; what is queued next on the device's stream follows its copy.
    pub fn wait_offload(&mut self) -> Result<()> {
        self.staging.precede_compute()?;
        self.offloading = None;
        Ok(())
    }

    /// The offloaded buffer itself; what is queued next on the device's stream follows its copy.
    ///
    /// # Panics
    ///
    /// Before [`offload`](Self::offload).
    pub fn take_offloaded(&mut self) -> Result<Buffer<T>> {
        self.staging.precede_compute()?;
        Ok(self.offloading.take().expect("a buffer was offloaded"))
    }

    /// The elements that the slot holds, zeros at first. The host waits for the last copy.
    pub fn values(&self) -> Result<&[T]> {
        self.staging.wait()?;
        Ok(self.staging.memory.first(self.staging.memory.len()))
    }

    /// Gives elements that the slot holds other values, from `first` on, after the last copy, for which the host waits.
    pub fn set(&mut self, first: usize, data: &[T]) -> Result<()> {
        self.staging.wait()?;
        self.staging.memory.set_from(first, data);
        Ok(())
    }

    /// Begins to copy what was offloaded into `buffer`, after what is queued now.
    ///
    /// # Panics
    ///
    /// Before [`wait_offload`](Self::wait_offload), or if the slot prefetches already.
    pub fn prefetch(&mut self, mut buffer: Buffer<T>) -> Result<()> {
        assert!(self.offloading.is_none() && self.prefetching.is_none(), "what was offloaded is prefetched once");
        self.check_len(&buffer)?;
        let len = buffer.len();
        self.staging.copy_to_device(&mut buffer, len)?;
        self.prefetching = Some(buffer);
        Ok(())
    }

    /// The prefetched buffer; what is queued next on the device's stream finds it whole.
    ///
    /// # Panics
    ///
    /// Before [`prefetch`](Self::prefetch).
    pub fn wait_prefetch(&mut self) -> Result<Buffer<T>> {
        self.staging.precede_compute()?;
        Ok(self.prefetching.take().expect("a buffer was prefetched"))
    }

    fn check_len(&self, buffer: &Buffer<T>) -> Result<()> {
        check_room(buffer.len(), self.staging.memory.len())?;
        check_room(self.staging.memory.len(), buffer.len())
    }
}

impl<T: Element> Drop for OffloadSlot<T> {
    fn drop(&mut self) {
        // Buffers are dropped, and their memory used again, only after their copies. An error would be that of an
        // earlier call.
        let _ = self.staging.precede_compute();
    }
}
