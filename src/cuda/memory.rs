//! Device memory with a length, and buffers for tests: host memory in the emulated build.

use super::{CudaError, Result, Stream};
use std::marker::PhantomData;

mod sealed {
    pub trait Sealed {}
}

/// Types that kernels read and write: any bits are a value.
pub trait Element: Copy + sealed::Sealed + 'static {}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i32, u32, u64, f32, half::bf16);

/// Device memory that a call reads.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    address: *const T,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

impl<'a, T: Element> View<'a, T> {
    /// # Safety
    ///
    /// - `address .. address + len` is memory of the device (of the host, in the emulated build) aligned to `T`;
    /// - it stays allocated, and nothing writes to it, until the work queued with this view is done.
    pub const unsafe fn from_raw_parts(address: *const T, len: usize) -> Self {
        Self { address, len, memory: PhantomData }
    }

    pub fn address(&self) -> *const T {
        self.address
    }

    /// The first `len` elements, or all if there are fewer.
    pub fn first(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Device memory that a call writes.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    address: *mut T,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// # Safety
    ///
    /// As [`View::from_raw_parts`], and nothing else reads or writes it until the work queued with this view is done.
    pub const unsafe fn from_raw_parts(address: *mut T, len: usize) -> Self {
        Self { address, len, memory: PhantomData }
    }

    pub fn address(&self) -> *mut T {
        self.address
    }

    /// The first `len` elements, or all if there are fewer.
    pub fn first(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What tests run on: the emulation on the host, or the first GPU.
pub struct Device(imp::Device);

/// `len` elements of a [`Device`], 256-byte aligned as device memory is.
pub struct Buffer<T: Element>(imp::Buffer<T>);

impl Device {
    /// An error, not a panic, where there is no driver or no GPU.
    pub fn open() -> Result<Self> {
        imp::Device::open().map(Self)
    }

    /// For test output: the GPU's name, or that it is emulated.
    pub fn name(&self) -> String {
        self.0.name()
    }

    pub fn stream(&self) -> Stream {
        self.0.stream()
    }

    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        self.0.upload(data).map(Buffer)
    }

    /// Waits for the stream, then copies.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.0.download(&buffer.0)
    }
}

impl<T: Element> Buffer<T> {
    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the buffer owns its elements for the view's lifetime and is freed in stream order.
        unsafe { View::from_raw_parts(self.0.address(), self.0.len()) }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        // SAFETY: as in `view`; the exclusive borrow keeps other views away.
        unsafe { ViewMut::from_raw_parts(self.0.address(), self.0.len()) }
    }
}

#[cfg(feature = "emulation")]
mod imp {
    use super::*;
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

    pub struct Device;

    /// Exactly as long as its elements, so that AddressSanitizer sees the first byte past them.
    pub struct Buffer<T: Element> {
        address: *mut T,
        len: usize,
    }

    impl Device {
        pub fn open() -> Result<Self> {
            Ok(Self)
        }

        pub fn name(&self) -> String {
            "the emulation on the host (no GPU)".into()
        }

        pub fn stream(&self) -> Stream {
            Stream::DEFAULT
        }

        pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
            let layout = layout::<T>(data.len())?;
            // SAFETY: the layout is of at least one byte.
            let address = unsafe { alloc(layout) }.cast::<T>();
            if address.is_null() {
                handle_alloc_error(layout);
            }
            // SAFETY: `data.len()` elements were just allocated, and do not overlap `data`.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), address, data.len()) };
            Ok(Buffer { address, len: data.len() })
        }

        pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
            // SAFETY: the buffer's elements are initialised since `upload`; launches are over when they return.
            Ok(unsafe { std::slice::from_raw_parts(buffer.address, buffer.len) }.to_vec())
        }
    }

    impl<T: Element> Buffer<T> {
        pub fn address(&self) -> *mut T {
            self.address
        }

        pub fn len(&self) -> usize {
            self.len
        }
    }

    impl<T: Element> Drop for Buffer<T> {
        fn drop(&mut self) {
            if let Ok(layout) = layout::<T>(self.len) {
                // SAFETY: allocated in `upload` with this layout.
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
}

#[cfg(not(feature = "emulation"))]
mod imp {
    use super::*;
    use cudarc::driver::{CudaContext, result, sys};
    use std::sync::Arc;

    /// The first GPU and its default stream, on which calls are in order.
    pub struct Device(Arc<CudaContext>);

    pub struct Buffer<T: Element> {
        context: Arc<CudaContext>,
        address: *mut T,
        len: usize,
    }

    fn failed(what: &str, error: impl std::fmt::Debug) -> CudaError {
        CudaError::Device(format!("{what}: {error:?}"))
    }

    impl Device {
        pub fn open() -> Result<Self> {
            crate::cuda::typed::context(0).map(Self)
        }

        pub fn name(&self) -> String {
            self.0.name().unwrap_or_else(|error| format!("a GPU without a name ({error:?})"))
        }

        pub fn stream(&self) -> Stream {
            Stream::DEFAULT
        }

        pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
            self.0.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))?;
            let bytes = size_of_val(data);
            // SAFETY: the context is bound; at least one byte is asked for.
            let address = unsafe { result::malloc_sync(bytes.max(1)) }
                .map_err(|error| failed(&format!("{bytes} bytes of device memory"), error))?;
            let buffer = Buffer { context: self.0.clone(), address: address as *mut T, len: data.len() };
            // SAFETY: the allocation has the size of `data`, whose bytes are initialised (`Element` has no padding).
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), bytes) };
            if !bytes.is_empty() {
                // SAFETY: as above.
                unsafe { result::memcpy_htod_sync(address, bytes) }
                    .map_err(|error| failed("copy to the device", error))?;
            }
            Ok(buffer)
        }

        pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
            self.0.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))?;
            let mut data: Vec<T> = Vec::with_capacity(buffer.len);
            if buffer.len > 0 {
                let bytes = buffer.len * size_of::<T>();
                // SAFETY: the vector has room for these bytes; any bits are an `Element`. The copy is in the order of the
                // default stream and ends before it returns.
                unsafe {
                    let room = std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), bytes);
                    result::memcpy_dtoh_sync(room, buffer.address as sys::CUdeviceptr)
                        .map_err(|error| failed("copy from the device", error))?;
                    data.set_len(buffer.len);
                }
            }
            Ok(data)
        }
    }

    impl<T: Element> Buffer<T> {
        pub fn address(&self) -> *mut T {
            self.address
        }

        pub fn len(&self) -> usize {
            self.len
        }
    }

    impl<T: Element> Drop for Buffer<T> {
        fn drop(&mut self) {
            if self.context.bind_to_thread().is_ok() {
                // SAFETY: allocated in `upload`, freed once; waits for the work that uses it. An error here would
                // repeat one that a call has returned.
                let _ = unsafe { result::free_sync(self.address as sys::CUdeviceptr) };
            }
        }
    }
}
