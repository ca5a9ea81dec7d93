//! Pinned host memory.

use super::buffer::byte_len;
use super::driver::Driver;
use super::element::bytes_of;
use super::{Element, Implementation, SharedPinned};
use crate::error::{CudaError, Result};
use std::marker::PhantomData;
use std::rc::Rc;

/// Host memory from and to which the device copies by itself.
pub(super) struct PinnedMemory<T: Element> {
    driver: Rc<Implementation>,
    address: *mut u8,
    len: usize,
    /// The memory of several processes that it is a part of, if it is not its own
    shared: Option<Rc<SharedPinned>>,
    element: PhantomData<T>,
}

impl<T: Element> PinnedMemory<T> {
    /// Zero bits.
    pub fn new(driver: &Rc<Implementation>, len: usize) -> Result<Self> {
        driver.bind()?;
        let address = driver.alloc_pinned(byte_len::<T>(len)?)?;
        Ok(Self { address, driver: driver.clone(), len, shared: None, element: PhantomData })
    }

    /// `len` elements of memory that several processes share, from byte `first` on: nothing writes them.
    pub fn part(shared: &Rc<SharedPinned>, first: usize, len: usize) -> Result<Self> {
        let address = shared.part(first, byte_len::<T>(len)?)?;
        if !address.addr().is_multiple_of(align_of::<T>()) {
            return Err(CudaError::Device(format!("byte {first} of shared memory begins no element")));
        }
        let (driver, shared) = (shared.driver().clone(), Some(shared.clone()));
        Ok(Self { address, driver, len, shared, element: PhantomData })
    }

    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// The first elements, of which no copy reads or writes any.
    pub fn first(&self, len: usize) -> &[T] {
        assert!(len <= self.len && !self.is_shared(), "pinned memory of its own has as many elements");
        // SAFETY: initialized since `new`; any bits are an `Element`, and the memory is aligned to 256 bytes.
        unsafe { std::slice::from_raw_parts(self.address.cast(), len) }
    }

    /// Overwrites the first elements, of which no copy reads or writes any.
    pub fn set(&mut self, data: &[T]) {
        self.set_from(0, data);
    }

    /// Overwrites the elements from `first` on, of which no copy reads or writes any.
    pub fn set_from(&mut self, first: usize, data: &[T]) {
        let has_room = first <= self.len && data.len() <= self.len - first;
        assert!(has_room && !self.is_shared(), "pinned memory of its own has as many elements");
        let (bytes, to) = (bytes_of(data), self.address.wrapping_add(first * size_of::<T>()));
        // SAFETY: as many bytes, which `data`, a borrow from elsewhere, is no part of.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

impl<T: Element> Drop for PinnedMemory<T> {
    fn drop(&mut self) {
        if !self.is_shared() && self.driver.bind().is_ok() {
            // SAFETY: given in `new`, freed once.
            unsafe { self.driver.free_pinned(self.address, self.len * size_of::<T>()) };
        }
    }
}
