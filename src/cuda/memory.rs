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

    /// What follows the first `len` elements; nothing if there are no more.
    pub fn skip(self, len: usize) -> Self {
        let skipped = len.min(self.len);
        Self { address: self.address.wrapping_add(skipped), len: self.len - skipped, ..self }
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

    /// A row-major matrix as blocks of columns of these `widths`: each begins at its first column and ends with the matrix, rows as
    /// far apart as before. They overlap, but a call writes no column that is not its segment's, so that each element has one owner
    /// as long as the widths together are no more than a row.
    pub fn columns(self, widths: &[usize]) -> Vec<Self> {
        let starts = widths.iter().scan(0, |next, width| Some(std::mem::replace(next, *next + width)));
        let block = |start: usize| Self {
            address: self.address.wrapping_add(start.min(self.len)),
            len: self.len.saturating_sub(start),
            memory: PhantomData,
        };
        starts.map(block).collect()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What the trainer and tests run on: the emulation on the host, or a GPU.
pub struct Device(imp::Device);

/// `len` elements of a [`Device`], 256-byte aligned as device memory is.
pub struct Buffer<T: Element>(imp::Buffer<T>);

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

    pub fn stream(&self) -> Stream {
        self.0.stream()
    }

    pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
        self.0.upload(data).map(Buffer)
    }

    /// `len` elements of zero bits.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.0.zeros(len).map(Buffer)
    }

    /// Overwrites the first elements, in the order of the stream.
    pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
        if data.len() > buffer.len() {
            let (found, room) = (data.len(), buffer.len());
            return Err(CudaError::Device(format!("{found} elements do not fit into a buffer of {room}")));
        }
        self.0.write(&mut buffer.0, data)
    }

    /// Overwrites all elements with zero bits, in the order of the stream.
    pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        self.0.clear(&mut buffer.0)
    }

    /// Waits for the stream, then copies.
    pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.0.download(&buffer.0)
    }
}

impl<T: Element> Buffer<T> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

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
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

    pub struct Device;

    /// Exactly as long as its elements, so that AddressSanitizer sees the first byte past them.
    pub struct Buffer<T: Element> {
        address: *mut T,
        len: usize,
    }

    impl Device {
        pub fn open(ordinal: usize) -> Result<Self> {
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

        pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
            let mut buffer = self.zeros(data.len())?;
            self.write(&mut buffer, data)?;
            Ok(buffer)
        }

        pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
            let layout = layout::<T>(len)?;
            // SAFETY: the layout is of at least one byte.
            let address = unsafe { alloc_zeroed(layout) }.cast::<T>();
            if address.is_null() {
                handle_alloc_error(layout);
            }
            Ok(Buffer { address, len })
        }

        pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
            // SAFETY: the caller checked that the buffer, which is not of `data`, has as many elements.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.address, data.len()) };
            Ok(())
        }

        pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
            // SAFETY: the buffer's own elements; zero bits are an `Element`.
            unsafe { std::ptr::write_bytes(buffer.address, 0, buffer.len) };
            Ok(())
        }

        pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
            // SAFETY: the buffer's elements are initialised since `zeros`; launches are over when they return.
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
                // SAFETY: allocated in `zeros` with this layout.
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

    /// A GPU and its default stream, on which calls are in order.
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
        pub fn open(ordinal: usize) -> Result<Self> {
            crate::cuda::typed::context(ordinal).map(Self)
        }

        pub fn name(&self) -> String {
            self.0.name().unwrap_or_else(|error| format!("a GPU without a name ({error:?})"))
        }

        pub fn stream(&self) -> Stream {
            Stream::DEFAULT
        }

        fn bind(&self) -> Result<()> {
            self.0.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))
        }

        fn room<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
            self.bind()?;
            let bytes = len.checked_mul(size_of::<T>());
            let bytes = bytes.ok_or_else(|| CudaError::Device(format!("a buffer of {len} elements is too large")))?;
            // SAFETY: the context is bound; at least one byte is asked for.
            let address = unsafe { result::malloc_sync(bytes.max(1)) }
                .map_err(|error| failed(&format!("{bytes} bytes of device memory"), error))?;
            Ok(Buffer { context: self.0.clone(), address: address as *mut T, len })
        }

        pub fn upload<T: Element>(&self, data: &[T]) -> Result<Buffer<T>> {
            let mut buffer = self.room(data.len())?;
            self.write(&mut buffer, data)?;
            Ok(buffer)
        }

        pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
            let mut buffer = self.room(len)?;
            self.clear(&mut buffer)?;
            Ok(buffer)
        }

        pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
            self.bind()?;
            if data.is_empty() {
                return Ok(());
            }
            // SAFETY: the bytes of `data` are initialised (`Element` has no padding).
            let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) };
            // SAFETY: the caller checked that the buffer has as many elements; the copy is in the order of the default stream.
            unsafe { result::memcpy_htod_sync(buffer.address as sys::CUdeviceptr, bytes) }
                .map_err(|error| failed("copy to the device", error))
        }

        pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
            self.bind()?;
            if buffer.len == 0 {
                return Ok(());
            }
            let bytes = buffer.len * size_of::<T>();
            // SAFETY: the buffer's own bytes; zero bits are an `Element`. In the order of the default stream.
            unsafe { result::memset_d8_async(buffer.address as sys::CUdeviceptr, 0, bytes, std::ptr::null_mut()) }
                .map_err(|error| failed("clearing device memory", error))
        }

        pub fn download<T: Element>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
            self.bind()?;
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
