//! `quantize`: a whole checkpoint in NF4, one matrix of the original in memory at a time.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use qlora_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};
use safetensors::Dtype;

use super::config::{QuantizationConfig, quantized_config, skipped};
use super::layout::{Layout, Stored, Writer, write_json};
use super::state::{QuantState, STATE_BYTES};
use super::{OriginalBase, part};
use crate::arch::Projection;
use crate::base::fingerprint::TensorDigest;
use crate::base::{Checkpoint, Fingerprint};
use crate::error::{Context, Result};
use crate::files::failpoint;
use crate::files::json::read_object;
use crate::files::tensor::{HostTensor, StoredType, TensorData};
use crate::refuse;

/// How a checkpoint is quantized.
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
    if checkpoint.quantization().is_some() {
        refuse!("{}: found a model that is already quantized, expected a 16-bit one", checkpoint.dir().display());
    }
    let plan = Plan::new(checkpoint, options)?;
    let partial = Partial::new(output)?;
    let original = plan.write_weights(&partial.path, progress)?;

    let config_path = checkpoint.dir().join("config.json");
    let quantization = QuantizationConfig::to_json(options.nf4.double_quant, plan.compute_type(), &plan.skipped);
    let tied = checkpoint.arch().tie_word_embeddings;
    let config = quantized_config(&read_object(&config_path)?, quantization, tied);
    write_json(&partial.path.join("config.json"), &config)?;
    copy_side_files(checkpoint.dir(), &partial.path)?;
    // What is to be put in place has to be what this program reads.
    Checkpoint::open(&partial.path)?;
    partial.commit(output)?;
    Ok(Quantized {
        quantized: plan.quantized.len(),
        files: plan.layout.file_names().count(),
        bytes: plan.layout.bytes(),
        skipped: plan.skipped,
        original,
    })
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
    fn new(checkpoint: &'a Checkpoint, options: &'a QuantizeOptions) -> Result<Self> {
        let arch = checkpoint.arch();
        let modules: Vec<String> = arch.modules().collect();
        let skipped = skipped(&options.skip_modules, modules.iter().map(String::as_str))?;
        let quantized: BTreeSet<String> = modules
            .iter()
            .filter(|module| !skipped.contains(*module))
            .map(|module| format!("{module}.weight"))
            .collect();
        let group = |(name, shape): (String, Vec<usize>)| match quantized.contains(&name) {
            true => nf4_parts(&name, shape[0], shape[1], &options.nf4),
            false => {
                let dtype = checkpoint.stored_type(&name).expect("an opened checkpoint has every tensor").dtype();
                vec![Stored { name, dtype, shape }]
            }
        };
        let groups = arch.tensors().into_iter().map(group).collect();
        let layout = Layout::new(groups, options.max_shard_bytes);
        Ok(Self { checkpoint, options, quantized, skipped, layout })
    }

    /// Type that the linear layers were stored in
    fn compute_type(&self) -> StoredType {
        let name = self.checkpoint.arch().weight_name(0, Projection::Q);
        self.checkpoint.stored_type(&name).expect("an opened checkpoint has every tensor")
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
fn nf4_parts(name: &str, rows: usize, cols: usize, options: &Nf4Options) -> Vec<Stored> {
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
    parts.map(|(suffix, dtype, shape)| Stored { name: format!("{name}{suffix}"), dtype, shape }).collect()
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

/// A directory beside the output until it is complete; removed if it never is.
struct Partial {
    path: PathBuf,
    // Removes the directory when it is dropped.
    guard: tempfile::TempDir,
}

impl Partial {
    fn new(output: &Path) -> Result<Self> {
        let shown = output.display();
        check_output(output)?;
        let Some(name) = output.file_name().map(|name| name.to_string_lossy().into_owned()) else {
            refuse!("{shown}: found no name of a directory, expected one to make");
        };
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).usage_context(|| format!("{shown}: its parent directory cannot be made"))?;
        // Readable by whom the umask lets read.
        let guard = tempfile::Builder::new()
            .prefix(&format!(".{name}.partial-"))
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .usage_context(|| format!("{shown}: cannot be made; choose another directory"))?;
        Ok(Self { path: guard.path().to_owned(), guard })
    }

    fn commit(self, output: &Path) -> Result<()> {
        let put = || -> io::Result<()> {
            File::open(&self.path)?.sync_all()?;
            // An empty directory is replaced, anything else is an error.
            std::fs::rename(&self.path, output)?;
            File::open(output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
        };
        put().context(|| format!("{}: cannot be put in place", output.display()))?;
        // It has another name now.
        let _ = self.guard.keep();
        Ok(())
    }
}

/// Refuses an output that is there and not an empty directory.
pub(super) fn check_output(output: &Path) -> Result<()> {
    let shown = output.display();
    let Ok(metadata) = output.symlink_metadata() else { return Ok(()) };
    if !metadata.is_dir() {
        refuse!("{shown}: found something that is not a directory, expected none, or an empty one; choose another");
    }
    let mut entries = std::fs::read_dir(output).usage_context(|| format!("{shown}: cannot be read"))?;
    if entries.next().is_some() {
        refuse!("{shown}: found a directory that is not empty, expected none, or an empty one; choose another");
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
fn copy_side_files(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).context(|| format!("{}: cannot be read", from.display()))? {
        let entry = entry.context(|| format!("{}: cannot be read", from.display()))?;
        let (name, path) = (entry.file_name(), entry.path());
        let text = name.to_string_lossy();
        let weights = WEIGHTS.iter().any(|ending| text.ends_with(&format!(".{ending}")));
        // Links are followed: the snapshots of the Hugging Face cache are made of them.
        if text.starts_with('.') || text == "config.json" || weights || !path.is_file() {
            continue;
        }
        let copy = || -> io::Result<()> {
            let mut target = File::create(to.join(&name))?;
            io::copy(&mut File::open(&path)?, &mut target)?;
            target.sync_all()
        };
        copy().context(|| format!("{}: cannot be copied", path.display()))?;
    }
    Ok(())
}
