//! Device memory with a length, as calls read and write it.

use super::Element;
use std::marker::PhantomData;

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

    /// Device address of the first element.
    pub fn address(&self) -> *const T {
        self.address
    }

    /// The first `len` elements, or all if there are fewer.
    pub fn first(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }

    /// The elements after the first `len`; none if there are no more.
    pub fn skip(self, len: usize) -> Self {
        let skipped = len.min(self.len);
        Self { address: self.address.wrapping_add(skipped), len: self.len - skipped, ..self }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a> View<'a, u8> {
    /// Bytes as the elements that they are of.
    ///
    /// # Panics
    ///
    /// If they are not aligned to `T`, or end within an element.
    pub fn cast<T: Element>(self) -> View<'a, T> {
        let whole = self.len.is_multiple_of(size_of::<T>()) && self.address.addr().is_multiple_of(align_of::<T>());
        assert!(whole, "{} bytes at {:?} are no array of elements of {}", self.len, self.address, size_of::<T>());
        View { address: self.address.cast(), len: self.len / size_of::<T>(), memory: PhantomData }
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
    /// Those of [`View::from_raw_parts`]; nothing else reads or writes it until the work queued with this view is done.
    pub const unsafe fn from_raw_parts(address: *mut T, len: usize) -> Self {
        Self { address, len, memory: PhantomData }
    }

    /// Device address of the first element.
    pub fn address(&self) -> *mut T {
        self.address
    }

    /// The first `len` elements, or all if there are fewer.
    pub fn first(self, len: usize) -> Self {
        Self { len: self.len.min(len), ..self }
    }

    /// The elements after the first `len`.
    pub fn skip(self, len: usize) -> Self {
        let len = len.min(self.len);
        // The address is inside the range or one past it.
        Self { address: self.address.wrapping_add(len), len: self.len - len, memory: PhantomData }
    }

    /// A row-major matrix as blocks of columns of these `widths`: each begins at its first column and ends with the
    /// matrix, rows as far apart as before. They overlap, but a call writes no column that is not its segment's, so
    /// that each element has one owner as long as the widths together are no more than a row.
    pub fn columns(self, widths: &[usize]) -> Vec<Self> {
        let starts = widths.iter().scan(0, |next, width| Some(std::mem::replace(next, *next + width)));
        let block = |start: usize| Self {
            address: self.address.wrapping_add(start.min(self.len)),
            len: self.len.saturating_sub(start),
            memory: PhantomData,
        };
        starts.map(block).collect()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// No elements.
impl<T> Default for ViewMut<'_, T> {
    fn default() -> Self {
        Self { address: std::ptr::NonNull::dangling().as_ptr(), len: 0, memory: PhantomData }
    }
}

impl<'a> ViewMut<'a, u8> {
    /// The array of `len` elements that the bytes begin with, and what follows it.
    ///
    /// # Panics
    ///
    /// If there are fewer bytes, or they are not aligned to `T`.
    pub fn split_first<T: Element>(self, len: usize) -> (ViewMut<'a, T>, Self) {
        let bytes = len * size_of::<T>();
        let whole = bytes <= self.len && self.address.addr().is_multiple_of(align_of::<T>());
        assert!(whole, "{} bytes at {:?} begin with no {len} elements of {}", self.len, self.address, size_of::<T>());
        (ViewMut { address: self.address.cast(), len, memory: PhantomData }, self.skip(bytes))
    }
}
