//! What a run keeps in pinned host memory for the device: buffers that go there and come back, and arrays that are read in place.

use super::{Buffer, Device, Element, Result, View, check_room, imp};

/// Pinned host memory for one buffer of a device at a time: it leaves while the device goes on computing, and comes back before it is
/// used. The buffer is kept until its copy is done, so that its memory is not used for anything else meanwhile.
///
/// ```text
/// leave ─▶ settle … come ─▶ arrive
/// ```
pub struct Stash<T: Element> {
    slot: imp::Slot<T>,
    len: usize,
    /// On its way to the host
    leaving: Option<Buffer<T>>,
    /// On its way back
    coming: Option<Buffer<T>>,
}

impl<T: Element> Stash<T> {
    /// For buffers of `len` elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Ok(Self { slot: imp::Slot::new(&device.0, len)?, len, leaving: None, coming: None })
    }

    /// Begins to copy `buffer` to the host as it is after what is queued now.
    ///
    /// # Panics
    ///
    /// If another one is on its way.
    pub fn leave(&mut self, device: &Device, buffer: Buffer<T>) -> Result<()> {
        assert!(self.leaving.is_none() && self.coming.is_none(), "a stash is for one buffer at a time");
        check_room(buffer.len(), self.len)?;
        check_room(self.len, buffer.len())?;
        self.slot.put(&device.0, buffer.memory())?;
        self.leaving = Some(buffer);
        Ok(())
    }

    /// What is queued next on the device's stream follows the copy; the buffer that left is given up.
    pub fn settle(&mut self) -> Result<()> {
        self.slot.settle()?;
        self.leaving = None;
        Ok(())
    }

    /// Begins to copy what left into `buffer`, after what is queued now.
    ///
    /// # Panics
    ///
    /// Before [`settle`](Self::settle), or if it is on its way already.
    pub fn come(&mut self, device: &Device, mut buffer: Buffer<T>) -> Result<()> {
        assert!(self.leaving.is_none() && self.coming.is_none(), "what has left comes back once");
        check_room(self.len, buffer.len())?;
        self.slot.get(&device.0, buffer.memory_mut())?;
        self.coming = Some(buffer);
        Ok(())
    }

    /// The buffer that came; what is queued next on the device's stream finds it whole.
    ///
    /// # Panics
    ///
    /// If none is on its way.
    pub fn arrive(&mut self) -> Result<Buffer<T>> {
        self.slot.settle()?;
        Ok(self.coming.take().expect("what arrives was on its way"))
    }
}

impl<T: Element> Drop for Stash<T> {
    fn drop(&mut self) {
        // Buffers on their way are given up only after their copies. An error would be that of an earlier call.
        let _ = self.slot.settle();
    }
}

/// An array in pinned host memory that the device reads in place.
pub struct Pinned<T: Element> {
    memory: imp::Pinned<T>,
    len: usize,
}

impl<T: Element> Pinned<T> {
    pub fn new(device: &Device, data: &[T]) -> Result<Self> {
        Ok(Self { memory: imp::Pinned::new(&device.0, data)?, len: data.len() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the array lives for the view's lifetime, nothing writes to it, and the device sees it at this address. Before it is
        // freed, what was queued on the device's stream is waited for.
        unsafe { View::from_raw_parts(self.memory.address(), self.len) }
    }
}
