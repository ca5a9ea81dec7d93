//! `quantize`: a whole checkpoint in NF4, one matrix of the original in memory at a time.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use qlora_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::config::{QuantizationConfig, quantized_config, skipped};
use super::layout::{Layout, NewTensor, Writer, write_json};
use super::state::{QuantState, STATE_BYTES};
use super::{OriginalBase, part};
use crate::arch::{Arch, Input};
use crate::bail_usage;
use crate::base::fingerprint::TensorDigest;
use crate::base::open::text_object;
use crate::base::{Checkpoint, Fingerprint};
use crate::error::{Context, Result};
use crate::files::dir::{Dir, Kind, unique};
use crate::files::failpoint;
use crate::files::regular;
use crate::files::tensor::{HostTensor, StoredType, TensorData};

/// Options of [`quantize`].
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    pub nf4: Nf4Options,
    /// Modules that stay as they are, by name, or by the beginning or end of it. The embedding, the norms and `lm_head`
    /// always do.
    pub skip_modules: Vec<String>,
    /// Bytes of tensors in one file.
    pub max_shard_bytes: u64,
}

/// Result of [`quantize`].
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Linear weights in NF4.
    pub quantized: usize,
    /// Linear modules that were left as they were, beside `lm_head`.
    pub skipped: Vec<String>,
    /// Weight files.
    pub files: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
    pub original: OriginalBase,
}

/// Writes `checkpoint` in NF4 to `output`, in the format of bitsandbytes; everything else of its directory is copied.
///
/// The directory appears whole or not at all. Refused: a base that is quantized already, an output that is there and
/// not empty, weights that are not finite, an entry of `skip_modules` that matches nothing. `progress` gets the number
/// of tensors done, of [`Arch::tensors`](crate::arch::Arch::tensors); an error of it ends the work, and nothing is
/// left.
pub fn quantize(
    checkpoint: &Checkpoint,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Quantized> {
    let plan = Plan::new(checkpoint, options)?;
    let partial = Partial::new(output)?;
    let done = plan.write(&partial.path, progress)?;
    partial.commit(output)?;
    Ok(done)
}

/// [`quantize`] into a directory that exists already and that the caller puts in place.
pub(crate) fn quantize_into(
    checkpoint: &Checkpoint,
    partial: &Partial,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Quantized> {
    Plan::new(checkpoint, options)?.write(&partial.path, progress)
}

/// Bytes of the tensors that [`quantize`] writes for a model whose tensors are `stored` in these types, with no module
/// skipped.
pub fn quantized_bytes(arch: &Arch, nf4: &Nf4Options, stored: &dyn Fn(&str) -> StoredType) -> u64 {
    let linear: BTreeSet<String> = arch.modules().map(|module| format!("{module}.weight")).collect();
    groups(arch, &linear, nf4, stored).iter().flatten().map(NewTensor::bytes).sum()
}

/// Bytes of the files that [`quantize`] copies.
pub(crate) fn side_bytes(checkpoint: &Checkpoint) -> Result<u64> {
    let files = side_files(checkpoint.dir())?;
    Ok(files.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum())
}

/// The tensors that are stored, those of a weight together: the weights that are named in `quantized` as parts.
fn groups(
    arch: &Arch,
    quantized: &BTreeSet<String>,
    nf4: &Nf4Options,
    stored: &dyn Fn(&str) -> StoredType,
) -> Vec<Vec<NewTensor>> {
    let group = |(name, shape): (String, Vec<usize>)| match quantized.contains(&name) {
        true => nf4_parts(&name, shape[0], shape[1], nf4),
        false => vec![NewTensor { dtype: stored(&name).dtype(), name, shape }],
    };
    arch.tensors().into_iter().map(group).collect()
}

/// Plan of the files.
struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a QuantizeOptions,
    /// Names of the weights that are quantized.
    quantized: BTreeSet<String>,
    skipped: Vec<String>,
    layout: Layout,
}

impl<'a> Plan<'a> {
    /// Refused: as [`quantize`] refuses a base and its options.
    fn new(checkpoint: &'a Checkpoint, options: &'a QuantizeOptions) -> Result<Self> {
        if checkpoint.quantization().is_some() {
            bail_usage!(
                "{}: found a model that is already quantized, expected a 16-bit one",
                checkpoint.dir().display()
            );
        }
        let arch = checkpoint.arch();
        let modules: Vec<String> = arch.modules().collect();
        let skipped = skipped(&options.skip_modules, modules.iter().map(String::as_str))?;
        let quantized: BTreeSet<String> = modules
            .iter()
            .filter(|module| !skipped.contains(*module))
            .map(|module| format!("{module}.weight"))
            .collect();
        let stored = |name: &str| checkpoint.stored_type(name).expect("an opened checkpoint has every tensor");
        let layout = Layout::new(groups(arch, &quantized, &options.nf4, &stored), options.max_shard_bytes);
        Ok(Self { checkpoint, options, quantized, skipped, layout })
    }

    /// Type that the linear layers were stored in
    fn compute_type(&self) -> StoredType {
        let name = self.checkpoint.arch().first_weight(0, Input::Attention);
        self.checkpoint.stored_type(&name).expect("an opened checkpoint has every tensor")
    }

    /// Writes the whole checkpoint into `dir`.
    fn write(self, dir: &Path, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Quantized> {
        let (checkpoint, original) = (self.checkpoint, self.write_weights(dir, progress)?);
        let config_path = checkpoint.dir().join("config.json");
        let quantization =
            QuantizationConfig::to_json(self.options.nf4.double_quant, self.compute_type(), &self.skipped);
        let tied = checkpoint.arch().tie_word_embeddings;
        let config = quantized_config(&text_object(&config_path)?, quantization, tied);
        write_json(&dir.join("config.json"), &config)?;
        copy_side_files(checkpoint.dir(), dir)?;
        // The finished directory has to be one that this program reads.
        Checkpoint::open(dir)?;
        Ok(Quantized {
            quantized: self.quantized.len(),
            files: self.layout.file_names().count(),
            bytes: self.layout.bytes(),
            skipped: self.skipped,
            original,
        })
    }

    fn write_weights(&self, dir: &Path, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<OriginalBase> {
        let blank = "0".repeat(64);
        let name = self.checkpoint.base_name().clone();
        let mut original = OriginalBase { name, fingerprint: blank.clone(), quantized_fingerprint: blank };
        let writer = self.layout.create(dir, &original.to_metadata())?;
        let (mut before, mut after) = (Fingerprint::new(self.checkpoint), Fingerprint::new(self.checkpoint));
        for (done, (name, _)) in self.checkpoint.arch().tensors().iter().enumerate() {
            let (tensor, digest) = self.checkpoint.read_with_digest(name)?;
            before.add(digest.clone())?;
            self.checkpoint.check_finite(name, &tensor)?;
            after.add(match self.quantized.contains(name) {
                true => self.write_nf4(&writer, name, tensor)?,
                false => {
                    writer.write(name, tensor.bytes())?;
                    digest
                }
            })?;
            failpoint::moment("tensor");
            progress(done + 1)?;
        }
        original.fingerprint = before.finish()?.whole;
        original.quantized_fingerprint = after.finish()?.whole;
        writer.finish(&original.to_metadata())?;
        Ok(original)
    }

    fn write_nf4(&self, writer: &Writer, name: &str, tensor: HostTensor) -> Result<TensorDigest> {
        let dtype = tensor.stored_type();
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let quantized = match &tensor.data {
            TensorData::Bf16(values) => Nf4Matrix::quantize_bf16(values, rows, cols, &self.options.nf4),
            _ => Nf4Matrix::quantize(&tensor.to_f32(), rows, cols, &self.options.nf4),
        };
        drop(tensor);
        let matrix = quantized.usage_context(|| format!("{}: tensor `{name}`", self.checkpoint.dir().display()))?;
        let bytes = nf4_bytes(&matrix, dtype);
        let parts = nf4_parts(name, rows, cols, &self.options.nf4);
        parts.iter().zip(&bytes).try_for_each(|(stored, bytes)| writer.write(&stored.name, bytes))?;
        let parts = parts
            .iter()
            .zip(&bytes)
            .map(|(stored, bytes)| (&stored.name[name.len()..], stored.dtype, &stored.shape[..], bytes.as_slice()));
        Ok(TensorDigest::of_parts(name, &[rows, cols], parts))
    }
}

/// The parts of a quantized weight, sorted by name.
fn nf4_parts(name: &str, rows: usize, cols: usize, options: &Nf4Options) -> Vec<NewTensor> {
    let len = rows * cols;
    let blocks = len.div_ceil(options.block_size);
    let nested = [
        (part::ABSMAX, Dtype::U8, vec![blocks]),
        (part::NESTED_ABSMAX, Dtype::F32, vec![blocks.div_ceil(NESTED_BLOCK_SIZE)]),
        (part::NESTED_QUANT_MAP, Dtype::F32, vec![256]),
    ];
    let absmax = if options.double_quant { nested.to_vec() } else { vec![(part::ABSMAX, Dtype::F32, vec![blocks])] };
    let first = [("", Dtype::U8, vec![len.div_ceil(2), 1])];
    let last = [(part::QUANT_MAP, Dtype::F32, vec![16]), (part::STATE, Dtype::U8, vec![STATE_BYTES])];
    let parts = first.into_iter().chain(absmax).chain(last);
    parts.map(|(suffix, dtype, shape)| NewTensor { name: format!("{name}{suffix}"), dtype, shape }).collect()
}

/// The bytes of [`nf4_parts`], in their order.
fn nf4_bytes(matrix: &Nf4Matrix, dtype: StoredType) -> Vec<Vec<u8>> {
    let floats = |values: &[f32]| bytemuck::cast_slice::<f32, u8>(values).to_vec();
    let mut bytes = vec![matrix.codes().to_vec()];
    let nested_offset = match matrix.absmax() {
        Absmax::F32(absmax) => {
            bytes.push(floats(absmax));
            None
        }
        Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset, .. } => {
            bytes.extend([codes.clone(), floats(nested_absmax), floats(nested_map.as_slice())]);
            Some(*offset)
        }
    };
    let shape = [matrix.rows(), matrix.cols()];
    let state = QuantState { shape, block_size: matrix.block_size(), dtype, nested_offset };
    bytes.extend([floats(matrix.code()), state.to_bytes()]);
    bytes
}

/// A directory beside the output until it is complete; removed if it never is. A file beside it names it, so that a
/// later process finds what a killed one has left; the file is locked as long as the work goes on.
pub(crate) struct Partial {
    pub path: PathBuf,
    parent: Dir,
    /// The directory's name
    name: String,
    record: String,
    _lock: File,
}

/// Content of the file that names the directory
#[derive(Serialize, Deserialize)]
struct Unfinished {
    program: String,
    directory: String,
}

impl Unfinished {
    const PROGRAM: &str = "qlora-train quantize";
    const MAX_BYTES: u64 = 1 << 12;

    /// Refused: another program's file.
    fn read(from: &File, path: &Path, prefix: &str) -> Result<Self> {
        let mut text = String::new();
        let unfinished = from.take(Self::MAX_BYTES).read_to_string(&mut text).ok();
        let unfinished = unfinished.and_then(|_| serde_json::from_str::<Self>(&text).ok());
        let drawn = |directory: &str| directory.strip_prefix(prefix).map(str::to_owned);
        let is_ours = |found: &Self| {
            found.program == Self::PROGRAM
                && drawn(&found.directory).is_some_and(|drawn| drawn.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        match unfinished.filter(is_ours) {
            Some(unfinished) => Ok(unfinished),
            None => bail_usage!(
                "{}: found a file that is no record of an unfinished `quantize`, where one is to be written: move it away",
                path.display()
            ),
        }
    }
}

impl Partial {
    /// Refused: another process is writing to the output.
    pub fn new(output: &Path) -> Result<Self> {
        match Self::unless_busy(output)? {
            Some(partial) => Ok(partial),
            None => bail_usage!(
                "{}: another process is writing to it; wait for it, or choose another directory",
                output.display()
            ),
        }
    }

    /// None: another process is writing to the output.
    pub fn unless_busy(output: &Path) -> Result<Option<Self>> {
        let shown = output.display();
        let Some(name) = output.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            bail_usage!("{shown}: found no name of a directory, expected one to make");
        };
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (record, prefix) = (format!(".{name}.quantize.json"), format!(".{name}.partial-"));
        let what = || format!("{shown}: cannot be made; choose another directory");
        if let Ok(parent) = Dir::open(parent)
            && !remove_unfinished(&parent, &record, &prefix)?
        {
            return Ok(None);
        }
        check_output(output)?;
        let parent = Dir::create(parent).usage_context(|| format!("{shown}: its parent directory cannot be made"))?;
        let name = format!("{prefix}{}", unique());
        let lock = match write_record(&parent, &record, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            lock => lock.usage_context(what)?,
        };
        let partial = Self { path: parent.join(&name), parent, name, record, _lock: lock };
        // The umask decides who may read it.
        partial.parent.create_sub(&partial.name).usage_context(what)?;
        Ok(Some(partial))
    }

    pub fn commit(self, output: &Path) -> Result<()> {
        let put = || -> io::Result<()> {
            let output = output.file_name().unwrap_or_default();
            self.parent.sub(&self.name)?.sync()?;
            // An empty directory is replaced, anything else is an error.
            self.parent.rename(&self.name, &self.parent, output)?;
            self.parent.sync()
        };
        put().context(|| format!("{}: cannot be put in place", output.display()))
    }
}

/// Removes the directory, if it has its first name still, and then what names it.
impl Drop for Partial {
    fn drop(&mut self) {
        // The failure that led here is the one to report.
        if self.parent.remove_all(&self.name, &mut || ()).is_ok() {
            let _ = self.parent.remove_file(&self.record);
        }
    }
}

/// Writes the file that names the directory, and locks it. Failed: it is there already.
fn write_record(parent: &Dir, record: &str, directory: &str) -> io::Result<File> {
    let unfinished = Unfinished { program: Unfinished::PROGRAM.to_owned(), directory: directory.to_owned() };
    let text = serde_json::to_vec(&unfinished)?;
    let write = |mut file: File| -> io::Result<File> {
        // On a file system without locks, only the file's existence keeps others out.
        let _ = file.try_lock();
        file.write_all(&text)?;
        file.sync_all()?;
        Ok(file)
    };
    match parent.create_nameless() {
        Ok(file) => {
            let file = write(file)?;
            parent.link(&file, record)?;
            Ok(file)
        }
        Err(_) => write_named_record(parent, record, directory, &write),
    }
}

/// [`write_record`] on a file system without files of no name, NFS for one: the file is whole and locked before it gets
/// the name that others look for.
fn write_named_record(
    parent: &Dir,
    record: &str,
    directory: &str,
    write: &dyn Fn(File) -> io::Result<File>,
) -> io::Result<File> {
    let first = format!("{directory}.json");
    let linked = parent.create_file(&first).and_then(write).and_then(|file| {
        parent.link_name(&first, record)?;
        Ok(file)
    });
    let removed = parent.remove_file(&first);
    match linked {
        Ok(file) => removed.map(|()| file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // A file system with one name for each file.
        Err(_) => write(parent.create_file(record)?),
    }
}

/// Removes what a killed process has left of the same output. False: a process is at work.
fn remove_unfinished(parent: &Dir, record: &str, prefix: &str) -> Result<bool> {
    let path = parent.join(record);
    let what = || format!("{}: the files of an earlier process cannot be removed", path.display());
    let file = match parent.kind(record).usage_context(what)? {
        None => return Ok(true),
        Some(Kind::File) => match parent.open_to_lock(record) {
            // The process that had it is done.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            file => file.usage_context(what)?,
        },
        Some(_) => bail_usage!("{}: found something that is not a file: move it away", path.display()),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        // Its directory may be that of a process at work.
        Err(TryLockError::Error(error)) => bail_usage!(
            "{}: is the record of a process that writes a model; the file cannot be locked ({error}), so that nothing \
             tells whether that process is still at work: if it is not, remove the file, or choose another directory",
            path.display()
        ),
    }
    if !parent.is_file(record, &file) {
        return Ok(false);
    }
    let unfinished = Unfinished::read(&file, &path, prefix)?;
    if parent.kind(&unfinished.directory).usage_context(what)? == Some(Kind::Directory) {
        parent.remove_all(&unfinished.directory, &mut || ()).usage_context(what)?;
    }
    parent.remove_file(record).usage_context(what)?;
    Ok(true)
}

/// Refuses an output that is there and not an empty directory.
pub(super) fn check_output(output: &Path) -> Result<()> {
    let shown = output.display();
    let Ok(metadata) = output.symlink_metadata() else { return Ok(()) };
    if !metadata.is_dir() {
        bail_usage!("{shown}: found something that is not a directory, expected none, or an empty one; choose another");
    }
    let mut entries = std::fs::read_dir(output).usage_context(|| format!("{shown}: cannot be read"))?;
    if entries.next().is_some() {
        bail_usage!("{shown}: found a directory that is not empty, expected none, or an empty one; choose another");
    }
    Ok(())
}

/// Endings of files that hold weights, of whatever program.
const WEIGHTS: [&str; 13] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "npz",
    "index.json",
];

/// Tokenizer, templates, generation settings, license, model card: all files but weights and hidden ones.
fn side_files(from: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(from).context(|| format!("{}: cannot be read", from.display()))? {
        let entry = entry.context(|| format!("{}: cannot be read", from.display()))?;
        let (name, path) = (entry.file_name(), entry.path());
        let text = name.to_string_lossy();
        let weights = WEIGHTS.iter().any(|ending| text.ends_with(&format!(".{ending}")));
        // Links are followed: the snapshots of the Hugging Face cache are made of them.
        if !text.starts_with('.') && text != "config.json" && !weights && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// Copies the files of a directory that are no weights.
pub(super) fn copy_side_files(from: &Path, to: &Path) -> Result<()> {
    side_files(from)?.iter().try_for_each(|path| copy_side_file(path, to))
}

/// Copies a file into a directory, under its name, in place of one that is there.
pub(super) fn copy_side_file(path: &Path, to: &Path) -> Result<()> {
    let copy = || -> io::Result<()> {
        let mut target = File::create(to.join(path.file_name().unwrap_or_default()))?;
        io::copy(&mut regular::open(path)?, &mut target)?;
        target.sync_all()
    };
    copy().context(|| format!("{}: cannot be copied", path.display()))
}

#[cfg(test)]
mod tests;
