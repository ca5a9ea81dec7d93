//! The adapters that are merged into one model: their weights, and the checks that they fit together.

use std::fs;
use std::path::{Path, PathBuf};

use crate::adapter::{ADAPTER_MODEL, Adapter, BaseQuantization, LoraPair, TOKENIZER_FILES};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::hash::file_hash;
use crate::lora::LoraSpec;
use qlora_kernels::nf4::Nf4Options;
use serde_json::{Value, json};

/// An adapter that is merged, alone or with others.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub adapter: &'a Adapter,
    pub dir: &'a Path,
    /// Factor of its change to the weights.
    pub weight: f64,
}

impl<'a> Part<'a> {
    /// An adapter that is merged as it is.
    pub fn whole(adapter: &'a Adapter, dir: &'a Path) -> Self {
        Self { adapter, dir, weight: 1.0 }
    }

    pub(super) fn shown(&self) -> String {
        self.dir.display().to_string()
    }

    /// The factor of `B · A`. Refused: one that is not finite.
    pub(super) fn scale(&self, module: &str, pair: &LoraPair) -> Result<f32> {
        let own = LoraSpec::scale(pair.alpha, pair.r, self.adapter.config.use_rslora);
        let scale = (self.weight * own) as f32;
        if !scale.is_finite() {
            bail_usage!(
                "{}: {module}: found a scale of {scale} by a weight of {:?}, expected a finite one: give a smaller weight",
                self.dir.display(),
                self.weight
            );
        }
        Ok(scale)
    }

    /// An entry of the record of a merged model.
    pub(super) fn record(&self) -> Result<Value> {
        let sha256 = file_hash(&self.dir.join(ADAPTER_MODEL))?;
        Ok(json!({"directory": self.shown(), "weight": self.weight, "sha256": sha256}))
    }
}

/// Refuses adapters that cannot be added up: those that hold more than plain LoRA, and those of different bases. One
/// alone with weight 1 is always right.
pub(super) fn check_together(parts: &[Part], allow_other_base: bool) -> Result<()> {
    if matches!(parts, [part] if part.weight == 1.0) {
        return Ok(());
    }
    for part in parts {
        let holds = part.adapter.lora_spec().context(|| part.shown())?.beside_plain_lora();
        if let Some(what) = holds {
            bail_usage!(
                "{}: holds {what}, expected plain LoRA in an adapter that is merged with a weight or with others: merge \
                 it alone and without one",
                part.dir.display()
            );
        }
    }
    let mut recorded = parts.iter().filter_map(|part| Some((part, part.adapter.base_fingerprint()?)));
    let Some((first, expected)) = recorded.next().filter(|_| !allow_other_base) else { return Ok(()) };
    if let Some((other, found)) = recorded.find(|(_, found)| *found != expected) {
        bail_usage!(
            "{}: was trained on another base than {}: found the fingerprint {found}, expected {expected}: merge adapters \
             of one base, or give --allow-other-base: what they compute then differs from what they learned",
            other.dir.display(),
            first.dir.display()
        );
    }
    Ok(())
}

/// Quantization of the base that the adapters were trained on; `None`: 16 bits. If none of them records it, NF4 with
/// the default options. Refused: adapters that differ.
pub fn trained_on(parts: &[Part]) -> Result<Option<Nf4Options>> {
    let mut agreed: Option<(&Part, Option<Nf4Options>)> = None;
    for part in parts {
        let held = match part.adapter.base_quantization(&part.shown())? {
            Some(BaseQuantization::Nf4 { block_size, double_quant, .. }) => {
                Some(Nf4Options { block_size, double_quant })
            }
            Some(BaseQuantization::None {}) => None,
            None => continue,
        };
        match agreed {
            Some((first, other)) if other != held => bail_usage!(
                "{}: was trained on a base held otherwise than that of {}: there is no one base to compare with or to \
                 dequantize; merge them into the 16-bit weights (`--base bf16`), without `--data`",
                part.dir.display(),
                first.dir.display()
            ),
            _ => agreed = Some((part, held)),
        }
    }
    Ok(agreed.map_or(Some(Nf4Options::default()), |(_, held)| held))
}

/// The quantization that the adapters were trained on; the default where they were trained in 16 bits. Refused: as by
/// [`trained_on`].
pub fn trained_options(parts: &[Part]) -> Result<Nf4Options> {
    Ok(trained_on(parts)?.unwrap_or_default())
}

/// Files of tokenizer and chat template to copy: those of the first adapter that has them. Also a warning for each file
/// that differs in another adapter.
pub(super) fn side_files(parts: &[Part]) -> (Vec<PathBuf>, Vec<String>) {
    let (mut files, mut warnings) = (Vec::new(), Vec::new());
    for name in TOKENIZER_FILES {
        let mut there = parts.iter().map(|part| part.dir.join(name)).filter(|path| path.is_file());
        let Some(first) = there.next() else { continue };
        for other in there.filter(|other| fs::read(other).ok() != fs::read(&first).ok()) {
            let (other, first) = (other.display(), first.display());
            warnings.push(format!("{other}: differs from {first}, which goes along with the merged model"));
        }
        files.push(first);
    }
    (files, warnings)
}
