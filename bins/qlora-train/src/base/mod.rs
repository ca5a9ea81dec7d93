//! Base models: Hugging Face directories, with single or sharded safetensors in bf16, f16 or f32, or with
//! linear weights in NF4 as bitsandbytes stores them.
//!
//! [`Checkpoint::open`] looks at `config.json` and at the headers of the weight files only, and refuses everything
//! that could go wrong later: a tensor that is missing, unknown, stored twice, of another shape or type, or outside
//! its file. Reading is by position, one tensor at a time; nothing is mapped and no alignment is assumed.

mod base_name;
mod digests;
mod fingerprint;
pub mod fuzzing;
mod kept;
mod locate;
mod open;
mod pieces;
mod quantized;
mod rows_on_disk;
pub mod synthetic;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qlora_kernels::nf4::Nf4Options;
use safetensors::tensor::TensorInfo;

use crate::arch::Arch;
use crate::bail_usage;
use crate::error::Result;
use crate::files::safetensors::TensorFile;
use crate::files::tensor::{HostTensor, StoredType, WeightSource};
use quantized::Nf4Entry;

pub use base_name::{BaseName, resolve_description, resolve_description_by, resolve_model, resolve_model_by};
pub use digests::DigestsAhead;
pub use fingerprint::{BaseFingerprint, Fingerprint, TensorDigest};
pub use quantized::{
    Nf4OnDisk, OriginalBase, QuantizeOptions, Quantized, Rewrite, Written, quantize, quantized_bytes, write_dense,
};
pub(crate) use quantized::{Partial, quantize_into, side_bytes};
pub use rows_on_disk::RowsOnDisk;

/// A validated Hugging Face directory: every expected tensor is there, with the expected shape, in BF16, F16 or F32, or
/// with all the parts of an NF4 weight, inside its file. It can be read from several threads.
pub struct Checkpoint {
    dir: PathBuf,
    arch: Arch,
    base_name: BaseName,
    files: Arc<Vec<TensorFile>>,
    /// The expected tensors and nothing else.
    tensors: BTreeMap<String, StoredTensor>,
    notes: Vec<String>,
    /// Quantization of its linear weights, where they are quantized.
    quantization: Option<Nf4Options>,
    /// Original model, where `quantize` wrote the weights
    original: Option<OriginalBase>,
    /// Directory of the weights, where they are those of a copy that is kept elsewhere
    weights_dir: Option<PathBuf>,
}

/// Place of a tensor: position in `files`, header entry.
#[derive(Clone)]
enum StoredTensor {
    Dense(usize, TensorInfo),
    Nf4(Arc<Nf4Entry>),
}

impl StoredTensor {
    fn stored_bytes(&self) -> u64 {
        let bytes = |info: &TensorInfo| (info.data_offsets.1 - info.data_offsets.0) as u64;
        match self {
            Self::Dense(_, info) => bytes(info),
            Self::Nf4(entry) => entry.parts.values().map(|(_, info)| bytes(info)).sum(),
        }
    }
}

impl Checkpoint {
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The name by which adapters refer to this model.
    pub fn base_name(&self) -> &BaseName {
        &self.base_name
    }

    /// Notes on tensors and files that were found and not used, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Names of the tensors that can be read, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| match entry {
            StoredTensor::Dense(_, info) => &info.shape[..],
            StoredTensor::Nf4(entry) => &entry.shape,
        })
    }

    /// The type that [`read`](Self::read) gives: f32 for a weight that is stored in NF4.
    pub fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.tensors.get(name).and_then(|entry| match entry {
            StoredTensor::Dense(_, info) => StoredType::from_dtype(info.dtype),
            StoredTensor::Nf4(_) => Some(StoredType::F32),
        })
    }

    /// The quantization of the linear weights, where the checkpoint is quantized: block size and double quantization
    /// are the same for all quantized weights.
    pub fn quantization(&self) -> Option<Nf4Options> {
        self.quantization
    }

    /// True if a tensor is stored in NF4.
    pub fn is_nf4(&self, name: &str) -> bool {
        matches!(self.tensors.get(name), Some(StoredTensor::Nf4(_)))
    }

    /// The linear modules of a quantized checkpoint that are stored as they were (`llm_int8_skip_modules`).
    pub fn skipped_modules(&self) -> Vec<String> {
        if self.quantization.is_none() {
            return Vec::new();
        }
        self.arch.modules().filter(|module| !self.is_nf4(&format!("{module}.weight"))).collect()
    }

    /// Original model of a checkpoint that [`quantize`] wrote; none of an original whose weights alone are a copy's.
    pub fn original(&self) -> Option<&OriginalBase> {
        self.original.as_ref().filter(|_| self.weights_dir.is_none())
    }

    /// The file that stores a tensor, for messages.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|entry| match entry {
            StoredTensor::Dense(file, _) => self.files[*file].path(),
            StoredTensor::Nf4(entry) => self.files[entry.parts[""].0].path(),
        })
    }

    /// Bytes of all tensors as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(StoredTensor::stored_bytes).sum()
    }

    /// Reads one tensor as stored, or dequantized to f32 where it is stored in NF4. A name that is not in
    /// [`names`](Self::names) is refused, and so is an NF4 weight whose scales are not finite; a file that changed
    /// since it was opened is `Failed`. Other values that are not finite are left for
    /// [`check_finite`](Self::check_finite).
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        self.read_weight(name).map(WeightSource::into_tensor)
    }

    /// Reads one tensor as stored, in NF4 too.
    pub fn read_weight(&self, name: &str) -> Result<WeightSource> {
        match self.find(name)? {
            StoredTensor::Dense(file, info) => Ok(WeightSource::Tensor(self.files[*file].read(name, info, |_| ())?)),
            StoredTensor::Nf4(entry) => Ok(WeightSource::Nf4(entry.read(name, &self.files, None, |_, _| ())?)),
        }
    }

    /// Refuses a weight in NF4 that [`read_weight`](Self::read_weight) refuses, without reading its codes.
    pub fn check_weight(&self, name: &str) -> Result<()> {
        match self.find(name)? {
            StoredTensor::Dense(..) => Ok(()),
            StoredTensor::Nf4(entry) => entry.check_scales(name, &self.files),
        }
    }

    /// A weight that stays in its file, to be read again and again. A tensor that is not stored in NF4 is refused.
    pub fn on_disk(&self, name: &str) -> Result<Nf4OnDisk> {
        match self.find(name)? {
            StoredTensor::Nf4(entry) => Ok(Nf4OnDisk::new(name, self.files.clone(), entry.clone())),
            StoredTensor::Dense(file, info) => bail_usage!(
                "{}: tensor `{name}`: found {}, expected NF4: only such weights can stay on disk",
                self.files[*file].path().display(),
                info.dtype
            ),
        }
    }

    /// Reads one tensor widened to f32; beside the result only 1 MiB of it is in memory, or the NF4 weight.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.find(name)? {
            StoredTensor::Dense(file, info) => self.files[*file].read_f32(name, info, |_| ()),
            StoredTensor::Nf4(entry) => Ok(entry.read(name, &self.files, None, |_, _| ())?.dequantize()),
        }
    }

    /// Rows of a matrix that is stored in 16 or 32 bits, widened to f32; `None` where it is stored in NF4.
    pub fn read_rows_f32(&self, name: &str, rows: &[u32]) -> Result<Option<Vec<Vec<f32>>>> {
        let StoredTensor::Dense(file, info) = self.find(name)? else { return Ok(None) };
        let columns = info.shape.last().copied().unwrap_or(1);
        let row = |&row: &u32| {
            let from = row as usize * columns;
            self.files[*file].read_range_f32(name, info, from..from + columns)
        };
        rows.iter().map(row).collect::<Result<_>>().map(Some)
    }

    /// Elements `range` of a tensor that is stored in 16 or 32 bits, in row-major order, widened to f32; `None` where
    /// it is stored in NF4.
    pub fn read_range_f32(&self, name: &str, range: Range<usize>) -> Result<Option<Vec<f32>>> {
        let StoredTensor::Dense(file, info) = self.find(name)? else { return Ok(None) };
        self.files[*file].read_range_f32(name, info, range).map(Some)
    }

    /// Refuses a NaN or infinity in a tensor that was read: it would spread to everything that is trained on it.
    pub fn check_finite(&self, name: &str, tensor: &HostTensor) -> Result<()> {
        self.check_piece(name, 0, tensor)
    }

    /// [`check_finite`](Self::check_finite) for a piece of a tensor that begins at element `first`.
    pub fn check_piece(&self, name: &str, first: usize, piece: &HostTensor) -> Result<()> {
        let Some((index, value)) = piece.find_not_finite() else { return Ok(()) };
        let columns = self.shape(name).and_then(|shape| shape.last().copied()).unwrap_or(1).max(1);
        let index = first + index;
        bail_usage!(
            "{}: tensor `{name}`: found {value} at row {}, column {}, expected finite numbers: the file is damaged or \
             the model diverged when it was made; get it again",
            self.file_of(name).unwrap_or(&self.dir).display(),
            index / columns,
            index % columns
        )
    }

    fn find(&self, name: &str) -> Result<&StoredTensor> {
        let Some(entry) = self.tensors.get(name) else {
            let (dir, family) = (self.dir.display(), self.arch.family.architecture);
            bail_usage!("{dir}: found no tensor `{name}`, expected one of a {family}");
        };
        Ok(entry)
    }
}
