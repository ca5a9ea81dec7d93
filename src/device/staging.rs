//! Copies between the host and the device beside the kernels. The host waits only where it reads.

use super::buffer::check_room;
use super::driver::{Driver, Queue};
use super::event::Event;
use super::pinned::{HostMemory, PinnedMemory};
use super::{Buffer, Device, Element, Implementation, SharedPinned};
use crate::error::{CudaError, Result};
use std::rc::Rc;

/// Host memory, and the events that order copies from and to it.
pub(super) struct Staging<T: Element> {
    driver: Rc<Implementation>,
    pub memory: PinnedMemory<T>,
    /// The work that was queued before the copy is done.
    computed: Event,
    /// The last copy is done.
    copied: Event,
}

impl<T: Element> Staging<T> {
    pub fn new(device: &Device, len: usize, kind: HostMemory) -> Result<Self> {
        let driver = device.driver().clone();
        let (computed, copied) = (Event::new(&driver)?, Event::new(&driver)?);
        Ok(Self { memory: PinnedMemory::new(&driver, len, kind)?, driver, computed, copied })
    }

    /// Over `len` elements of memory that several processes share, from byte `first` on.
    pub fn shared(memory: &Rc<SharedPinned>, first: usize, len: usize) -> Result<Self> {
        let driver = memory.driver().clone();
        let (computed, copied) = (Event::new(&driver)?, Event::new(&driver)?);
        Ok(Self { memory: PinnedMemory::part(memory, first, len)?, driver, computed, copied })
    }

    /// The host waits for the last copy.
    pub fn wait(&self) -> Result<()> {
        self.driver.bind()?;
        self.copied.wait()
    }

    /// The host waits for the work that is queued on the device's stream.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.bind()?;
        self.driver.synchronize()
    }

    /// Work that is queued next on the device's stream comes after the last copy.
    pub fn precede_compute(&self) -> Result<()> {
        self.driver.bind()?;
        self.copied.precedes(Queue::Compute)
    }

    /// Queues a copy of the first `len` elements to `buffer`, after what is queued now and after the last copy. Until
    /// something waits for it, the caller keeps the buffer from other uses and the host's memory as it is.
    pub fn copy_to_device(&mut self, buffer: &mut Buffer<T>, len: usize) -> Result<()> {
        check_room(len, buffer.len().min(self.memory.len()))?;
        self.copy(Queue::ToDevice, buffer.address(), self.memory.address(), len)
    }

    /// Queues a copy of the first `len` elements of `buffer`, after what is queued now. Until something waits for it,
    /// the caller keeps the buffer as it is, and the host's memory from other uses.
    pub fn copy_to_host(&mut self, buffer: &Buffer<T>, len: usize) -> Result<()> {
        check_room(len, buffer.len().min(self.memory.len()))?;
        if self.memory.is_shared() {
            return Err(CudaError::Device("memory that processes share is not written by a device".into()));
        }
        self.copy(Queue::ToHost, self.memory.address(), buffer.address(), len)
    }

    fn copy(&mut self, queue: Queue, to: *mut u8, from: *const u8, len: usize) -> Result<()> {
        self.driver.bind()?;
        self.computed.record(Queue::Compute)?;
        self.computed.precedes(queue)?;
        // An earlier copy may be on the other queue.
        self.copied.precedes(queue)?;
        // SAFETY: both have `len` elements, as the callers checked; one is host memory of `self`, which waits for the
        // copy before it is freed, and the other a buffer that the callers' callers keep until then.
        unsafe { self.driver.copy(queue, to, from, len * size_of::<T>()) }?;
        self.copied.record(queue)
    }
}

impl<T: Element> Drop for Staging<T> {
    fn drop(&mut self) {
        // The copy uses memory that is freed next. An error would be that of an earlier call.
        let _ = self.wait();
    }
}

/// Pinned host memory through which arrays are copied to the device, again and again. The host goes on at once; what is
/// queued on the device's stream afterwards finds the array.
pub struct UploadStaging<T: Element>(Staging<T>);

impl<T: Element> UploadStaging<T> {
    /// For arrays of at most `len` elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Self::new_in(device, len, HostMemory::Pinned)
    }

    /// For arrays of at most `len` elements, through host memory of this kind.
    pub fn new_in(device: &Device, len: usize, kind: HostMemory) -> Result<Self> {
        Staging::new(device, len, kind).map(Self)
    }

    /// Elements of the longest array.
    pub fn len(&self) -> usize {
        self.0.memory.len()
    }

    /// True if it holds arrays of no elements only.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Overwrites the first elements of `buffer`, after what was queued before and before what is queued next. Waits
    /// only until the array before has left the host.
    pub fn upload(&mut self, data: &[T], buffer: &mut Buffer<T>) -> Result<()> {
        check_room(data.len(), buffer.len().min(self.len()))?;
        self.0.wait()?;
        self.0.memory.set(data);
        self.0.copy_to_device(buffer, data.len())?;
        self.0.precede_compute()
    }
}

/// Pinned host memory through which arrays are copied from the device, again and again.
pub struct ReadbackStaging<T: Element> {
    staging: Staging<T>,
    len: usize,
}

impl<T: Element> ReadbackStaging<T> {
    /// For arrays of at most `len` elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Self::new_in(device, len, HostMemory::Pinned)
    }

    /// For arrays of at most `len` elements, through host memory of this kind.
    pub fn new_in(device: &Device, len: usize, kind: HostMemory) -> Result<Self> {
        Ok(Self { staging: Staging::new(device, len, kind)?, len: 0 })
    }

    /// Queues a copy of `buffer` as it is after what is queued now; what is queued next on the device's stream follows
    /// the copy. The host goes on at once.
    pub fn read_back(&mut self, buffer: &Buffer<T>) -> Result<()> {
        check_room(buffer.len(), self.staging.memory.len())?;
        self.staging.wait()?;
        self.len = buffer.len();
        self.staging.copy_to_host(buffer, self.len)?;
        // Whoever gets the buffer's memory next, or writes to it, does so after the copy.
        self.staging.precede_compute()
    }

    /// Waits for the last copy.
    pub fn wait(&mut self) -> Result<&[T]> {
        self.staging.wait()?;
        Ok(self.staging.memory.first(self.len))
    }
}
