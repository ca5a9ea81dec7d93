//! Device memory with a length, and what the trainer and tests run on: host memory in the emulated build.

mod arena;
mod copies;
#[cfg(feature = "emulation")]
mod emulated;
#[cfg(not(feature = "emulation"))]
mod gpu;
#[cfg(not(feature = "emulation"))]
mod gpu_copies;
mod pinned;
pub mod ranges;
mod view;

pub use arena::Arena;
pub use copies::{Inbox, Marks, Outbox};
pub use pinned::{Pinned, Stash};
pub use view::{View, ViewMut};

use super::{CudaError, Result, Stream};
use arena::Part;
#[cfg(feature = "emulation")]
use emulated as imp;
#[cfg(not(feature = "emulation"))]
use gpu as imp;

mod sealed {
    pub trait Sealed {}
}

/// Types that kernels read and write: any bits are a value.
pub trait Element: Copy + sealed::Sealed + 'static {}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i32, u32, u64, f32, half::bf16);

/// What the trainer and tests run on: the emulation on the host, or a GPU.
pub struct Device(imp::Device);

/// `len` elements of a [`Device`], 256-byte aligned as device memory is.
pub struct Buffer<T: Element> {
    /// None: a plan's, without memory.
    memory: Option<imp::Memory<T>>,
    len: usize,
    /// The part of an arena that it gives back. After `memory`, so that it is dropped last.
    _part: Option<Part>,
}

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// That nothing has taken: no context, this process's included, and no other process.
    pub free: u64,
    pub total: u64,
}

impl Device {
    /// The first GPU. An error, not a panic, where there is no driver or no GPU.
    pub fn open() -> Result<Self> {
        Self::open_at(0)
    }

    /// The GPU of this number, current in this thread from then on. The emulation has one.
    pub fn open_at(ordinal: usize) -> Result<Self> {
        imp::Device::open(ordinal).map(Self)
    }

    /// For test output: the GPU's name, or that it is emulated.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// The one on which calls, copies included, are in order.
    pub fn stream(&self) -> Stream {
        self.0.stream()
    }

    /// The emulation has 64 GiB, or what the variable `QLORA_EMULATION_MEMORY` says.
    pub fn capacity(&self) -> Result<Capacity> {
        self.0.capacity()
    }

    /// Waits for everything that is queued on the stream.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }

    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        let memory = self.0.room(data.len())?;
        let mut buffer = Buffer { memory: Some(memory), len: data.len(), _part: None };
        self.write(&mut buffer, data)?;
        Ok(buffer)
    }

    /// `len` elements of zero bits.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer { memory: Some(self.0.room(len)?), len, _part: None };
        self.clear(&mut buffer)?;
        Ok(buffer)
    }

    /// Overwrites the first elements, in the order of the stream.
    pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
        check_room(data.len(), buffer.len())?;
        self.0.write(buffer.memory_mut(), data)
    }

    /// Overwrites all elements with zero bits, in the order of the stream.
    pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        let len = buffer.len;
        self.0.clear(buffer.memory_mut(), len)
    }

    /// Overwrites all elements with those of `pattern` from element `first` on, which comes round again, in the order of the stream.
    pub fn repeat<T: Element>(&self, buffer: &mut Buffer<T>, pattern: &Buffer<T>, first: usize) -> Result<()> {
        if first >= pattern.len() {
            let len = pattern.len();
            return Err(CudaError::Device(format!("a pattern of {len} elements has no element {first}")));
        }
        let (mut done, mut from) = (0, first);
        while done < buffer.len() {
            let len = (pattern.len() - from).min(buffer.len() - done);
            self.0.copy(pattern.memory(), from, buffer.memory_mut(), done, len)?;
            (done, from) = (done + len, 0);
        }
        Ok(())
    }

    /// Waits for the stream, then copies.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.0.download(buffer.memory(), buffer.len)
    }
}

fn check_room(found: usize, room: usize) -> Result<()> {
    if found > room {
        return Err(CudaError::Device(format!("{found} elements do not fit into a buffer of {room}")));
    }
    Ok(())
}

impl<T: Element> Buffer<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn memory(&self) -> &imp::Memory<T> {
        self.memory.as_ref().expect("a buffer of a plan has no memory")
    }

    fn memory_mut(&mut self) -> &mut imp::Memory<T> {
        self.memory.as_mut().expect("a buffer of a plan has no memory")
    }

    /// # Panics
    ///
    /// On a buffer of [`Arena::planned`].
    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the buffer owns its elements for the view's lifetime; whoever gets its memory next works in the order of the
        // same stream.
        unsafe { View::from_raw_parts(self.memory().address(), self.len) }
    }

    /// # Panics
    ///
    /// On a buffer of [`Arena::planned`].
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let len = self.len;
        // SAFETY: as in `view`; the exclusive borrow keeps other views away.
        unsafe { ViewMut::from_raw_parts(self.memory_mut().address(), len) }
    }
}
