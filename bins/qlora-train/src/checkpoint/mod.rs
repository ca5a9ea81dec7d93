//! Base models: Hugging Face directories of a Llama, with single or sharded safetensors in bf16, f16 or f32.
//!
//! [`Checkpoint::open`] looks at `config.json` and at the headers of the weight files only, and refuses everything
//! that could go wrong later: a tensor that is missing, unknown, stored twice, of another shape or type, or outside
//! its file. Reading is by position, one tensor at a time; nothing is mapped and no alignment is assumed.

mod base_name;
mod fingerprint;
pub(crate) mod json;
mod llama_config;
mod locate;
mod module;
mod open;
mod rope;
pub mod synthetic;
mod tensor;
pub(crate) mod tensor_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;

use crate::error::Result;
use crate::refuse;
use tensor_file::TensorFile;

pub use base_name::{BaseName, looks_like_hub_id, resolve_model};
pub use fingerprint::{Fingerprint, TensorDigest};
pub use llama_config::LlamaConfig;
pub use module::{Module, expected_tensors};
pub use rope::{Rope, RopeScaling};
pub use tensor::{StoredType, Tensor16, TensorData};

/// A validated Hugging Face directory: every expected tensor is there, with the expected shape, in BF16, F16 or F32,
/// inside its file. It can be read from several threads.
pub struct Checkpoint {
    dir: PathBuf,
    config: LlamaConfig,
    base_name: BaseName,
    files: Vec<TensorFile>,
    /// The expected tensors and nothing else: name → (position in `files`, header entry).
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    notes: Vec<String>,
}

impl Checkpoint {
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name by which adapters refer to this model.
    pub fn base_name(&self) -> &BaseName {
        &self.base_name
    }

    /// What was found and not used, one sentence each: for the log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Names of the tensors that can be read, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, info)| &info.shape[..])
    }

    pub fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.tensors.get(name).and_then(|(_, info)| StoredType::from_dtype(info.dtype))
    }

    /// The file that stores a tensor, for messages.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|(file, _)| self.files[*file].path())
    }

    /// Bytes of all tensors as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
    }

    /// Reads one tensor as stored. A name that is not in [`names`](Self::names) is refused; a file that changed since
    /// it was opened is `Failed`. Values that are not finite are left for the quantiser to report.
    pub fn read(&self, name: &str) -> Result<Tensor16> {
        let (file, info) = self.find(name)?;
        file.read(name, info, |_| ())
    }

    /// Reads one tensor widened to f32; beside the result only 1 MiB of it is in memory.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (file, info) = self.find(name)?;
        file.read_f32(name, info, |_| ())
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, &TensorInfo)> {
        let Some((file, info)) = self.tensors.get(name) else {
            refuse!("{}: found no tensor `{name}`, expected one of a Llama checkpoint", self.dir.display());
        };
        Ok((&self.files[*file], info))
    }
}
