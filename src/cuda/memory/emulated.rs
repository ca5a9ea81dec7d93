//! The emulation's memory: the host's. Launches are over when they return, so every copy is done at once.

use super::{Capacity, CudaError, Element, Result, Stream};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::time::Instant;

/// Bytes of memory that the emulated GPU has.
const MEMORY: &str = "QLORA_EMULATION_MEMORY";
/// The launch from which on the emulated GPU is lost, and the error that launches then return.
const LOST: &str = "QLORA_EMULATION_LOST";
const MEMORY_BYTES: u64 = 64 << 30;

pub struct Device;

/// Exactly as long as its elements, so that AddressSanitizer sees the first byte past them.
pub struct Memory<T: Element> {
    address: *mut T,
    len: usize,
}

/// An arena's: each part is memory of its own.
pub struct Block;

impl Device {
    pub fn open(ordinal: usize) -> Result<Self> {
        if let Ok(text) = std::env::var(LOST) {
            let numbers =
                text.split_once(':').and_then(|(launch, code)| Some((launch.parse().ok()?, code.parse().ok()?)));
            let numbers =
                numbers.ok_or_else(|| CudaError::Device(format!("{LOST}: {text:?}, expected LAUNCH:CODE")))?;
            crate::cuda::emulation::lose(numbers.0, numbers.1);
        }
        match ordinal {
            0 => Ok(Self),
            _ => Err(CudaError::Device(format!("there is no GPU {ordinal}: the emulation has one, number 0"))),
        }
    }

    pub fn name(&self) -> String {
        "the emulation on the host (no GPU)".into()
    }

    pub fn stream(&self) -> Stream {
        Stream::DEFAULT
    }

    pub fn capacity(&self) -> Result<Capacity> {
        let total = match std::env::var(MEMORY) {
            Err(_) => MEMORY_BYTES,
            Ok(text) => text.parse().map_err(|_| CudaError::Device(format!("{MEMORY}: {text:?}, expected bytes")))?,
        };
        Ok(Capacity { free: total, total })
    }

    pub fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Zeros.
    pub fn room<T: Element>(&self, len: usize) -> Result<Memory<T>> {
        let layout = layout::<T>(len)?;
        // SAFETY: the layout is of at least one byte.
        let address = unsafe { alloc_zeroed(layout) }.cast::<T>();
        if address.is_null() {
            handle_alloc_error(layout);
        }
        Ok(Memory { address, len })
    }

    pub fn block(&self, bytes: u64) -> Result<Block> {
        let free = self.capacity()?.free;
        if bytes > free {
            return Err(CudaError::Device(format!("{bytes} bytes of device memory: the emulation has {free}")));
        }
        Ok(Block)
    }

    pub fn write<T: Element>(&self, memory: &mut Memory<T>, data: &[T]) -> Result<()> {
        // SAFETY: the caller checked that the memory, which is not of `data`, has as many elements.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), memory.address, data.len()) };
        Ok(())
    }

    pub fn clear<T: Element>(&self, memory: &mut Memory<T>, len: usize) -> Result<()> {
        // SAFETY: the memory's own elements; zero bits are an `Element`.
        unsafe { std::ptr::write_bytes(memory.address, 0, len) };
        Ok(())
    }

    /// `len` elements; the caller checked that both have as many from there on.
    pub fn copy<T: Element>(
        &self,
        from: &Memory<T>,
        first: usize,
        to: &mut Memory<T>,
        at: usize,
        len: usize,
    ) -> Result<()> {
        // SAFETY: both have these elements, initialised since `room`, and are not the same memory: one is borrowed exclusively.
        unsafe { std::ptr::copy_nonoverlapping(from.address.add(first), to.address.add(at), len) };
        Ok(())
    }

    pub fn download<T: Element>(&self, memory: &Memory<T>, len: usize) -> Result<Vec<T>> {
        // SAFETY: the elements are initialised since `room`; launches are over when they return.
        Ok(unsafe { std::slice::from_raw_parts(memory.address, len) }.to_vec())
    }
}

impl Block {
    /// A value that is read before it is written must not go unnoticed: every byte is 0xff, which makes floating-point numbers NaN.
    pub fn part<T: Element>(&self, _offset: u64, len: usize) -> Result<Memory<T>> {
        let memory = Device.room::<T>(len)?;
        // SAFETY: the memory's own elements; any bits are an `Element`.
        unsafe { std::ptr::write_bytes(memory.address, 0xff, len) };
        Ok(memory)
    }
}

impl<T: Element> Memory<T> {
    pub fn address(&self) -> *mut T {
        self.address
    }
}

impl<T: Element> Drop for Memory<T> {
    fn drop(&mut self) {
        if let Ok(layout) = layout::<T>(self.len) {
            // SAFETY: allocated in `room` with this layout.
            unsafe { dealloc(self.address.cast(), layout) }
        }
    }
}

fn layout<T>(len: usize) -> Result<Layout> {
    let bytes = len.checked_mul(size_of::<T>()).map(|bytes| bytes.max(1));
    bytes
        .and_then(|bytes| Layout::from_size_align(bytes, 256).ok())
        .ok_or_else(|| CudaError::Device(format!("a buffer of {len} elements is too large")))
}

pub struct Inbox<T: Element> {
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Inbox<T> {
    pub fn new(_device: &Device, len: usize) -> Result<Self> {
        Ok(Self { len, element: std::marker::PhantomData })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn send(&mut self, device: &Device, data: &[T], memory: &mut Memory<T>) -> Result<()> {
        device.write(memory, data)
    }
}

pub struct Outbox<T: Element> {
    len: usize,
    data: Vec<T>,
}

impl<T: Element> Outbox<T> {
    pub fn new(_device: &Device, len: usize) -> Result<Self> {
        Ok(Self { len, data: Vec::new() })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn fetch(&mut self, device: &Device, memory: &Memory<T>, len: usize) -> Result<()> {
        self.data = device.download(memory, len)?;
        Ok(())
    }

    pub fn read(&mut self) -> Result<&[T]> {
        Ok(&self.data)
    }
}

pub struct Marks(Vec<Instant>);

impl Marks {
    pub fn new(_device: &Device) -> Result<Self> {
        Ok(Self(Vec::new()))
    }

    pub fn add(&mut self) -> Result<()> {
        self.0.push(Instant::now());
        Ok(())
    }

    pub fn seconds(&mut self) -> Result<Vec<f64>> {
        let marks = std::mem::take(&mut self.0);
        Ok(marks.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
    }
}

/// Every second copy is done at once and the others only when they are waited for, as a GPU may do it: a buffer that is used meanwhile
/// shows.
pub struct Slot<T: Element> {
    len: usize,
    data: Vec<T>,
    copies: usize,
    late: Option<Late<T>>,
}

enum Late<T> {
    Put(*const T),
    Get(*mut T),
}

impl<T: Element> Slot<T> {
    pub fn new(_device: &Device, len: usize) -> Result<Self> {
        Ok(Self { len, data: Vec::new(), copies: 0, late: None })
    }

    pub fn put(&mut self, _device: &Device, memory: &Memory<T>) -> Result<()> {
        self.copy(Late::Put(memory.address))
    }

    pub fn get(&mut self, _device: &Device, memory: &mut Memory<T>) -> Result<()> {
        self.copy(Late::Get(memory.address))
    }

    fn copy(&mut self, copy: Late<T>) -> Result<()> {
        self.settle()?;
        self.late = Some(copy);
        self.copies += 1;
        if self.copies.is_multiple_of(2) { self.settle() } else { Ok(()) }
    }

    /// Whoever called `put` or `get` keeps the memory until then.
    pub fn settle(&mut self) -> Result<()> {
        match self.late.take() {
            // SAFETY: memory of `len` elements, all initialised, that is kept until now.
            Some(Late::Put(from)) => self.data = unsafe { std::slice::from_raw_parts(from, self.len) }.to_vec(),
            // SAFETY: memory of `len` elements, as many as were put, that is kept until now.
            Some(Late::Get(to)) => unsafe { std::ptr::copy_nonoverlapping(self.data.as_ptr(), to, self.len) },
            None => (),
        }
        Ok(())
    }
}

pub struct Pinned<T: Element>(Vec<T>);

impl<T: Element> Pinned<T> {
    pub fn new(_device: &Device, data: &[T]) -> Result<Self> {
        Ok(Self(data.to_vec()))
    }

    pub fn address(&self) -> *const T {
        self.0.as_ptr()
    }
}
