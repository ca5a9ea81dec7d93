//! Opening a device, and plain copies from and to it.

use super::buffer::{Memory, byte_len, check_room};
use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use super::element::bytes_of;
use super::{Buffer, Element, Implementation, Stream};
use crate::error::{CudaError, Result};
use std::rc::Rc;

/// The kernels that a build has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Compiled by nvcc, for a GPU (feature `cuda`).
    Cuda,
    /// Compiled for the host, for tests (feature `emulation`, with or without `cuda`).
    Emulated,
    /// None: a device cannot be opened.
    Absent,
}

/// The kernels of this build.
pub const KERNELS: Kernels = match () {
    #[cfg(kernels = "cuda")]
    () => Kernels::Cuda,
    #[cfg(kernels = "emulated")]
    () => Kernels::Emulated,
    #[cfg(kernels = "absent")]
    () => Kernels::Absent,
};

/// The architectures that nvcc compiled the kernels for, for example "80,90,120": code of each, and PTX of the first
/// for what is newer. None in a build without nvcc.
pub const ARCHITECTURES: Option<&str> = option_env!("QLORA_KERNELS_ARCHS");

/// A GPU, or the emulation of one on the host.
pub struct Device(Rc<Implementation>);

/// The CUDA version that the driver supports, for example "13.0". An error where there is no driver, or one that is too
/// old for this build.
pub fn cuda_version() -> Result<String> {
    Implementation::cuda_version()
}

/// The driver's version, as its kernel module tells it.
pub fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

impl Device {
    /// The first GPU. An error, not a panic, where there is no driver or no GPU.
    pub fn open() -> Result<Self> {
        Self::open_at(0)
    }

    /// The GPU of this number, current in this thread from then on. The emulation has one.
    pub fn open_at(ordinal: usize) -> Result<Self> {
        Ok(Self(Rc::new(Implementation::open(ordinal)?)))
    }

    pub(super) fn driver(&self) -> &Rc<Implementation> {
        &self.0
    }

    /// The GPU's name, or that it is emulated.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// A text that no other GPU has: its UUID.
    pub fn identity(&self) -> Result<String> {
        self.0.bind()?;
        self.0.identity()
    }

    /// Name, compute capability and sizes of the device.
    pub fn info(&self) -> Result<DeviceInfo> {
        self.0.bind()?;
        self.0.info()
    }

    /// The stream on which calls, copies included, are in order. It is the device's own, waits for no other stream, and
    /// ends with the device, which all its buffers keep.
    pub fn stream(&self) -> Stream {
        // A stream is of a context, which is to be current. An error here is that of the call that follows.
        let _ = self.0.bind();
        // SAFETY: a stream of the context that was just made current; it lives as long as the buffers that a call on it
        // uses.
        unsafe { Stream::from_raw(self.0.raw(Queue::Compute).cast()) }
    }

    /// The emulation has 64 GiB, or what the variable `QLORA_EMULATION_MEMORY` says.
    pub fn mem_info(&self) -> Result<MemInfo> {
        self.0.bind()?;
        self.0.mem_info()
    }

    /// Waits for everything that is queued on the stream.
    pub fn synchronize(&self) -> Result<()> {
        self.0.bind()?;
        self.0.synchronize()
    }

    /// A copy of `data`, which any stream finds when this returns.
    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.uninit(data.len())?;
        self.write(&mut buffer, data)?;
        Ok(buffer)
    }

    /// `len` elements of zero bits, which any stream finds when this returns.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.uninit(len)?;
        self.clear(&mut buffer)?;
        self.synchronize()?;
        Ok(buffer)
    }

    fn uninit<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        Ok(Buffer::new(Some(Memory::new(&self.0, byte_len::<T>(len)?)?), len, None))
    }

    /// Overwrites the first elements, in the order of the stream, and waits for it.
    pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
        check_room(data.len(), buffer.len())?;
        self.0.bind()?;
        // SAFETY: the buffer has as many elements.
        unsafe { self.0.write(buffer.address(), bytes_of(data)) }
    }

    /// Overwrites all elements with zero bits, in the order of the stream.
    pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        self.0.bind()?;
        // SAFETY: the buffer's own elements; zero bits are an `Element`.
        unsafe { self.0.clear(buffer.address(), buffer.len() * size_of::<T>()) }
    }

    /// Overwrites all elements with those of `pattern` from element `first` on, which comes round again, in the order
    /// of the stream.
    pub fn repeat<T: Element>(&self, buffer: &mut Buffer<T>, pattern: &Buffer<T>, first: usize) -> Result<()> {
        if first >= pattern.len() {
            let len = pattern.len();
            return Err(CudaError::Device(format!("a pattern of {len} elements has no element {first}")));
        }
        self.0.bind()?;
        let (mut done, mut from) = (0, first);
        while done < buffer.len() {
            let len = (pattern.len() - from).min(buffer.len() - done);
            let to = buffer.address().wrapping_add(done * size_of::<T>());
            let source = pattern.address().wrapping_add(from * size_of::<T>());
            // SAFETY: both buffers have `len` elements from there on, and one is borrowed exclusively, so that they are
            // not the same.
            unsafe { self.0.copy(Queue::Compute, to, source, len * size_of::<T>()) }?;
            (done, from) = (done + len, 0);
        }
        Ok(())
    }

    /// Waits for the stream, then copies.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.0.bind()?;
        let mut data: Vec<T> = Vec::with_capacity(buffer.len());
        // SAFETY: the vector has room for as many elements as the buffer has; any bits are an `Element`, and all are
        // written before the length is set.
        unsafe {
            self.0.read(data.as_mut_ptr().cast(), buffer.address(), buffer.len() * size_of::<T>())?;
            data.set_len(buffer.len());
        }
        Ok(data)
    }
}
