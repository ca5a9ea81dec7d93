//! Arrays in pinned host memory that the device uses again and again: in place, or in a copy of its own.

use super::buffer::check_room;
use super::staging::Staging;
use super::{Buffer, Device, Element, HostMemory, SharedPinned, View, ViewMut};
use crate::error::Result;
use std::rc::Rc;

/// An array in pinned host memory that kernels read, and may write, in place, or that is copied to the device for use.
pub struct PinnedBuffer<T: Element>(Staging<T>);

impl<T: Element> PinnedBuffer<T> {
    /// A copy of `data` in pinned host memory.
    pub fn new(device: &Device, data: &[T]) -> Result<Self> {
        Self::new_in(device, data, HostMemory::Pinned)
    }

    /// A copy of `data` in host memory of this kind. An array that is not pinned is copied to the device and not used
    /// in place.
    pub fn new_in(device: &Device, data: &[T], kind: HostMemory) -> Result<Self> {
        let mut staging = Staging::new(device, data.len(), kind)?;
        staging.memory.set(data);
        Ok(Self(staging))
    }

    /// `len` elements of memory that several processes share, from byte `first` on, to be copied and not used in place.
    pub fn shared(memory: &Rc<SharedPinned>, first: usize, len: usize) -> Result<Self> {
        Staging::shared(memory, first, len).map(Self)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.memory.len()
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The array for kernels that read it in place.
    ///
    /// # Panics
    ///
    /// If the memory is shared or not pinned.
    pub fn view(&self) -> View<'_, T> {
        assert!(self.0.memory.is_in_reach(), "memory of several processes, or not pinned, is copied before it is used");
        // SAFETY: the array lives for the view's lifetime, the host writes nothing to it, and the device sees it at
        // this address. Before it is freed, what was queued on the device's stream is waited for.
        unsafe { View::from_raw_parts(self.0.memory.address().cast(), self.len()) }
    }

    /// The array for kernels that write it in place.
    ///
    /// # Panics
    ///
    /// If the memory is shared or not pinned.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        assert!(self.0.memory.is_in_reach(), "pinned memory of its own is written");
        // SAFETY: as in `view`; the host does not read the array after `new` either, and work that is queued later on
        // the device's stream runs later.
        unsafe { ViewMut::from_raw_parts(self.0.memory.address().cast(), self.len()) }
    }

    /// Overwrites `buffer`, which has as many elements, after what was queued before and before what is queued next.
    /// The host goes on at once.
    pub fn copy_to(&mut self, buffer: &mut Buffer<T>) -> Result<()> {
        let len = self.len();
        check_room(buffer.len(), len)?;
        self.0.copy_to_device(buffer, len)?;
        self.0.precede_compute()
    }
}

impl<T: Element> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // Queued work may still read it. An error would be that of an earlier call.
        let _ = self.0.synchronize();
    }
}
