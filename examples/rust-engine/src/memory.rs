//! The engine's own context, stream and memory, which the kernels know nothing of: host memory with the emulated
//! kernels, a GPU's otherwise.

use qlora_kernels::device::{Element, View, ViewMut};
use std::error::Error;

/// Memory that the kernels can be given a view of.
pub trait Memory<T: Element> {
    fn address(&self) -> *mut T;
    fn len(&self) -> usize;

    fn view(&self) -> View<'_, T> {
        // SAFETY: `len` elements at `address`, owned by `self` for the view's life; the engine waits for its stream
        // before it frees or writes anything.
        unsafe { View::from_raw_parts(self.address(), self.len()) }
    }

    fn view_mut(&mut self) -> ViewMut<'_, T> {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { ViewMut::from_raw_parts(self.address(), self.len()) }
    }
}

#[cfg(feature = "cuda")]
mod imp {
    use super::*;
    use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr};
    use qlora_kernels::device::Stream;
    use std::sync::Arc;

    pub struct Engine(Arc<CudaStream>);

    pub struct Slice<T>(CudaSlice<T>);

    impl Engine {
        pub fn new() -> Result<Self, Box<dyn Error>> {
            // An error where there is no driver; cudarc itself would panic.
            let context: Arc<CudaContext> = qlora_kernels::device::context(0)?;
            Ok(Self(context.new_stream()?))
        }

        pub fn stream(&self) -> Stream {
            // SAFETY: a stream of the context that `new` made current in this thread; it lives as long as the engine.
            unsafe { Stream::from_raw(self.0.cu_stream().cast()) }
        }

        pub fn upload<T: Element + DeviceRepr>(&self, data: &[T]) -> Result<Slice<T>, Box<dyn Error>> {
            let slice = self.0.clone_htod(data)?;
            self.0.synchronize()?;
            Ok(Slice(slice))
        }

        pub fn download<T: Element + DeviceRepr>(&self, slice: &Slice<T>) -> Result<Vec<T>, Box<dyn Error>> {
            let data = self.0.clone_dtoh(&slice.0)?;
            self.0.synchronize()?;
            Ok(data)
        }

        /// Overwrites the slice with as many values.
        pub fn replace<T: Element + DeviceRepr>(&self, slice: &mut Slice<T>, data: &[T]) -> Result<(), Box<dyn Error>> {
            self.0.memcpy_htod(data, &mut slice.0)?;
            Ok(self.0.synchronize()?)
        }
    }

    impl<T: Element> Memory<T> for Slice<T> {
        fn address(&self) -> *mut T {
            self.0.device_ptr(self.0.stream()).0 as *mut T
        }

        fn len(&self) -> usize {
            self.0.len()
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod imp {
    use super::*;
    use qlora_kernels::device::Stream;
    use std::cell::UnsafeCell;

    pub struct Engine;

    /// 16-byte aligned, as the kernels ask.
    pub struct Slice<T> {
        words: Box<[UnsafeCell<u128>]>,
        len: usize,
        element: std::marker::PhantomData<T>,
    }

    impl Engine {
        pub fn new() -> Result<Self, Box<dyn Error>> {
            Ok(Self)
        }

        pub fn stream(&self) -> Stream {
            Stream::DEFAULT
        }

        pub fn upload<T: Element>(&self, data: &[T]) -> Result<Slice<T>, Box<dyn Error>> {
            let words = (0..size_of_val(data).div_ceil(16)).map(|_| UnsafeCell::new(0)).collect();
            let slice = Slice { words, len: data.len(), element: std::marker::PhantomData };
            // SAFETY: the words have room for `data`, and were just made.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), slice.address(), data.len()) };
            Ok(slice)
        }

        pub fn download<T: Element>(&self, slice: &Slice<T>) -> Result<Vec<T>, Box<dyn Error>> {
            // SAFETY: `len` elements, initialized by `upload`; the emulation's work is done when a call returns.
            Ok(unsafe { std::slice::from_raw_parts(slice.address(), slice.len) }.to_vec())
        }

        /// Overwrites the slice with as many values.
        pub fn replace<T: Element>(&self, slice: &mut Slice<T>, data: &[T]) -> Result<(), Box<dyn Error>> {
            assert_eq!(slice.len(), data.len(), "values to replace");
            // SAFETY: the slice has room for `data`, and is borrowed exclusively.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), slice.address(), data.len()) };
            Ok(())
        }
    }

    impl<T: Element> Memory<T> for Slice<T> {
        fn address(&self) -> *mut T {
            self.words.as_ptr().cast_mut().cast()
        }

        fn len(&self) -> usize {
            self.len
        }
    }
}

pub use imp::{Engine, Slice};
