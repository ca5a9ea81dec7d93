//! `merge`: a base with an adapter in its weights, `W + scale · B · A`, one matrix in memory at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::adapter::{Adapter, LoraPair, Recipe, TOKENIZER_FILES, TokenRows, WholeModule};
use crate::base::{BaseFingerprint, Checkpoint, Rewrite, Written, write_dense};
use crate::error::{Context, Result};
use crate::files::tensor::{HostTensor, StoredType};
use crate::files::units::format_bytes;
use crate::lora::start::add_product;
use crate::refuse;
use crate::session::disk::free_bytes;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};

/// Weights that an adapter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBase {
    /// The original weights in 16 bits.
    Original,
    /// Linear weights in NF4, dequantized: those that the adapter was trained on.
    Nf4(Nf4Options),
}

/// How an adapter is merged.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    pub base: MergeBase,
    /// Bytes of tensors in one file.
    pub max_shard_bytes: u64,
    /// Whether an adapter of other weights is merged.
    pub allow_other_base: bool,
}

/// Result of [`merge`].
#[derive(Clone, Debug)]
pub struct Merged {
    /// Linear weights that the adapter changed.
    pub changed: usize,
    /// Weights that the adapter holds whole.
    pub whole: usize,
    /// Rows of single tokens that the adapter holds.
    pub rows: usize,
    pub written: Written,
    /// Warnings of [`Adapter::check_base`].
    pub warnings: Vec<String>,
}

/// Headers of the files, the tokenizer's and rounding to blocks, with room to spare.
const OVERHEAD: u64 = 64 << 20;

/// Writes `checkpoint` with the adapter of `adapter_dir` in its weights to `output`: a Hugging Face directory in 16
/// bits, with the tokenizer and the chat template that lie beside the adapter, or else those of the base.
///
/// The sum is computed in f32 and rounded once, to nearest even, to the type that a tensor is stored in. The directory
/// appears whole or not at all. Refused: an adapter that does not fit the base or was trained on other weights, too
/// little room on the disk, an output that is there and not empty. `progress` is that of [`write_dense`].
pub fn merge(
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    adapter_dir: &Path,
    output: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Merged> {
    let mut work = Merging::new(checkpoint, adapter, adapter_dir, options.base, options.allow_other_base)?;
    let (needed, free) = (checkpoint.dense_bytes() + OVERHEAD, free_bytes(output));
    if let Some(free) = free.filter(|free| *free < needed) {
        refuse!(
            "{}: {} are free on its file system, expected {} for the merged model: make room, or choose another output",
            output.display(),
            format_bytes(free),
            format_bytes(needed)
        );
    }
    let side_files: Vec<PathBuf> =
        TOKENIZER_FILES.iter().map(|name| adapter_dir.join(name)).filter(|path| path.is_file()).collect();
    let written = write_dense(checkpoint, output, options.max_shard_bytes, &side_files, &mut work, progress)?;
    let rows = adapter.token_rows()?.values().map(|rows| rows.tokens.len()).sum();
    Ok(Merged { changed: work.pairs.len(), whole: work.whole.len(), rows, written, warnings: work.warnings })
}

/// The quantization that an adapter was trained on; the default where it records none.
pub fn trained_options(adapter: &Adapter, source: &str) -> Result<Nf4Options> {
    Ok(match adapter.recipe(source)? {
        Some(Recipe::Nf4 { block_size, double_quant, .. }) => Nf4Options { block_size, double_quant },
        _ => Nf4Options { block_size: 64, double_quant: true },
    })
}

/// The weights of a base with an adapter in them, one at a time.
pub(super) struct Merging<'a> {
    checkpoint: &'a Checkpoint,
    adapter: Option<(&'a Adapter, &'a Path)>,
    /// By module.
    pub pairs: BTreeMap<String, LoraPair<'a>>,
    /// Whole weights that take the place of the base's, by module.
    whole: BTreeMap<String, WholeModule<'a>>,
    /// Rows of single tokens that take the place of the base's, by module.
    rows: BTreeMap<String, TokenRows>,
    base: MergeBase,
    allow_other_base: bool,
    /// Warnings of [`Adapter::check_base`], once all was read.
    pub warnings: Vec<String>,
}

impl<'a> Merging<'a> {
    /// Refused: an adapter whose shapes are not those of the base.
    pub fn new(
        checkpoint: &'a Checkpoint,
        adapter: &'a Adapter,
        dir: &'a Path,
        base: MergeBase,
        allow_other_base: bool,
    ) -> Result<Self> {
        let shown = || dir.display().to_string();
        adapter.check_shapes(checkpoint.arch(), checkpoint.base_name()).context(shown)?;
        let pairs = adapter.lora_pairs().context(shown)?;
        let whole = adapter.whole_modules().context(shown)?;
        let mut rows = adapter.token_rows().context(shown)?;
        let names = checkpoint.arch().names;
        // Files may hold one tensor twice.
        if let Some(both) =
            rows.get(names.embedding_module()).filter(|_| checkpoint.arch().tie_word_embeddings).cloned()
        {
            rows.insert(names.head_module().to_owned(), both);
        }
        if checkpoint.arch().tie_word_embeddings && adapter.lora_spec().context(shown)?.untied {
            refuse!(
                "{}: holds an embedding and an output layer that differ, which are one tensor in {}: merge it with PEFT \
                 (`merge_and_unload`), which writes both",
                dir.display(),
                checkpoint.dir().display()
            );
        }
        let adapter = Some((adapter, dir));
        Ok(Self { checkpoint, adapter, pairs, whole, rows, base, allow_other_base, warnings: Vec::new() })
    }

    /// The weights of the base alone.
    pub fn without_adapter(checkpoint: &'a Checkpoint, base: MergeBase) -> Self {
        let (pairs, whole, rows) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { checkpoint, adapter: None, pairs, whole, rows, base, allow_other_base: false, warnings: Vec::new() }
    }

    /// Quantization that a tensor goes through and that it is not stored in.
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

    /// Whether a tensor becomes another than the one that is read.
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
            Some(nf4) => Nf4Matrix::quantize(&tensor.into_f32(), shape[0], shape[1], &nf4)
                .usage_context(|| format!("{}: tensor `{name}`", self.checkpoint.dir().display()))?
                .dequantize(),
        };
        if let Some(pair) = self.pairs.get(module_of(name)) {
            add_product(&mut values, pair.k_in, pair.b, pair.r, pair.a, pair.scale);
            if let Some(magnitude) = pair.magnitude {
                normalize_rows(&mut values, pair.k_in, magnitude);
            }
        }
        Ok(HostTensor::from_f32(shape, values, stored))
    }

    fn check_base(&mut self, fingerprint: &BaseFingerprint) -> Result<()> {
        let Some((adapter, dir)) = self.adapter else { return Ok(()) };
        let (arch, name) = (self.checkpoint.arch(), self.checkpoint.base_name());
        let warnings = adapter.check_base(arch, fingerprint, name, self.allow_other_base);
        self.warnings = warnings.context(|| dir.display().to_string())?;
        Ok(())
    }
}

/// Scales each row of `k` values to its magnitude (DoRA); one of zeros stays.
fn normalize_rows(values: &mut [f32], k: usize, magnitude: &[f32]) {
    for (row, m) in values.chunks_exact_mut(k).zip(magnitude) {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let factor = if norm > 0.0 { f64::from(*m) / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}
