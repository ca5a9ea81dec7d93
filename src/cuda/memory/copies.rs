//! Copies between the host and the device beside the stream that computes, one stream in each direction, and marks in the stream's
//! time. The host waits only where it reads.

use super::{Buffer, Device, Element, Result, check_room, imp};

/// Pinned host memory through which an array gets to the device, again and again. The host goes on at once; what is queued on the
/// device's stream afterwards finds the array.
pub struct Inbox<T: Element>(imp::Inbox<T>);

/// Pinned host memory through which an array comes from the device.
pub struct Outbox<T: Element>(imp::Outbox<T>);

/// Moments in the work of the device's stream.
pub struct Marks(imp::Marks);

impl<T: Element> Inbox<T> {
    /// For arrays of at most `len` elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        imp::Inbox::new(&device.0, len).map(Self)
    }

    /// Elements of the longest array.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Overwrites the first elements of `buffer`, after what was queued before and before what is queued next. Waits only until the
    /// last array has left the host.
    pub fn send(&mut self, device: &Device, data: &[T], buffer: &mut Buffer<T>) -> Result<()> {
        check_room(data.len(), buffer.len().min(self.len()))?;
        self.0.send(&device.0, data, buffer.memory_mut())
    }
}

impl<T: Element> Outbox<T> {
    /// For arrays of `len` elements.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        imp::Outbox::new(&device.0, len).map(Self)
    }

    /// Fetches `buffer` as it is after what is queued now; what is queued next on the device's stream follows the copy. The host
    /// goes on at once.
    pub fn fetch(&mut self, device: &Device, buffer: &Buffer<T>) -> Result<()> {
        check_room(buffer.len(), self.0.len())?;
        self.0.fetch(&device.0, buffer.memory(), buffer.len())
    }

    /// Waits for what was fetched last.
    pub fn read(&mut self) -> Result<&[T]> {
        self.0.read()
    }
}

impl Marks {
    pub fn new(device: &Device) -> Result<Self> {
        imp::Marks::new(&device.0).map(Self)
    }

    /// Remembers when the work that is queued so far is done, without waiting for it.
    pub fn add(&mut self) -> Result<()> {
        self.0.add()
    }

    /// Seconds from each mark to the next, and none of them is remembered any more. Waits for the last.
    pub fn seconds(&mut self) -> Result<Vec<f64>> {
        self.0.seconds()
    }
}
