//! Host memory that copies from and to the device go through, or that the device reads where it is: pinned as far as
//! that goes.
//!
//! Some systems pin less than the memory that they have, WSL2 above all. What is copied may then be in memory that is
//! not pinned: the driver copies it once more, the values are the same, and the work that needs them waits. What the
//! device reads in place has to be pinned.

use crate::backend::{NOT_PINNED, PlannedBuffer};
use crate::error::{Context, Error, Result};
use crate::files::units::format_bytes;
use crate::report::warning;
use qlora_kernels::CudaError;
use qlora_kernels::device::HostMemory;
use std::cell::{Cell, RefCell};

#[cfg(test)]
mod tests;

/// Bytes that large arrays leave to be pinned for small ones: batches, rates, pieces of weights and gradients.
const SMALL: u64 = 64 << 20;

/// Use of a buffer in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A piece that much goes through, again and again: pinned unless that is refused
    Small,
    /// Arrays that wait there: pinned within the limit, unless that is refused
    Large,
    /// Arrays that the device reads in place: pinned, or an error
    InPlace,
}

/// The buffers by name and kind.
#[derive(Default)]
pub struct HostArrays {
    lines: RefCell<Vec<PlannedBuffer>>,
    /// Bytes that are pinned at most, if that is known
    limit: Cell<Option<u64>>,
    /// The note that the system refused to pin memory was printed
    is_told: Cell<bool>,
}

impl HostArrays {
    pub fn pin_at_most(&self, limit: Option<u64>) {
        self.limit.set(limit);
    }

    /// Counts bytes that are taken until the run ends.
    pub fn count(&self, name: &str, bytes: u64, kind: HostMemory) {
        let name = match kind {
            HostMemory::Pinned => name.to_owned(),
            HostMemory::Pageable => format!("{name}{NOT_PINNED}"),
        };
        let mut lines = self.lines.borrow_mut();
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.bytes += bytes,
            None => lines.push(PlannedBuffer { name, bytes }),
        }
    }

    pub fn lines(&self) -> Vec<PlannedBuffer> {
        PlannedBuffer::lines(self.lines.borrow().iter().map(|line| (line.name.as_str(), line.bytes)))
    }

    fn pinned_bytes(&self) -> u64 {
        self.lines.borrow().iter().filter(|line| !line.name.ends_with(NOT_PINNED)).map(|line| line.bytes).sum()
    }

    /// Kind of memory for `bytes` more bytes.
    fn kind(&self, bytes: u64, size: Size) -> HostMemory {
        let beyond = |limit: u64| self.pinned_bytes().saturating_add(bytes).saturating_add(SMALL) > limit;
        match size {
            Size::Large if self.limit.get().is_some_and(beyond) => HostMemory::Pageable,
            Size::Small | Size::Large | Size::InPlace => HostMemory::Pinned,
        }
    }

    /// Counts bytes, and returns what `make` makes of them; `None`: a dry run, which makes nothing. Where the system
    /// refuses to pin them, they are not pinned, and the same goes for what is large and comes later.
    pub fn make<P>(
        &self,
        name: &str,
        bytes: u64,
        size: Size,
        make: Option<impl Fn(HostMemory) -> qlora_kernels::Result<P>>,
    ) -> Result<Option<P>> {
        let mut kind = self.kind(bytes, size);
        let made = match &make {
            None => Ok(None),
            Some(make) => match make(kind) {
                Err(cause) if kind == HostMemory::Pinned && size != Size::InPlace && !cause.is_lost() => {
                    self.refused(name, bytes, &cause);
                    kind = HostMemory::Pageable;
                    make(kind).map(Some)
                }
                made => made.map(Some),
            },
        };
        self.count(name, bytes, kind);
        match made {
            Err(cause) if size == Size::InPlace && !cause.is_lost() => Err(Error::Failed(format!(
                "{name}: the GPU reads its {} where they are, in host memory, which cannot be pinned ({cause}): give \
                 the system more memory to pin (under WSL2 `memory` in .wslconfig), or use a smaller model",
                format_bytes(bytes)
            ))),
            made => made.context(|| format!("{bytes} bytes of host memory for {name}")),
        }
    }

    fn refused(&self, name: &str, bytes: u64, cause: &CudaError) {
        self.limit.set(Some(self.pinned_bytes()));
        if !self.is_told.replace(true) {
            warning!(
                "the system does not pin {} more of host memory, for {name} ({cause}); memory that is not pinned is \
                 used: the same result, but work waits for its copies. `pinned_memory` lets a plan count with that",
                format_bytes(bytes)
            );
        }
    }
}
