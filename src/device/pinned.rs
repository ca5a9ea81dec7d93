//! Host memory that arrays are copied through, which is pinned where that can be had.

use super::buffer::byte_len;
use super::driver::Driver;
use super::element::bytes_of;
use super::{Element, Implementation, SharedPinned};
use crate::error::{CudaError, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::rc::Rc;

/// Kind of host memory that arrays are copied through, from and to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMemory {
    /// The device copies by itself, beside its other work.
    Pinned,
    /// The driver copies through pinned memory of its own: the values are the same, and the host may wait for a copy
    /// and for the work before it. For where no more memory can be pinned.
    Pageable,
}

/// Host memory from and to which the device copies.
pub(super) struct PinnedMemory<T: Element> {
    driver: Rc<Implementation>,
    kind: HostMemory,
    address: *mut u8,
    len: usize,
    /// The memory of several processes that it is a part of, if it is not its own
    shared: Option<Rc<SharedPinned>>,
    element: PhantomData<T>,
}

impl<T: Element> PinnedMemory<T> {
    /// Zero bits.
    pub fn new(driver: &Rc<Implementation>, len: usize, kind: HostMemory) -> Result<Self> {
        driver.bind()?;
        let bytes = byte_len::<T>(len)?;
        let address = match kind {
            HostMemory::Pinned => driver.alloc_pinned(bytes)?,
            HostMemory::Pageable => alloc_pageable(bytes)?,
        };
        Ok(Self { address, driver: driver.clone(), kind, len, shared: None, element: PhantomData })
    }

    /// `len` elements of memory that several processes share, from byte `first` on: nothing writes them.
    pub fn part(shared: &Rc<SharedPinned>, first: usize, len: usize) -> Result<Self> {
        let address = shared.part(first, byte_len::<T>(len)?)?;
        if !address.addr().is_multiple_of(align_of::<T>()) {
            return Err(CudaError::Device(format!("byte {first} of shared memory begins no element")));
        }
        let (driver, shared) = (shared.driver().clone(), Some(shared.clone()));
        Ok(Self { address, driver, kind: HostMemory::Pinned, len, shared, element: PhantomData })
    }

    /// True if the device may use it in place: it is pinned memory of its own.
    pub fn is_in_reach(&self) -> bool {
        self.kind == HostMemory::Pinned && !self.is_shared()
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
        let bytes = self.len * size_of::<T>();
        match self.kind {
            HostMemory::Pageable => {
                // SAFETY: given in `new`, freed once; copies from and to it are done.
                unsafe { free_pageable(self.address, bytes) };
            }
            HostMemory::Pinned if !self.is_shared() && self.driver.bind().is_ok() => {
                // SAFETY: given in `new`, freed once.
                unsafe { self.driver.free_pinned(self.address, bytes) };
            }
            HostMemory::Pinned => {}
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), 256).ok()
}

/// Memory of zeros, aligned as pinned memory is.
fn alloc_pageable(bytes: usize) -> Result<*mut u8> {
    // SAFETY: the layout is of at least one byte.
    let address = layout(bytes).map(|layout| unsafe { alloc_zeroed(layout) });
    address
        .filter(|address| !address.is_null())
        .ok_or_else(|| CudaError::Device(format!("{bytes} bytes of host memory: there are not as many")))
}

/// # Safety
///
/// [`alloc_pageable`] gave it for as many bytes. It is freed once.
unsafe fn free_pageable(address: *mut u8, bytes: usize) {
    if let Some(layout) = layout(bytes) {
        // SAFETY: allocated with this layout, as the caller promises.
        unsafe { dealloc(address, layout) }
    }
}
