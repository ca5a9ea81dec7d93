//! `merge`: a base with adapters in its weights, `W + Σ weight · scale · B · A`, one matrix in memory at a time.

use std::collections::BTreeMap;
use std::path::Path;

use super::parts::{Part, check_together, side_files};
use crate::adapter::{BaseQuantization, LoraPair, TokenRows, WholeModule};
use crate::bail_usage;
use crate::base::{BaseFingerprint, Checkpoint, Rewrite, Written, write_dense};
use crate::error::{Context, Result};
use crate::files::tensor::{HostTensor, StoredType, TensorData};
use crate::files::units::format_bytes;
use crate::lora::start::add_product;
use crate::session::disk::free_bytes;
use qlora_kernels::nf4::{Nf4Error, Nf4Matrix, Nf4Options};
use serde_json::{Value, json};

/// Weights that an adapter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBase {
    /// The original weights in 16 bits.
    Original,
    /// Linear weights in NF4, dequantized: those that the adapter was trained on.
    Nf4(Nf4Options),
}

/// Options of [`merge`].
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    pub base: MergeBase,
    /// Bytes of tensors in one file.
    pub max_shard_bytes: u64,
    /// An adapter of another base may be merged.
    pub allow_other_base: bool,
}

/// Result of [`merge`].
#[derive(Clone, Debug)]
pub struct Merged {
    /// Linear weights that the adapters changed.
    pub changed: usize,
    /// Weights that an adapter holds whole.
    pub whole: usize,
    /// Rows of single tokens that an adapter holds.
    pub rows: usize,
    pub written: Written,
    /// Warnings of [`Adapter::check_base`](crate::adapter::Adapter::check_base), and of files that differ.
    pub warnings: Vec<String>,
}

/// Name of the file that records the base and adapters of a merged model.
const RECORD: &str = "merge.json";
/// Bytes that a process holds beside adapters and tensors: headers, and freed memory that the heap keeps, at most twice
/// 32 MiB in glibc.
const PROCESS: u64 = 80 << 20;
/// Headers of the files, the tokenizer's and rounding to blocks, with room to spare.
const OVERHEAD: u64 = 64 << 20;

/// Memory that merging takes at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeMemory {
    /// Bytes of the adapters, in f32.
    pub adapters: u64,
    /// The tensor that takes most on its way from file to file.
    pub largest: String,
    /// Bytes of it, in all types at once.
    pub largest_bytes: u64,
}

impl MergeMemory {
    /// Anonymous memory of the whole process.
    pub fn bytes(&self) -> u64 {
        self.adapters + self.largest_bytes + PROCESS
    }
}

/// Memory that [`merge`] takes at most. Errors as [`merge`], where no weights are needed to find them.
pub fn merge_memory(checkpoint: &Checkpoint, parts: &[Part], options: &MergeOptions) -> Result<MergeMemory> {
    Ok(Merging::new(checkpoint, parts, options.base, options.allow_other_base)?.memory())
}

/// Writes `checkpoint` with the adapters of `parts` in its weights to `output`: a Hugging Face directory in 16 bits,
/// with the tokenizer and the chat template that lie beside the adapters, or else those of the base, and merge.json,
/// which names base and adapters.
///
/// The sum is computed in f32 and rounded once, to nearest even, to the type that a tensor is stored in. Several
/// adapters are added in the order of their directories, in whatever order they are given. The directory appears whole
/// or not at all. Refused: an adapter that does not fit the base or was trained on other weights, several or a weight
/// with more than plain LoRA, too little room on the disk, an output that is there and not empty. `progress` is that of
/// [`write_dense`].
pub fn merge(
    checkpoint: &Checkpoint,
    parts: &[Part],
    output: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Merged> {
    let mut work = Merging::new(checkpoint, parts, options.base, options.allow_other_base)?;
    let (needed, free) = (checkpoint.dense_bytes() + OVERHEAD, free_bytes(output));
    if let Some(free) = free.filter(|free| *free < needed) {
        bail_usage!(
            "{}: {} are free on its file system, expected {} for the merged model: make room, or choose another output",
            output.display(),
            format_bytes(free),
            format_bytes(needed)
        );
    }
    let (side_files, mut warnings) = side_files(parts);
    let written = write_dense(checkpoint, output, options.max_shard_bytes, &side_files, &mut work, progress)?;
    let mut rows = 0;
    for part in parts {
        rows += part.adapter.token_rows()?.values().map(|rows| rows.tokens.len()).sum::<usize>();
    }
    warnings.extend(work.warnings);
    Ok(Merged { changed: work.pairs.len(), whole: work.whole.len(), rows, written, warnings })
}

/// The weights of a base with adapters in them, one at a time.
pub(super) struct Merging<'a> {
    checkpoint: &'a Checkpoint,
    /// In the order of their directories, in which they are added.
    parts: Vec<Part<'a>>,
    /// Pairs, each with the factor of `B · A`, by module.
    pub pairs: BTreeMap<String, Vec<(LoraPair<'a>, f32)>>,
    /// Whole weights that take the place of the base's, by module.
    whole: BTreeMap<String, WholeModule<'a>>,
    /// Rows of single tokens that take the place of the base's, by module.
    rows: BTreeMap<String, TokenRows>,
    base: MergeBase,
    allow_other_base: bool,
    /// Identity of the base, once all was read.
    fingerprint: Option<String>,
    /// Warnings of [`Adapter::check_base`](crate::adapter::Adapter::check_base), once all was read.
    pub warnings: Vec<String>,
}

impl<'a> Merging<'a> {
    /// Refused: an adapter whose shapes are not those of the base, and adapters that cannot be added up.
    pub fn new(
        checkpoint: &'a Checkpoint,
        parts: &[Part<'a>],
        base: MergeBase,
        allow_other_base: bool,
    ) -> Result<Self> {
        check_together(parts, allow_other_base)?;
        let mut parts = parts.to_vec();
        parts.sort_by(|one, other| one.dir.cmp(other.dir).then(one.weight.total_cmp(&other.weight)));
        let arch = checkpoint.arch();
        let mut pairs: BTreeMap<String, Vec<(LoraPair, f32)>> = BTreeMap::new();
        let (mut whole, mut rows) = (BTreeMap::new(), BTreeMap::new());
        for part in &parts {
            let (adapter, shown) = (part.adapter, || part.shown());
            adapter.check_shapes(arch, checkpoint.base_name()).context(shown)?;
            for (module, pair) in adapter.lora_pairs().context(shown)? {
                let scale = part.scale(&module, &pair)?;
                pairs.entry(module).or_default().push((pair, scale));
            }
            whole.extend(adapter.whole_modules().context(shown)?);
            rows.extend(adapter.token_rows().context(shown)?);
            if arch.tie_word_embeddings && adapter.lora_spec().context(shown)?.untied {
                bail_usage!(
                    "{}: holds an embedding and an output layer that differ, which are one tensor in {}: merge it with \
                     PEFT (`merge_and_unload`), which writes both",
                    part.dir.display(),
                    checkpoint.dir().display()
                );
            }
        }
        // Files may hold one tensor twice.
        if let Some(both) = rows.get(arch.names.embedding_module()).filter(|_| arch.tie_word_embeddings).cloned() {
            rows.insert(arch.names.head_module().to_owned(), both);
        }
        let (fingerprint, warnings) = (None, Vec::new());
        Ok(Self { checkpoint, parts, pairs, whole, rows, base, allow_other_base, fingerprint, warnings })
    }

    /// The weights of the base alone.
    pub fn without_adapter(checkpoint: &'a Checkpoint, base: MergeBase) -> Self {
        let (pairs, whole, rows) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (parts, fingerprint, warnings) = (Vec::new(), None, Vec::new());
        Self { checkpoint, parts, pairs, whole, rows, base, allow_other_base: false, fingerprint, warnings }
    }

    fn memory(&self) -> MergeMemory {
        let own = |part: &Part| part.adapter.tensors.values().map(|(_, values)| values.len()).sum::<usize>();
        let copied = self.rows.values().map(|rows| rows.values.len()).sum::<usize>();
        let adapters = 4 * (self.parts.iter().map(own).sum::<usize>() + copied) as u64;
        let held = |(name, shape): (String, Vec<usize>)| (self.held_bytes(&name, shape.iter().product()), name);
        let largest = self.checkpoint.arch().tensors().into_iter().map(held).max();
        let (largest_bytes, largest) = largest.unwrap_or_default();
        MergeMemory { adapters, largest, largest_bytes }
    }

    /// Most bytes of a tensor of `elements` elements between reading and writing, in all its types at once.
    fn held_bytes(&self, name: &str, elements: usize) -> u64 {
        let read = if self.checkpoint.is_nf4(name) { StoredType::F32 } else { self.checkpoint.dense_type(name) };
        let stored = self.checkpoint.dense_type(name);
        // It is converted from or to f32, with nothing beside it where it is in f32.
        let beside = |other: StoredType| if other == StoredType::F32 { 0 } else { other.size() };
        let converted = StoredType::F32.size() + beside(read).max(beside(stored));
        let module = module_of(name);
        // Codes, and scales in f32 of blocks of 32, the smallest.
        let codes = if self.checkpoint.is_nf4(name) || self.quantized(name).is_some() { elements * 5 / 8 } else { 0 };
        let of_each = match self.changes(name) {
            _ if self.whole.contains_key(module) => converted,
            false if read == stored => read.size(),
            true if self.rows.contains_key(module) && read == stored => read.size(),
            _ => converted,
        };
        (elements * of_each + codes) as u64
    }

    /// Quantization that is applied to a tensor that is not stored in NF4.
    fn quantized(&self, name: &str) -> Option<Nf4Options> {
        match self.base {
            MergeBase::Nf4(nf4) if !self.checkpoint.is_nf4(name) => {
                // A checkpoint in NF4 leaves in 16 bits what it names.
                let linear = self.checkpoint.arch().find(module_of(name)).is_some();
                Some(nf4).filter(|_| linear && self.checkpoint.quantization().is_none())
            }
            _ => None,
        }
    }

    /// True if a tensor is changed between reading and writing.
    pub fn changes(&self, name: &str) -> bool {
        let module = module_of(name);
        let has_rows = self.rows.contains_key(module);
        self.pairs.contains_key(module) || self.whole.contains_key(module) || has_rows || self.quantized(name).is_some()
    }
}

fn module_of(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl Rewrite for Merging<'_> {
    fn tensor(&mut self, name: &str, tensor: HostTensor, stored: StoredType) -> Result<HostTensor> {
        if !self.changes(name) && tensor.stored_type() == stored {
            return Ok(tensor);
        }
        let shape = tensor.shape.clone();
        if let Some(whole) = self.whole.get(module_of(name)) {
            drop(tensor);
            return Ok(HostTensor::from_f32(shape, whole.values.to_vec(), stored));
        }
        if let Some(rows) = self.rows.get(module_of(name)) {
            let mut table = match tensor.stored_type() == stored {
                true => tensor,
                false => HostTensor::from_f32(shape, tensor.into_f32(), stored),
            };
            table.replace_rows(rows.columns, &rows.tokens, &rows.values);
            return Ok(table);
        }
        let mut values = match self.quantized(name) {
            None => tensor.into_f32(),
            Some(nf4) => quantized_and_back(tensor, &nf4)
                .usage_context(|| format!("{}: tensor `{name}`", self.checkpoint.dir().display()))?,
        };
        for (pair, scale) in self.pairs.get(module_of(name)).into_iter().flatten() {
            add_product(&mut values, pair.k_in, pair.b, pair.r, pair.a, *scale);
            // An adapter with magnitudes is merged alone.
            if let Some(magnitude) = pair.magnitude {
                normalize_rows(&mut values, pair.k_in, magnitude);
            }
        }
        Ok(HostTensor::from_f32(shape, values, stored))
    }

    fn check_base(&mut self, fingerprint: &BaseFingerprint) -> Result<()> {
        let (arch, name) = (self.checkpoint.arch(), self.checkpoint.base_name());
        let held = match self.base {
            MergeBase::Original => BaseQuantization::NONE,
            MergeBase::Nf4(Nf4Options { block_size, double_quant }) => {
                BaseQuantization::nf4(block_size, double_quant, self.checkpoint.skipped_modules().len())
            }
        };
        for part in &self.parts {
            let found = part.adapter.check_base(arch, fingerprint, name, self.allow_other_base);
            let mut found = found.context(|| part.shown())?;
            found.extend(part.adapter.check_base_quantization(Some(fingerprint), &held));
            let named = |text: String| if self.parts.len() > 1 { format!("{}: {text}", part.shown()) } else { text };
            self.warnings.extend(found.into_iter().map(named));
        }
        self.fingerprint = Some(fingerprint.whole.clone());
        Ok(())
    }

    fn record(&self) -> Result<Option<(&'static str, Value)>> {
        let base = self.checkpoint.base_name();
        let weights = match self.base {
            MergeBase::Original => json!("as stored"),
            MergeBase::Nf4(nf4) => json!({"nf4_block_size": nf4.block_size, "double_quant": nf4.double_quant}),
        };
        let adapters = self.parts.iter().map(Part::record).collect::<Result<Vec<Value>>>()?;
        let record = json!({
            "program": concat!("qlora-train ", env!("CARGO_PKG_VERSION")),
            "base": {"name": base.name, "revision": base.revision, "fingerprint": self.fingerprint},
            "base_weights": weights,
            "adapters": adapters,
        });
        Ok(Some((RECORD, record)))
    }
}

/// The values of a weight `[N, K]` in NF4, dequantized. The original is freed first.
fn quantized_and_back(tensor: HostTensor, nf4: &Nf4Options) -> Result<Vec<f32>, Nf4Error> {
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    let matrix = match tensor.data {
        TensorData::Bf16(values) => Nf4Matrix::quantize_bf16(&values, rows, columns, nf4)?,
        _ => Nf4Matrix::quantize(&tensor.into_f32(), rows, columns, nf4)?,
    };
    Ok(matrix.dequantize())
}

/// Scales each row of `k` values to its magnitude (DoRA); one of zeros stays.
fn normalize_rows(values: &mut [f32], k: usize, magnitude: &[f32]) {
    for (row, m) in values.chunks_exact_mut(k).zip(magnitude) {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { f64::from(*m) / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}
