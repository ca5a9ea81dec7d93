//! One quantized weight that stays in its file.

use super::Nf4Entry;
use crate::error::{Error, Result};
use crate::files::safetensors::TensorFile;
use qlora_kernels::nf4::Nf4Matrix;
use std::sync::Arc;

/// A weight in NF4 that is read whenever it is needed, by any thread.
pub struct Nf4OnDisk {
    name: String,
    files: Arc<Vec<TensorFile>>,
    entry: Arc<Nf4Entry>,
}

impl Nf4OnDisk {
    pub(in crate::base) fn new(name: &str, files: Arc<Vec<TensorFile>>, entry: Arc<Nf4Entry>) -> Self {
        Self { name: name.to_owned(), files, entry }
    }

    /// The matrix, in the memory of `reused`, which may have any shape. The system is told that the pages it was read
    /// from are not needed: a model that does not fit in memory would only push everything else out of it. Failed: the
    /// file cannot be read, or was changed since the checkpoint was opened.
    pub fn read(&self, reused: Option<Nf4Matrix>) -> Result<Nf4Matrix> {
        let matrix = self.check_unchanged().and_then(|()| self.entry.read(&self.name, &self.files, reused, |_, _| ()));
        self.forget_pages();
        matrix.map_err(|cause| {
            Error::Failed(format!(
                "{cause}. The weights of the run stay in this file (`weights: disk`, tensor `{}`): put it back as it was \
                 and give the same command again; what was saved is whole",
                self.name
            ))
        })
    }

    /// Tells the system that the pages the weight was read from need not stay in its cache of files.
    pub fn forget_pages(&self) {
        for (file, info) in self.entry.parts.values() {
            self.files[*file].forget_pages(info);
        }
    }

    /// Rows N and columns K.
    pub fn shape(&self) -> [usize; 2] {
        self.entry.shape
    }

    /// Bytes of its parts as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.entry.parts.values().map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.entry.parts.values().try_for_each(|(file, _)| self.files[*file].check_unchanged())
    }
}
