//! A copy of pinned weights that processes of one machine share: each writes its part of the layers, and all of them
//! copy all layers to their devices.

use crate::error::{Context, Error, Result};
use crate::files::failpoint;
use crate::files::units::format_bytes;
use qlora_kernels::device::{Device, SharedPinned};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// The file in memory that several processes have, as one of them fills it.
pub struct SharedWeights {
    file: File,
    /// Bytes of all layers, as they were planned
    bytes: usize,
    /// Number of this process among those that share the copy
    own: usize,
    processes: usize,
    /// Bytes of the layers so far
    len: usize,
}

impl SharedWeights {
    /// `file` has `bytes` and keeps them. `own`: number of this process among as many `processes`.
    pub fn new(file: File, bytes: u64, own: usize, processes: usize) -> Result<Self> {
        let what = || format!("{bytes} bytes of weights in host memory");
        Ok(Self { file, bytes: usize::try_from(bytes).context(what)?, own, processes, len: 0 })
    }

    /// True if that layer is this process's to write.
    pub(super) fn writes(&self, layer: usize) -> bool {
        layer % self.processes == self.own
    }

    /// Appends a layer, or the output layer, of `len` bytes; `values` where it is this process's to write.
    pub(super) fn append(&mut self, len: usize, values: Option<&[u8]>) -> Result<()> {
        let first = self.len;
        self.len += len;
        if self.len > self.bytes {
            return Err(self.other_than_planned());
        }
        let Some(values) = values else { return Ok(()) };
        let written = failpoint::point("weights", "").and_then(|()| self.file.write_all_at(values, first as u64));
        written.context(|| {
            format!(
                "{} of weights in host memory, of which the {} processes of this machine share one copy",
                format_bytes(self.bytes as u64),
                self.processes
            )
        })
    }

    /// All layers, pinned for this process's device, once all processes have written theirs.
    pub(super) fn pinned(&self, device: &Device) -> Result<Rc<SharedPinned>> {
        if self.len != self.bytes {
            return Err(self.other_than_planned());
        }
        let pinned = SharedPinned::new(device, &self.file, self.bytes).context(|| {
            format!(
                "{} of weights in host memory, shared by {} processes, cannot be pinned (`ulimit -l` may limit it; \
                 QLORA_SHARED_WEIGHTS=off gives each process a copy of its own)",
                format_bytes(self.bytes as u64),
                self.processes
            )
        })?;
        Ok(Rc::new(pinned))
    }

    fn other_than_planned(&self) -> Error {
        Error::Failed(format!("weights in host memory have {} bytes, expected {} as planned", self.len, self.bytes))
    }
}
