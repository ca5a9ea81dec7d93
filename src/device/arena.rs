//! One range of device memory, allocated once, from which the buffers of a run come.

use super::buffer::{Memory, byte_len};
use super::driver::Driver;
use super::{Buffer, Device, Element, Implementation, MemoryEnd, OffsetAllocator, PeakUsage};
use crate::error::{CudaError, Result};
use std::cell::RefCell;
use std::rc::Rc;

/// Allocates buffers without asking the driver, and takes them back when they are dropped. All work on them is queued
/// on the device's stream, in whose order their memory is used again.
pub struct Arena {
    /// None: buffers have no memory.
    memory: Option<ArenaMemory>,
    allocator: Rc<RefCell<OffsetAllocator>>,
}

struct ArenaMemory {
    driver: Rc<Implementation>,
    slab: Rc<<Implementation as Driver>::Slab>,
}

/// A buffer's offset, freed when it is dropped.
struct Allocation {
    allocator: Rc<RefCell<OffsetAllocator>>,
    offset: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.allocator.borrow_mut().free(self.offset);
    }
}

impl Arena {
    /// `bytes` of the device's memory, in one piece.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        Self::with(device, bytes, false)
    }

    /// `bytes` of the device's memory for work that is recorded as a [`Graph`](super::Graph): equal calls in an equal
    /// [`state`](Self::state) return buffers at equal addresses, in the emulation too. The emulation's buffers then
    /// have no memory of their own, so that AddressSanitizer does not see their ends.
    pub fn with_fixed_addresses(device: &Device, bytes: u64) -> Result<Self> {
        Self::with(device, bytes, true)
    }

    fn with(device: &Device, bytes: u64, fixed: bool) -> Result<Self> {
        let allocator = OffsetAllocator::new(bytes);
        let driver = device.driver().clone();
        driver.bind()?;
        let slab = Rc::new(driver.slab(allocator.capacity(), fixed)?);
        Ok(Self { memory: Some(ArenaMemory { driver, slab }), allocator: Rc::new(RefCell::new(allocator)) })
    }

    /// An arena of a dry run: without memory and without end. [`peak`](Self::peak) says what a run needs that allocates
    /// and drops buffers in this order.
    pub fn planned() -> Self {
        Self { memory: None, allocator: Rc::new(RefCell::new(OffsetAllocator::new(u64::MAX))) }
    }

    /// `len` elements of any bits at the low end, counted under `name`. An error if there is no room for them.
    pub fn alloc<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        self.alloc_at(MemoryEnd::Low, name, len)
    }

    /// `len` elements of any bits at either end, counted under `name`. An error if there is no room for them. No result
    /// depends on the end.
    pub fn alloc_at<T: Element>(&self, end: MemoryEnd, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let too_large = |_| CudaError::Device(format!("{name} of {len} elements is too large"));
        let bytes = byte_len::<T>(len).map_err(too_large)?;
        let Some(offset) = self.allocator.borrow_mut().alloc_at(end, name, bytes as u64) else {
            let (used, capacity) = (self.used(), self.allocator.borrow().capacity());
            return Err(CudaError::Device(format!(
                "no room for {bytes} bytes of {name}: {used} of the {capacity} bytes that were planned are in use"
            )));
        };
        let allocation = Allocation { allocator: self.allocator.clone(), offset };
        let part = |arena: &ArenaMemory| Memory::part(&arena.driver, &arena.slab, offset, bytes);
        Ok(Buffer::new(self.memory.as_ref().map(part).transpose()?, len, Some(Box::new(allocation))))
    }

    /// Bytes that are in use now.
    pub fn used(&self) -> u64 {
        self.allocator.borrow().used()
    }

    /// The use of the arena when most of it was in use.
    pub fn peak(&self) -> PeakUsage {
        self.allocator.borrow().peak()
    }

    /// A hash of what is in use: its places, lengths and names.
    pub fn state(&self) -> u64 {
        self.allocator.borrow().state()
    }

    /// A hash of the places that were given so far, in their order.
    pub fn given(&self) -> u64 {
        self.allocator.borrow().given()
    }

    /// Begins the hash of [`given`](Self::given) again.
    pub fn forget_given(&self) {
        self.allocator.borrow_mut().forget_given();
    }
}
