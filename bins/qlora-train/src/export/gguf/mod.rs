//! `export gguf`: a model, with an adapter in its weights or without, or an adapter alone, as a file of llama.cpp, with
//! Ollama's Modelfile beside it. One tensor is in memory at a time.

mod adapter;
mod family;
mod modelfile;
mod pre_tokenizer;
mod tokenizer;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;

pub use adapter::export_adapter;

use super::merge::{MergeBase, Merging};
use super::parts::Part;
use crate::adapter::Adapter;
use crate::arch::{Arch, Projection};
use crate::bail_usage;
use crate::base::{Checkpoint, Fingerprint, Partial, Rewrite};
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::files::atomic::write_synced;
use crate::files::failpoint;
use crate::files::tensor::StoredType;
use crate::files::units::format_bytes;
use crate::gguf::{Entries, Entry, GgmlType, Header, TensorInfo, encode, interleaved_row, padding};
use crate::infer::stop::Stop;
use crate::session::disk::free_bytes;
use family::{GgufFamily, Named, RopeFactors};

const MODELFILE: &str = "Modelfile";
/// Modelfile and rounding to blocks, with room to spare.
const OVERHEAD: u64 = 1 << 20;

/// True if a model can be written: llama.cpp knows its family, and computes the same.
pub fn has_gguf(arch: &Arch) -> bool {
    GgufFamily::of(arch, "").is_ok()
}

/// Type of the weights in a file. Norms and biases are F32 in every file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    F32,
    F16,
    Bf16,
    Q8_0,
    /// Q4_K, with Q6_K for the output layer and for half of the layers' attn_v and ffn_down.
    Q4KM,
}

impl GgufType {
    /// The name that llama.cpp gives files of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4KM => "Q4_K_M",
            _ => self.weights().name(),
        }
    }

    /// Type of most weights.
    fn weights(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4KM => GgmlType::Q4K,
        }
    }

    /// `general.file_type`
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Bf16 => 32,
        }
    }

    /// 16 bits as the model is stored; F32 for one that is stored in f32.
    pub fn as_stored(checkpoint: &Checkpoint) -> Self {
        match checkpoint.dense_type(checkpoint.arch().names.embedding) {
            StoredType::F32 => Self::F32,
            StoredType::F16 => Self::F16,
            StoredType::Bf16 => Self::Bf16,
        }
    }

    /// Type of a tensor, as llama.cpp chooses it; another one where rows are no whole blocks.
    fn of(self, named: &Named, arch: &Arch) -> GgmlType {
        if named.shape.len() == 1 {
            return GgmlType::F32;
        }
        let wanted = if self == Self::Q4KM { mixed(named, arch) } else { self.weights() };
        let columns = named.shape[named.shape.len() - 1];
        let fits = |kind: GgmlType| columns.is_multiple_of(kind.block_size());
        let smaller = match wanted {
            GgmlType::Q4K if !named.is_output(arch) => GgmlType::Q5_0,
            GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K => GgmlType::Q8_0,
            other => other,
        };
        [wanted, smaller].into_iter().find(|&kind| fits(kind)).unwrap_or(GgmlType::F16)
    }
}

/// Type of a weight in Q4_K_M. Where heads share k and v in a model of 80 layers, attn_v is small beside its use.
fn mixed(named: &Named, arch: &Arch) -> GgmlType {
    let layers = arch.num_layers;
    let more = |layer: usize| layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
    let of_70b = layers == 80
        && match arch.family.model_type {
            "llama" | "mistral" => arch.num_heads != arch.num_kv_heads,
            other => other == "qwen2",
        };
    match named.projection {
        _ if named.is_output(arch) => GgmlType::Q6K,
        Some((layer, Projection::V | Projection::Qkv | Projection::Down)) if more(layer) => GgmlType::Q6K,
        Some((_, Projection::V)) if of_70b => GgmlType::Q5K,
        _ => GgmlType::Q4K,
    }
}

/// An adapter to put into the weights.
#[derive(Clone, Copy)]
pub struct ToMerge<'a> {
    pub adapter: &'a Adapter,
    pub dir: &'a Path,
    pub allow_other_base: bool,
}

/// Result of an export.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Name of the file in the directory
    pub file: String,
    pub bytes: u64,
    /// SHA-256 (hex) of the file
    pub sha256: String,
    pub tensors: usize,
    /// Linear weights that an adapter changed, or that the file holds pairs of.
    pub changed: usize,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Writes the model of `checkpoint`, with an adapter in its weights where one is given, as GGUF, and a Modelfile, to
/// the directory `output`.
///
/// A weight with the adapter's term is the sum in f32, rounded once to the type of the file. `tokenizer` has the chat
/// template that was trained with. The directory appears whole or not at all. Refused: a model, tokenizer or template
/// that llama.cpp does not have; an adapter that `merge` refuses; a weight that the type cannot hold.
pub fn export_model(
    checkpoint: &Checkpoint,
    merged: Option<ToMerge>,
    base: MergeBase,
    tokenizer: &ChatTokenizer,
    output: &Path,
    kind: GgufType,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Exported> {
    let (arch, source) = (checkpoint.arch(), checkpoint.dir().display().to_string());
    let family = GgufFamily::of(arch, &source)?;
    let (entries, mut warnings) = tokenizer::entries(tokenizer.dir(), tokenizer, arch)?;
    warnings.extend(family.notes(arch));
    let plan = Plan::new(family, checkpoint, kind, entries);
    let mut work = match merged {
        Some(ToMerge { adapter, dir, allow_other_base }) => {
            Merging::new(checkpoint, &[Part::whole(adapter, dir)], base, allow_other_base)?
        }
        None => Merging::without_adapter(checkpoint, base),
    };
    let file_name = format!("{}-{}.gguf", file_stem(checkpoint), kind.name());
    let header = plan.header.to_bytes().usage_context(|| source.clone())?;
    let bytes = header.len() as u64 + plan.header.data_bytes()?;
    check_room(output, bytes + OVERHEAD)?;
    let stops = stop_texts(checkpoint, tokenizer)?;
    let modelfile = modelfile::modelfile(tokenizer, &file_name, None, &stops);
    warnings.extend(modelfile.note);

    let partial = Partial::new(output)?;
    let sha256 = write_file(&partial, output, &file_name, &mut |to| {
        to.put(&header)?;
        plan.write_tensors(checkpoint, &mut work, to, progress)
    })?;
    write_file(&partial, output, MODELFILE, &mut |to| to.put(modelfile.text.as_bytes()))?;
    partial.commit(output)?;
    warnings.extend(work.warnings);
    let tensors = plan.header.tensors.len();
    Ok(Exported { file: file_name, bytes, sha256, tensors, changed: work.pairs.len(), warnings })
}

/// Layout of the file of a model.
struct Plan {
    header: Header,
    /// Factors of rotary positions are the first tensors.
    rope_factors: Vec<RopeFactors>,
    tensors: Vec<Named>,
}

impl Plan {
    fn new(family: &GgufFamily, checkpoint: &Checkpoint, kind: GgufType, tokenizer: Entries) -> Self {
        let arch = checkpoint.arch();
        let mut entries = general(family, checkpoint, "model");
        entries.push(("general.file_type".to_owned(), Entry::U32(kind.file_type())));
        entries.push(("general.quantization_version".to_owned(), Entry::U32(2)));
        entries.extend(family.metadata(arch));
        entries.extend(tokenizer);
        let (tensors, rope_factors) = (family.tensors(arch), family.rope_factors(arch));
        let factors = rope_factors.iter().map(|factors| TensorInfo {
            name: factors.name.to_owned(),
            shape: vec![factors.values.len()],
            kind: GgmlType::F32,
        });
        let info = |named: &Named| TensorInfo {
            name: named.name.clone(),
            shape: named.shape.clone(),
            kind: kind.of(named, arch),
        };
        let infos = factors.chain(tensors.iter().map(info)).collect();
        Self { header: Header { entries, tensors: infos }, rope_factors, tensors }
    }

    fn write_tensors(
        &self,
        checkpoint: &Checkpoint,
        work: &mut Merging,
        to: &mut Sink,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let (factors, infos) = self.header.tensors.split_at(self.rope_factors.len());
        for (info, factors) in factors.iter().zip(&self.rope_factors) {
            write_tensor(to, info, &factors.values, None)?;
        }
        let mut fingerprint = Fingerprint::new(checkpoint);
        for (done, (named, info)) in self.tensors.iter().zip(infos).enumerate() {
            let (tensor, digest) = checkpoint.read_with_digest(&named.source)?;
            // Once for each tensor of the checkpoint.
            if named.first_row == 0 {
                fingerprint.add(digest)?;
            }
            checkpoint.check_finite(&named.source, &tensor)?;
            // The sum is rounded once, to the type of the file.
            let tensor = match work.changes(&named.source) {
                true => work.tensor(&named.source, tensor, StoredType::F32)?,
                false => tensor,
            };
            let what = || format!("{}: tensor `{}`", checkpoint.dir().display(), named.source);
            let mut values = tensor.into_f32();
            if named.one_plus {
                values.iter_mut().for_each(|value| *value += 1.0);
            }
            let row: usize = named.shape[1..].iter().product();
            let values = &values[named.first_row * row..][..named.shape[0] * row];
            write_tensor(to, info, values, named.interleaved).context(what)?;
            failpoint::moment("tensor");
            progress(done + 1)?;
        }
        work.check_base(&fingerprint.finish()?)
    }
}

/// Rows that one task encodes.
const ROWS: usize = 64;

/// The values of a tensor in the file's type, with the rows of each head of `interleaved` rows interleaved. Refused: a
/// value that the type cannot hold.
fn write_tensor(to: &mut Sink, info: &TensorInfo, values: &[f32], interleaved: Option<usize>) -> Result<()> {
    let columns = info.shape[info.shape.len() - 1];
    let rows: Vec<usize> = (0..values.len() / columns)
        .map(|row| interleaved.map_or(row, |head_dim| interleaved_row(row, head_dim)))
        .collect();
    // A bias is a row of its own, whose elements are the rows of its weight.
    let encoded: Vec<Vec<u8>> = match (info.shape.len(), interleaved) {
        (1, Some(head_dim)) => {
            let permuted: Vec<f32> = (0..columns).map(|at| values[interleaved_row(at, head_dim)]).collect();
            vec![encoded(info.kind, &permuted)]
        }
        _ => rows
            .par_chunks(ROWS)
            .map(|rows| {
                let mut out = Vec::new();
                rows.iter().for_each(|&row| encode(info.kind, &values[row * columns..(row + 1) * columns], &mut out));
                out
            })
            .collect(),
    };
    check_held(info.kind, values)?;
    let mut length = 0;
    for bytes in &encoded {
        to.put(bytes)?;
        length += bytes.len();
    }
    to.put(&[0; 32][..padding(length)])
}

fn encoded(kind: GgmlType, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(kind, values, &mut out);
    out
}

/// Refuses a value that is beyond the range of F16, or of the F16 scale of a block.
fn check_held(kind: GgmlType, values: &[f32]) -> Result<()> {
    let limit = match kind {
        GgmlType::F32 => f32::MAX,
        GgmlType::Bf16 => bf16::MAX.to_f32(),
        GgmlType::F16 | GgmlType::Q4_1 => f16::MAX.to_f32(),
        GgmlType::Q5_0 => f16::MAX.to_f32() * 16.0,
        GgmlType::Q8_0 => f16::MAX.to_f32() * 127.0,
        GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K => f16::MAX.to_f32() * 63.0,
    };
    match values.iter().find(|value| !value.is_finite() || value.abs() > limit) {
        Some(value) => bail_usage!(
            "found {value}, expected numbers that {} can hold, up to {limit}; --type bf16 holds larger ones",
            kind.name()
        ),
        None => Ok(()),
    }
}

/// Metadata that every file has.
fn general(family: &GgufFamily, checkpoint: &Checkpoint, kind: &str) -> Entries {
    let base = checkpoint.base_name();
    let mut entries = vec![
        ("general.architecture", Entry::Text(family.architecture.to_owned())),
        ("general.type", Entry::Text(kind.to_owned())),
        ("general.name", Entry::Text(file_stem(checkpoint))),
    ];
    if base.is_hub {
        entries.extend([
            ("general.base_model.count", Entry::U32(1)),
            ("general.base_model.0.name", Entry::Text(file_stem(checkpoint))),
            ("general.base_model.0.repo_url", Entry::Text(format!("https://huggingface.co/{}", base.name))),
        ]);
    }
    entries.into_iter().map(|(key, entry)| (key.to_owned(), entry)).collect()
}

/// The base's name without its organization, in characters that file names have everywhere.
fn file_stem(checkpoint: &Checkpoint) -> String {
    let name = checkpoint.base_name().name.rsplit('/').next().unwrap_or_default();
    let kept = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let stem: String = name.chars().map(kept).collect();
    if stem.trim_matches(['.', '-']).is_empty() { "model".to_owned() } else { stem }
}

/// Texts of the tokens that end an answer, and stop strings.
fn stop_texts(checkpoint: &Checkpoint, tokenizer: &ChatTokenizer) -> Result<Vec<String>> {
    let stop = Stop::of_model(checkpoint.dir(), checkpoint.arch(), tokenizer, tokenizer.template().is_some())?;
    let own = tokenizer.vocabulary();
    let of_tokens = stop.tokens.iter().filter_map(|&id| own.get(id as usize).cloned().flatten());
    Ok(of_tokens.chain(stop.texts().map(str::to_owned)).collect())
}

/// Refuses an output that the disk has no room for.
fn check_room(output: &Path, needed: u64) -> Result<()> {
    match free_bytes(output).filter(|free| *free < needed) {
        Some(free) => bail_usage!(
            "{}: {} are free on its file system, expected {} for the file: make room, or choose another output",
            output.display(),
            format_bytes(free),
            format_bytes(needed)
        ),
        None => Ok(()),
    }
}

/// A file that is being written.
struct Sink<'a> {
    to: &'a mut dyn Write,
    /// Path of the finished file
    path: PathBuf,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).context(|| format!("{}: cannot be written", self.path.display()))
    }
}

/// Writes a file of `output` to the disk and returns its SHA-256 (hex).
fn write_file(
    partial: &Partial,
    output: &Path,
    name: &str,
    write: &mut dyn FnMut(&mut Sink) -> Result<()>,
) -> Result<String> {
    let path = output.join(name);
    // An error of ours must not be turned into one of the file.
    let mut ours = None;
    let written = File::create(partial.path.join(name)).and_then(|file| {
        write_synced(&file, name, |to| {
            write(&mut Sink { to, path: path.clone() }).map_err(|error| {
                ours = Some(error);
                io::Error::other("not written")
            })
        })
    });
    match ours {
        Some(error) => Err(error),
        None => written.context(|| format!("{}: cannot be written", path.display())),
    }
}
