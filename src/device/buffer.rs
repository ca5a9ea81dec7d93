//! Device memory that frees itself.

use super::driver::Driver;
use super::{Element, Implementation, View, ViewMut};
use crate::error::{CudaError, Result};
use std::marker::PhantomData;
use std::rc::Rc;

/// `len` elements of a [`Device`](super::Device), 256-byte aligned as device memory is.
pub struct Buffer<T: Element> {
    /// None: a plan's buffer, without memory.
    memory: Option<Memory>,
    len: usize,
    /// The place in an arena's allocator, dropped after the memory.
    _place: Option<Box<dyn std::any::Any>>,
    element: PhantomData<T>,
}

/// One allocation, or a part of an arena's slab.
pub(super) struct Memory {
    driver: Rc<Implementation>,
    address: *mut u8,
    bytes: usize,
    slab: Option<Rc<<Implementation as Driver>::Slab>>,
}

/// Bytes of `len` elements.
pub(super) fn byte_len<T: Element>(len: usize) -> Result<usize> {
    let bytes = len.checked_mul(size_of::<T>());
    bytes.ok_or_else(|| CudaError::Device(format!("a buffer of {len} elements is too large")))
}

/// An error unless `found` elements fit into `room`.
pub(super) fn check_room(found: usize, room: usize) -> Result<()> {
    if found > room {
        return Err(CudaError::Device(format!("{found} elements do not fit into a buffer of {room}")));
    }
    Ok(())
}

impl Memory {
    pub fn new(driver: &Rc<Implementation>, bytes: usize) -> Result<Self> {
        driver.bind()?;
        Ok(Self { address: driver.alloc(bytes)?, driver: driver.clone(), bytes, slab: None })
    }

    pub fn part(
        driver: &Rc<Implementation>,
        slab: &Rc<<Implementation as Driver>::Slab>,
        offset: u64,
        bytes: usize,
    ) -> Result<Self> {
        let address = driver.part(slab, offset, bytes)?;
        Ok(Self { address, driver: driver.clone(), bytes, slab: Some(slab.clone()) })
    }

    pub fn address(&self) -> *mut u8 {
        self.address
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.driver.bind().is_ok() {
            // SAFETY: given by the driver in `new` or `part`, freed once, before the slab that `self` holds.
            unsafe {
                match &self.slab {
                    None => self.driver.free(self.address, self.bytes),
                    Some(slab) => self.driver.free_part(slab, self.address, self.bytes),
                }
            }
        }
    }
}

/// No elements and no memory.
impl<T: Element> Default for Buffer<T> {
    fn default() -> Self {
        Self::new(None, 0, None)
    }
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(memory: Option<Memory>, len: usize, place: Option<Box<dyn std::any::Any>>) -> Self {
        Self { memory, len, _place: place, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.memory.as_ref().expect("a buffer of a plan has no memory").address()
    }

    /// # Panics
    ///
    /// On a buffer of [`Arena::planned`](super::Arena::planned).
    pub fn view(&self) -> View<'_, T> {
        // SAFETY: the buffer owns its elements for the view's lifetime; whoever gets its memory next works in the order
        // of the same stream.
        unsafe { View::from_raw_parts(self.address().cast(), self.len) }
    }

    /// # Panics
    ///
    /// On a buffer of [`Arena::planned`](super::Arena::planned).
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        // SAFETY: as in `view`; the exclusive borrow keeps other views away.
        unsafe { ViewMut::from_raw_parts(self.address().cast(), self.len) }
    }
}
