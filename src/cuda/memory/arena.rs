//! One range of device memory, made once, from which the buffers of a run come.

use super::ranges::{Peak, Ranges};
use super::{Buffer, CudaError, Device, Element, Result, imp};
use std::cell::RefCell;
use std::rc::Rc;

/// Gives out buffers and takes them back when they are dropped, without asking the driver. All work on them is to be queued on the
/// device's stream, in whose order their memory is used again.
pub struct Arena {
    /// None: buffers have no memory.
    block: Option<imp::Block>,
    ranges: Rc<RefCell<Ranges>>,
}

/// What a buffer gives back.
pub(super) struct Part {
    ranges: Rc<RefCell<Ranges>>,
    offset: u64,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.ranges.borrow_mut().give_back(self.offset);
    }
}

impl Arena {
    /// `bytes` of the device's memory, in one piece.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let ranges = Ranges::new(bytes);
        let block = Some(device.0.block(ranges.capacity())?);
        Ok(Self { block, ranges: Rc::new(RefCell::new(ranges)) })
    }

    /// Without memory and without end: what a run takes from it and gives back, [`peak`](Self::peak) sums up.
    pub fn planned() -> Self {
        Self { block: None, ranges: Rc::new(RefCell::new(Ranges::new(u64::MAX))) }
    }

    /// `len` elements of any bits, a part of that name. An error if no gap has room for them.
    pub fn take<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| u64::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| CudaError::Device(format!("{name} of {len} elements is too large")))?;
        let mut ranges = self.ranges.borrow_mut();
        let Some(offset) = ranges.take(name, bytes) else {
            let (taken, capacity) = (ranges.taken(), ranges.capacity());
            return Err(CudaError::Device(format!(
                "no room for {bytes} bytes of {name}: {taken} of the {capacity} bytes that were planned are taken"
            )));
        };
        let part = Part { ranges: self.ranges.clone(), offset };
        let memory = self.block.as_ref().map(|block| block.part(offset, len)).transpose()?;
        Ok(Buffer { memory, len, _part: Some(part) })
    }

    /// Bytes that are taken now.
    pub fn taken(&self) -> u64 {
        self.ranges.borrow().taken()
    }

    pub fn peak(&self) -> Peak {
        self.ranges.borrow().peak().clone()
    }
}
