//! A model that is only read: for evaluation and text.

use super::inputs::{check_quantization, quantization, recipe};
use super::{CheckpointSource, memory};
use crate::adapter::{Adapter, metadata};
use crate::backend::cpu::Cpu;
use crate::checkpoint::Checkpoint;
use crate::config::{Checkpointing, Settings};
use crate::error::Result;
use crate::model::{Llama, LoraSpec, ModelSpec};
use crate::report::{Bars, say};
use std::collections::BTreeMap;
use std::path::Path;

pub struct ReadOnly {
    pub backend: Cpu,
    pub model: Llama<Cpu>,
}

impl ReadOnly {
    /// Loads the base with an adapter, for batches of `tokens` and rows of `positions` tokens. An adapter that was
    /// trained on another base is refused; what cannot be told for sure is printed as a warning.
    pub fn load(
        settings: &Settings,
        checkpoint: &Checkpoint,
        adapter: Option<&Path>,
        tokens: usize,
        positions: usize,
    ) -> Result<Self> {
        let adapter = adapter.map(Adapter::load).transpose()?;
        match adapter.as_ref().map(|adapter| adapter.metadata.get(metadata::QUANTIZATION)) {
            None => check_quantization(settings, checkpoint)?,
            Some(Some(trained)) if checkpoint.quantization().is_some() => {
                let held = recipe(settings, checkpoint);
                if *trained != held {
                    say!(
                        "warning: the adapter was trained on base weights held as: {trained}; this base holds: {held}"
                    );
                }
            }
            Some(_) => {}
        }
        let pairs = adapter.as_ref().map(Adapter::lora_pairs).transpose()?.unwrap_or_default();
        let shapes: BTreeMap<_, _> = pairs.iter().map(|(&place, pair)| (place, (pair.r, pair.scale))).collect();
        let mut spec = ModelSpec {
            config: checkpoint.config().clone(),
            quantization: quantization(settings, checkpoint),
            lora: LoraSpec { terms: shapes, ..LoraSpec::default() },
            trainable: false,
            recompute: false,
            tokens,
            positions,
            seed: settings.seed,
        };
        if let Some(adapter) = &adapter {
            // Shapes can be judged before the base is read; its fingerprint only after.
            adapter.check_shapes(checkpoint.config(), checkpoint.base_name())?;
        }
        let budget = memory::host_budget(settings.host_memory.map(|bytes| bytes.0));
        let plan = memory::choose(&mut spec, Checkpointing::Off, &memory::stored_in(checkpoint), budget)?;
        memory::refuse_unless_it_fits(&plan, tokens)?;

        let mut backend = Cpu::new(spec.dims());
        let mut source = CheckpointSource::new(checkpoint, pairs, settings.seed);
        let mut bar = Bars::new("loading", spec.config.num_layers as u64);
        let mut progress = |layer| bar.set(layer as u64, String::new());
        let model = Llama::build(&mut backend, &mut source, spec, &mut progress)?;
        bar.finish();
        let fingerprint = source.finish()?;
        if let Some(adapter) = &adapter {
            for warning in adapter.check_base(checkpoint.config(), &fingerprint, checkpoint.base_name())? {
                say!("warning: {warning}");
            }
        }
        Ok(Self { backend, model })
    }
}
