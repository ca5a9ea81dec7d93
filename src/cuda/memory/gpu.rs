//! A GPU's memory.

use super::gpu_copies;
use super::{Capacity, CudaError, Element, Result, Stream};
use cudarc::driver::{CudaContext, result, sys};
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;

pub use gpu_copies::{Inbox, Marks, Outbox, Pinned, Slot};

/// A GPU and its default stream, on which calls are in order.
pub struct Device {
    pub(super) context: Arc<CudaContext>,
    pub(super) copies: Rc<CopyStreams>,
}

/// Two streams that wait for no other by themselves, and nor does the default stream for them.
pub(super) struct CopyStreams {
    context: Arc<CudaContext>,
    pub(super) to_device: sys::CUstream,
    pub(super) from_device: sys::CUstream,
}

/// Memory of its own, or a part of an arena's.
pub struct Memory<T: Element> {
    address: *mut T,
    owner: Owner,
}

enum Owner {
    Itself(Arc<CudaContext>),
    Arena { _allocation: Arc<Allocation> },
}

/// An arena's memory.
pub struct Block(Arc<Allocation>);

struct Allocation {
    context: Arc<CudaContext>,
    address: sys::CUdeviceptr,
    bytes: u64,
}

pub(super) fn failed(what: &str, error: result::DriverError) -> CudaError {
    CudaError::driver(what, error.0 as i32, format!("{error:?}"))
}

fn allocate(bytes: usize) -> Result<sys::CUdeviceptr> {
    // SAFETY: the caller bound the context; at least one byte is asked for.
    unsafe { result::malloc_sync(bytes.max(1)) }
        .map_err(|error| failed(&format!("{bytes} bytes of device memory"), error))
}

/// An error here would repeat one that a call has returned.
fn free(context: &Arc<CudaContext>, address: sys::CUdeviceptr) {
    if context.bind_to_thread().is_ok() {
        // SAFETY: allocated by `allocate`, freed once; waits for the work that uses it.
        let _ = unsafe { result::free_sync(address) };
    }
}

impl Device {
    pub fn open(ordinal: usize) -> Result<Self> {
        let context = crate::cuda::typed::context(ordinal)?;
        context.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))?;
        let stream = || {
            result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|error| failed("a stream cannot be made", error))
        };
        let copies = CopyStreams { to_device: stream()?, from_device: stream()?, context: context.clone() };
        Ok(Self { context, copies: Rc::new(copies) })
    }

    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|error| format!("a GPU without a name ({error:?})"))
    }

    /// Made that of this device: the default stream is one of whichever context is current.
    pub fn stream(&self) -> Stream {
        // An error here is that of the call that follows.
        let _ = self.bind();
        Stream::DEFAULT
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))
    }

    pub fn capacity(&self) -> Result<Capacity> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|error| failed("the device's memory", error))?;
        Ok(Capacity { free: free as u64, total: total as u64 })
    }

    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the default stream of the context that was just bound.
        unsafe { result::stream::synchronize(null_mut()) }.map_err(|error| failed("waiting for the device", error))
    }

    /// Any bits.
    pub fn room<T: Element>(&self, len: usize) -> Result<Memory<T>> {
        self.bind()?;
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| CudaError::Device(format!("a buffer of {len} elements is too large")))?;
        Ok(Memory { address: allocate(bytes)? as *mut T, owner: Owner::Itself(self.context.clone()) })
    }

    pub fn block(&self, bytes: u64) -> Result<Block> {
        self.bind()?;
        let len = usize::try_from(bytes).map_err(|_| CudaError::Device(format!("{bytes} bytes are too many")))?;
        Ok(Block(Arc::new(Allocation { address: allocate(len)?, context: self.context.clone(), bytes })))
    }

    pub fn write<T: Element>(&self, memory: &mut Memory<T>, data: &[T]) -> Result<()> {
        self.bind()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller checked that there are as many elements; the copy is in the order of the default stream.
        unsafe { result::memcpy_htod_sync(memory.address as sys::CUdeviceptr, bytes_of(data)) }
            .map_err(|error| failed("copy to the device", error))
    }

    pub fn clear<T: Element>(&self, memory: &mut Memory<T>, len: usize) -> Result<()> {
        self.bind()?;
        if len == 0 {
            return Ok(());
        }
        let bytes = len * size_of::<T>();
        // SAFETY: the memory's own bytes; zero bits are an `Element`. In the order of the default stream.
        unsafe { result::memset_d8_async(memory.address as sys::CUdeviceptr, 0, bytes, null_mut()) }
            .map_err(|error| failed("clearing device memory", error))
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
        self.bind()?;
        let (from, to) = (from.address.wrapping_add(first), to.address.wrapping_add(at));
        // SAFETY: both have these elements; the copy is in the order of the default stream.
        unsafe {
            result::memcpy_dtod_async(
                to as sys::CUdeviceptr,
                from as sys::CUdeviceptr,
                len * size_of::<T>(),
                null_mut(),
            )
        }
        .map_err(|error| failed("copy on the device", error))
    }

    pub fn download<T: Element>(&self, memory: &Memory<T>, len: usize) -> Result<Vec<T>> {
        self.bind()?;
        let mut data: Vec<T> = Vec::with_capacity(len);
        if len > 0 {
            let bytes = len * size_of::<T>();
            // SAFETY: the vector has room for these bytes; any bits are an `Element`. The copy is in the order of the default
            // stream and ends before it returns.
            unsafe {
                let room = std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), bytes);
                result::memcpy_dtoh_sync(room, memory.address as sys::CUdeviceptr)
                    .map_err(|error| failed("copy from the device", error))?;
                data.set_len(len);
            }
        }
        Ok(data)
    }
}

pub(super) fn bytes_of<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: the bytes of `data` are initialised (`Element` has no padding).
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) }
}

impl Block {
    pub fn part<T: Element>(&self, offset: u64, len: usize) -> Result<Memory<T>> {
        assert!(offset + (len * size_of::<T>()) as u64 <= self.0.bytes, "an arena's part lies within it");
        let address = (self.0.address + offset) as *mut T;
        Ok(Memory { address, owner: Owner::Arena { _allocation: self.0.clone() } })
    }
}

impl<T: Element> Memory<T> {
    pub fn address(&self) -> *mut T {
        self.address
    }
}

impl<T: Element> Drop for Memory<T> {
    fn drop(&mut self) {
        if let Owner::Itself(context) = &self.owner {
            free(context, self.address as sys::CUdeviceptr);
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        free(&self.context, self.address);
    }
}

impl Drop for CopyStreams {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `open`, destroyed once; what is queued on them still runs. An error here has no one to go to.
            let _ = unsafe { (result::stream::destroy(self.to_device), result::stream::destroy(self.from_device)) };
        }
    }
}
