//! A model that is only read: for evaluation and text, with one adapter after another on the same base.

use crate::adapter::{Adapter, metadata};
use crate::backend::Backend;
use crate::base::Checkpoint;
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::model::{Llama, LoraSpec, ModelSpec};
use crate::report::{Bars, warning};
use crate::session::inputs::{check_quantization, quantization, recipe};
use crate::session::plan::{self, MemoryPlan, Work};
use crate::session::{Budget, CheckpointSource, Device};
use std::path::{Path, PathBuf};

/// What a model is read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    Loss,
    /// Answers of at most so many tokens to prompts of these lengths.
    Text {
        prompts: Vec<usize>,
        max_new_tokens: usize,
    },
}

pub struct ReadOnly<B: Backend> {
    pub backend: B,
    pub model: Llama<B>,
    adapters: Vec<(PathBuf, Adapter)>,
    seed: u64,
}

impl<B: Backend> ReadOnly<B> {
    /// Loads the base with the first of `adapters`, for batches of `tokens` and rows of `positions` tokens. An adapter
    /// that was trained on another base is refused, each before anything is computed; what cannot be told for sure is
    /// printed as a warning.
    pub fn load(
        settings: &Settings,
        checkpoint: &Checkpoint,
        adapters: &[PathBuf],
        reading: Reading,
        tokens: usize,
        positions: usize,
        device: Device,
        make: impl FnOnce(&ModelSpec, u64) -> Result<B>,
    ) -> Result<Self> {
        let load = |path: &PathBuf| -> Result<(PathBuf, Adapter)> { Ok((path.clone(), Adapter::load(path)?)) };
        let adapters: Vec<_> = adapters.iter().map(load).collect::<Result<_>>()?;
        if adapters.is_empty() {
            check_quantization(settings, checkpoint)?;
        }
        let several = adapters.len() > 1;
        let warn = |path: &Path, warning: &str| match several {
            false => warning!("{warning}"),
            true => warning!("{}: {warning}", path.display()),
        };
        let held = recipe(settings, checkpoint);
        for (path, adapter) in &adapters {
            let trained = adapter.metadata.get(metadata::QUANTIZATION);
            if let Some(trained) = trained.filter(|trained| checkpoint.quantization().is_some() && **trained != held) {
                warn(
                    path,
                    &format!("the adapter was trained on base weights held as: {trained}; this base holds: {held}"),
                );
            }
        }
        let budget = device.budget(settings)?;
        let mut specs = Vec::new();
        for terms in adapters.iter().map(|(_, adapter)| lora_spec(adapter)).chain([Ok(LoraSpec::default())]) {
            let spec = ModelSpec {
                config: checkpoint.config().clone(),
                quantization: quantization(settings, checkpoint),
                lora: terms?,
                trainable: false,
                recompute: false,
                offload: false,
                tokens,
                positions,
                seed: settings.seed,
            };
            specs.push(spec);
        }
        for (path, adapter) in &adapters {
            // Shapes can be judged before the base is read; its fingerprint only after.
            let fits = adapter.check_shapes(checkpoint.config(), checkpoint.base_name());
            fits.context(|| path.display().to_string())?;
        }
        if !adapters.is_empty() {
            // The base alone.
            specs.pop();
        }
        let plan = plan(device, &specs, &reading, checkpoint, budget)?;
        let advice = match reading {
            Reading::Loss => "Lower --max-length",
            Reading::Text { .. } => "Give fewer or shorter prompts, or a lower --max-new-tokens",
        };
        plan::refuse_unless_it_fits(&plan, tokens, advice)?;
        let spec = specs.swap_remove(0);

        let mut backend = make(&spec, plan.run_bytes)?;
        let pairs = adapters.first().map(|(_, adapter)| adapter.lora_pairs()).transpose()?.unwrap_or_default();
        let mut source = CheckpointSource::new(checkpoint, pairs, settings.seed);
        let mut bar = Bars::new("loading", spec.config.num_layers as u64);
        let mut progress = |layer| bar.set(layer as u64, String::new());
        let model = Llama::build(&mut backend, &mut source, spec, &mut progress)?;
        bar.finish();
        let fingerprint = source.finish()?;
        for (path, adapter) in &adapters {
            let warnings = adapter.check_base(checkpoint.config(), &fingerprint, checkpoint.base_name());
            for warning in warnings.context(|| path.display().to_string())? {
                warn(path, &warning);
            }
        }
        Ok(Self { backend, model, adapters, seed: settings.seed })
    }

    /// Puts adapter `index` of those given to [`load`](Self::load) on the base.
    pub fn select(&mut self, checkpoint: &Checkpoint, index: usize) -> Result<()> {
        let (_, adapter) = &self.adapters[index];
        let mut source = CheckpointSource::new(checkpoint, adapter.lora_pairs()?, self.seed);
        // Of the last adapter's rank.
        self.backend.trim();
        self.model.replace_lora(&mut self.backend, &mut source, lora_spec(adapter)?)
    }
}

fn lora_spec(adapter: &Adapter) -> Result<LoraSpec> {
    let terms = adapter.lora_pairs()?.into_iter().map(|(place, pair)| (place, (pair.r, pair.scale))).collect();
    Ok(LoraSpec { terms, ..LoraSpec::default() })
}

/// What reading holds with the adapters of `specs`, one after the other.
fn plan(
    device: Device,
    specs: &[ModelSpec],
    reading: &Reading,
    checkpoint: &Checkpoint,
    budget: Budget,
) -> Result<MemoryPlan> {
    let stored = plan::stored_in(checkpoint);
    let of = |spec: &ModelSpec, adapters: &[LoraSpec]| {
        let work = match reading {
            Reading::Loss => Work::Loss(adapters),
            Reading::Text { prompts, max_new_tokens } => {
                Work::Text { adapters, prompts, max_new_tokens: *max_new_tokens }
            }
        };
        plan::plan(device, spec, &stored, work, budget)
    };
    let adapters: Vec<LoraSpec> = specs.iter().map(|spec| spec.lora.clone()).collect();
    if device != Device::Cpu {
        return of(&specs[0], &adapters);
    }
    // The host's memory is taken and given back by each.
    let mut plans = specs.iter().zip(&adapters).map(|(spec, adapter)| of(spec, std::slice::from_ref(adapter)));
    let first = plans.next().expect("there is an adapter, or the base alone")?;
    plans.try_fold(first, |most, plan| plan.map(|plan| if plan.run_bytes > most.run_bytes { plan } else { most }))
}
