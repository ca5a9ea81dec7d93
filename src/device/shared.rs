//! Host memory that several processes map, pinned for the device of each.

use super::driver::Driver;
use super::mapping::Mapping;
use super::{Device, Implementation};
use crate::error::{CudaError, Result};
use std::fs::File;
use std::rc::Rc;

/// The first bytes of a file in memory (`memfd_create`), which other processes may have mapped as well: the device
/// copies from it by itself, and nothing writes it by way of this.
pub struct SharedPinned {
    driver: Rc<Implementation>,
    // Dropped after it is unpinned.
    mapping: Mapping,
}

impl SharedPinned {
    /// An error for a file that is shorter or not sealed against shrinking, and where the device does not pin memory
    /// that was allocated elsewhere.
    pub fn new(device: &Device, file: &File, bytes: usize) -> Result<Self> {
        let driver = device.driver().clone();
        driver.bind()?;
        let read_only = driver.pins_read_only()?;
        let mapping = Mapping::new(file, bytes, !read_only)?;
        // SAFETY: mapped until `drop` has unpinned it.
        unsafe { driver.pin(mapping.address(), bytes, read_only) }?;
        Ok(Self { driver, mapping })
    }

    pub(super) fn driver(&self) -> &Rc<Implementation> {
        &self.driver
    }

    /// The address of `bytes` bytes from byte `first` on. An error if there are fewer.
    pub(super) fn part(&self, first: usize, bytes: usize) -> Result<*mut u8> {
        let all = self.mapping.bytes();
        if first.checked_add(bytes).is_none_or(|end| end > all) {
            return Err(CudaError::Device(format!("{bytes} bytes from {first} on of shared memory, which has {all}")));
        }
        Ok(self.mapping.address().wrapping_add(first))
    }
}

impl Drop for SharedPinned {
    fn drop(&mut self) {
        if self.driver.bind().is_ok() {
            // SAFETY: pinned in `new`, once; whoever has a part of it holds this until its copies are done.
            unsafe { self.driver.unpin(self.mapping.address()) };
        }
    }
}
