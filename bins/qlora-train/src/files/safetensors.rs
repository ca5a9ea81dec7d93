//! One safetensors file: the header checked against the file's length when it is opened, the data read by position.
//! (The safetensors crate reads headers from a whole file in memory or mapped; here only the header is loaded, and
//! every complaint names the file and the tensor.)

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytemuck::Pod;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use half::{bf16, f16};

use super::file_state::FileState;
use super::json::{UniqueKeys, at_key};
use super::regular;
use super::tensor::{Element, HostTensor, StoredType, TensorData};
use crate::bail_usage;
use crate::error::{Context, Error, Result};

/// The limit of the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Data is read, hashed and converted in pieces that stay in the cache.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Data that is hashed and not kept is read in smaller pieces, because many threads have one each.
pub(crate) const SCAN_BYTES: usize = 1 << 18;
/// Bytes between the piece that is read and the one that the system is asked for.
const SCANNED_AHEAD: usize = 4 * SCAN_BYTES;
const METADATA_KEY: &str = "__metadata__";

pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    /// Position in the file at which the data of offset 0 begins
    data_start: u64,
    /// Length and time of the last change when the file was opened
    opened: (u64, Option<SystemTime>),
    pub tensors: BTreeMap<String, TensorInfo>,
    pub metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Checks that the tensors of the header tile the rest of the file exactly.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = regular::open(path).usage_context(|| format!("{shown}: cannot be read"))?;
        let metadata = file.metadata().usage_context(|| format!("{shown}: cannot be read"))?;
        let length = metadata.len();
        let opened = (length, metadata.modified().ok());
        let header = read_header(&shown, &file, length)?;
        let data_start = 8 + header.len() as u64;
        let Header { tensors, metadata } = serde_json::from_slice(&header)
            .usage_context(|| format!("{shown}: the safetensors header is not valid; download the file again"))?;
        check_layout(&shown, &tensors, length - data_start)?;
        Ok(Self { path: path.to_owned(), file, data_start, opened, tensors, metadata })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file now, which another one after a change differs from.
    pub fn state(&self) -> Result<FileState> {
        FileState::of(&self.file).context(|| format!("{}: cannot be read", self.path.display()))
    }

    /// Fails where the file was written to since it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let shown = self.path.display();
        let metadata = self.file.metadata().context(|| format!("{shown}: cannot be read"))?;
        if (metadata.len(), metadata.modified().ok()) != self.opened {
            let found = match metadata.len() {
                len if len == self.opened.0 => "it was written to since it was opened".to_owned(),
                len => format!("found {len} bytes, and {} when it was opened", self.opened.0),
            };
            return Err(Error::Failed(format!("{shown}: was changed while its weights were in use: {found}")));
        }
        Ok(())
    }

    /// Tells the system that a tensor's pages need not stay in its cache of files.
    pub fn forget_pages(&self, info: &TensorInfo) {
        #[cfg(target_os = "linux")]
        if let Some(len) = std::num::NonZeroU64::new((info.data_offsets.1 - info.data_offsets.0) as u64) {
            let offset = self.data_start + info.data_offsets.0 as u64;
            // Advice: where it is not taken, nothing is wrong.
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), rustix::fs::Advice::DontNeed);
        }
    }

    /// The stored type of a tensor of this file, one of the three that weights may have.
    pub fn stored_type(&self, name: &str, info: &TensorInfo) -> Result<StoredType> {
        let Some(stored) = StoredType::from_dtype(info.dtype) else {
            bail_usage!(
                "{}: tensor `{name}`: found dtype {}, expected BF16, F16 or F32",
                self.path.display(),
                info.dtype
            );
        };
        Ok(stored)
    }

    /// Reads a tensor as stored; `seen` gets its bytes in order, piece by piece.
    pub fn read(&self, name: &str, info: &TensorInfo, seen: impl FnMut(&[u8])) -> Result<HostTensor> {
        let data = match self.stored_type(name, info)? {
            StoredType::Bf16 => TensorData::Bf16(self.read_elements::<bf16>(name, info, seen)?),
            StoredType::F16 => TensorData::F16(self.read_elements::<f16>(name, info, seen)?),
            StoredType::F32 => TensorData::F32(self.read_elements::<f32>(name, info, seen)?),
        };
        Ok(HostTensor { shape: info.shape.clone(), data })
    }

    /// Reads a tensor widened to f32: beside the result only one piece is in memory.
    pub fn read_f32(&self, name: &str, info: &TensorInfo, seen: impl FnMut(&[u8])) -> Result<Vec<f32>> {
        match self.stored_type(name, info)? {
            StoredType::Bf16 => self.read_widened::<bf16>(name, info, seen),
            StoredType::F16 => self.read_widened::<f16>(name, info, seen),
            StoredType::F32 => self.read_elements::<f32>(name, info, seen),
        }
    }

    /// Elements `range` of a tensor in row-major order, widened to f32.
    pub fn read_range_f32(&self, name: &str, info: &TensorInfo, range: Range<usize>) -> Result<Vec<f32>> {
        self.read_f32(name, &self.part(name, info, range)?, |_| ())
    }

    /// Elements `range` of a tensor in row-major order, as stored; `seen` gets their bytes in order.
    pub fn read_range(
        &self,
        name: &str,
        info: &TensorInfo,
        range: Range<usize>,
        seen: impl FnMut(&[u8]),
    ) -> Result<HostTensor> {
        self.read(name, &self.part(name, info, range)?, seen)
    }

    /// Elements `range` of a tensor as stored, in the memory of `reused` where that has the tensor's type.
    pub fn read_range_into(
        &self,
        reused: Option<TensorData>,
        name: &str,
        info: &TensorInfo,
        range: Range<usize>,
    ) -> Result<TensorData> {
        let part = self.part(name, info, range)?;
        Ok(match (self.stored_type(name, info)?, reused) {
            (StoredType::Bf16, Some(TensorData::Bf16(to))) => {
                TensorData::Bf16(self.read_elements_into(to, name, &part, |_| ())?)
            }
            (StoredType::F16, Some(TensorData::F16(to))) => {
                TensorData::F16(self.read_elements_into(to, name, &part, |_| ())?)
            }
            (StoredType::F32, Some(TensorData::F32(to))) => {
                TensorData::F32(self.read_elements_into(to, name, &part, |_| ())?)
            }
            _ => self.read(name, &part, |_| ())?.data,
        })
    }

    /// The header entry of elements `range` of a tensor alone.
    pub fn part(&self, name: &str, info: &TensorInfo, range: Range<usize>) -> Result<TensorInfo> {
        let size = self.stored_type(name, info)?.size();
        let at = |element: usize| info.data_offsets.0 + element * size;
        let data_offsets = (at(range.start), at(range.end));
        Ok(TensorInfo { dtype: info.dtype, shape: vec![range.len()], data_offsets })
    }

    /// Passes a tensor's bytes through `seen` without keeping them.
    pub fn scan(&self, name: &str, info: &TensorInfo, mut seen: impl FnMut(&[u8])) -> Result<()> {
        self.scan_while(name, info, |bytes| {
            seen(bytes);
            Ok(())
        })
    }

    /// [`scan`](Self::scan) with a `seen` whose error ends the reading. A few pieces are requested ahead, so that the
    /// disk reads while `seen` works on one.
    pub fn scan_while(&self, name: &str, info: &TensorInfo, mut seen: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (begin, end) = info.data_offsets;
        let mut buffer = vec![0u8; (end - begin).min(SCAN_BYTES)];
        for offset in (begin..end).step_by(SCAN_BYTES) {
            let piece = &mut buffer[..(end - offset).min(SCAN_BYTES)];
            let ahead = (offset + SCANNED_AHEAD).min(end);
            self.will_need(ahead, (ahead + SCAN_BYTES).min(end));
            self.read_at(name, piece, offset)?;
            seen(piece)?;
        }
        Ok(())
    }

    /// Tells the system that these bytes of the data will be read soon.
    fn will_need(&self, begin: usize, end: usize) {
        #[cfg(target_os = "linux")]
        if let Some(len) = std::num::NonZeroU64::new((end - begin) as u64) {
            let offset = self.data_start + begin as u64;
            // Advice: where it is not taken, nothing is wrong.
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    /// A tensor's bytes as elements of `T`, whatever its dtype is.
    pub fn read_elements<T: Pod>(&self, name: &str, info: &TensorInfo, seen: impl FnMut(&[u8])) -> Result<Vec<T>> {
        self.read_elements_into(Vec::new(), name, info, seen)
    }

    /// [`read_elements`](Self::read_elements) into the memory of `values`.
    pub fn read_elements_into<T: Pod>(
        &self,
        mut values: Vec<T>,
        name: &str,
        info: &TensorInfo,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<Vec<T>> {
        let (begin, end) = info.data_offsets;
        let len = (end - begin) / size_of::<T>();
        // Zeroed pages come from the system untouched; growing a vector would write them.
        match values.capacity() < len {
            true => values = vec![T::zeroed(); len],
            false => values.resize(len, T::zeroed()),
        }
        let mut offset = begin;
        for piece in values.chunks_mut(CHUNK_BYTES / size_of::<T>()) {
            let bytes = bytemuck::cast_slice_mut(piece);
            self.read_at(name, bytes, offset)?;
            seen(bytes);
            offset += bytes.len();
        }
        Ok(values)
    }

    fn read_widened<T: Element>(&self, name: &str, info: &TensorInfo, mut seen: impl FnMut(&[u8])) -> Result<Vec<f32>> {
        let (begin, end) = info.data_offsets;
        let mut values = vec![0f32; (end - begin) / size_of::<T>()];
        let per_piece = CHUNK_BYTES / size_of::<T>();
        let mut buffer = vec![T::zeroed(); per_piece.min(values.len())];
        let mut offset = begin;
        for piece in values.chunks_mut(per_piece) {
            let narrow = &mut buffer[..piece.len()];
            let bytes = bytemuck::cast_slice_mut(narrow);
            self.read_at(name, bytes, offset)?;
            seen(bytes);
            offset += bytes.len();
            T::widen(narrow, piece);
        }
        Ok(values)
    }

    fn read_at(&self, name: &str, bytes: &mut [u8], offset: usize) -> Result<()> {
        self.file
            .read_exact_at(bytes, self.data_start + offset as u64)
            .context(|| format!("{}: tensor `{name}`: cannot be read (was the file changed?)", self.path.display()))
    }
}

fn read_header(shown: &impl fmt::Display, file: &File, length: u64) -> Result<Vec<u8>> {
    if length < 8 {
        bail_usage!("{shown}: found {length} bytes, expected a safetensors file: download it again");
    }
    let mut prefix = [0u8; 8];
    file.read_exact_at(&mut prefix, 0).usage_context(|| format!("{shown}: cannot be read"))?;
    if &prefix == b"version " {
        bail_usage!(
            "{shown}: found a Git LFS pointer, expected a safetensors file: fetch the weights with `git lfs pull`"
        );
    }
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        bail_usage!(
            "{shown}: found a header length of {header_bytes} bytes, expected at most {MAX_HEADER_BYTES}: this is no \
             safetensors file, or a damaged one"
        );
    }
    if header_bytes > length - 8 {
        bail_usage!(
            "{shown}: found {length} bytes in all, expected a header of {header_bytes} bytes and data after it: the \
             file is truncated, download it again"
        );
    }
    let mut header = vec![0u8; header_bytes as usize];
    file.read_exact_at(&mut header, 8).usage_context(|| format!("{shown}: cannot be read"))?;
    Ok(header)
}

/// Every tensor's byte range fits its shape and dtype, and the ranges tile `0..data_bytes` without hole or overlap.
fn check_layout(shown: &impl fmt::Display, tensors: &BTreeMap<String, TensorInfo>, data_bytes: u64) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected_begin = 0usize;
    for (name, info) in order {
        let (begin, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &d| n.checked_mul(d));
        if end < begin || bits != (end - begin).checked_mul(8) {
            bail_usage!(
                "{shown}: tensor `{name}`: found data_offsets [{begin}, {end}], expected room for shape {:?} of {}",
                info.shape,
                info.dtype
            );
        }
        if begin != expected_begin {
            bail_usage!(
                "{shown}: tensor `{name}`: found data that begins at {begin}, expected {expected_begin}: the header has \
                 a hole or an overlap"
            );
        }
        if end as u64 > data_bytes {
            bail_usage!(
                "{shown}: tensor `{name}`: found {data_bytes} bytes of data in the file, expected at least {end}: the \
                 file is truncated, download it again"
            );
        }
        expected_begin = end;
    }
    if expected_begin as u64 != data_bytes {
        bail_usage!(
            "{shown}: found {data_bytes} bytes of data, expected {expected_begin} by the header: the file is damaged, \
             download it again"
        );
    }
    Ok(())
}

/// The JSON header: `__metadata__` and tensors, no name twice.
struct Header {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
                let mut keys = UniqueKeys::default();
                while let Some(key) = keys.next(&mut map)? {
                    if key == METADATA_KEY {
                        let metadata: Option<BTreeMap<_, _>> = map.next_value().map_err(|cause| at_key(&key, cause))?;
                        header.metadata = metadata.unwrap_or_default();
                    } else {
                        let info = map.next_value().map_err(|cause| at_key(&key, cause))?;
                        header.tensors.insert(key, info);
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The head of a safetensors file (length and header) for tensors whose data follows in the given order. Unlike the
/// crate's own writer, which goes through a hash map, equal input gives equal bytes.
pub(crate) fn write_header<'a>(
    to: &mut impl Write,
    metadata: &BTreeMap<String, String>,
    tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
) -> io::Result<()> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.to_owned(), serde_json::to_value(metadata)?);
    }
    let mut begin = 0;
    for (name, dtype, shape) in tensors {
        let end = begin + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (begin, end) };
        header.insert(name.to_owned(), serde_json::to_value(info)?);
        begin = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    // The format pads with spaces so that the data begins at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(&text)
}
