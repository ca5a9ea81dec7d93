//! A model for evaluation and text, with one adapter after another on the same base, or with several at once.

use super::adapters::{Adapters, Together};
use crate::adapter::{Adapter, BaseQuantization};
use crate::backend::Backend;
use crate::bail_usage;
use crate::base::{Checkpoint, Rewrite};
use crate::config::Settings;
use crate::error::{Context, Result};
use crate::lora::LoraSpec;
use crate::model::{Llama, ModelSpec};
use crate::report::{Bars, detail, status, warning};
use crate::session::model_spec::{base_quantization, check_quantization, of_settings, quantization};
use crate::session::plan::{self, MemoryPlan, PlannedJob, TensorStorage};
use crate::session::planner;
use crate::session::predicted::unpinned_note;
use crate::session::{Budget, CheckpointSource, Device};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Job of a model: the computation that it is loaded for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InferenceJob {
    Loss,
    /// Answers of a maximum length to prompts of these lengths.
    Text {
        prompts: Vec<usize>,
        max_new_tokens: usize,
    },
}

pub struct InferenceModel<B: Backend> {
    pub backend: B,
    pub model: Llama<B>,
    /// The adapters that are used on the base one after the other
    adapters: Vec<(PathBuf, Adapter)>,
    seed: u64,
}

impl<B: Backend> InferenceModel<B> {
    /// Loads the base with the first of `adapters`, or with all that are used together, for batches of `tokens` and
    /// rows of `positions` tokens. An adapter that was trained on another base is refused, before anything is computed;
    /// a doubtful case is printed as a warning. Refused too: adapters that hold more than plain LoRA, where several are
    /// used together.
    pub fn load(
        settings: &Settings,
        checkpoint: &Checkpoint,
        adapters: &Adapters,
        job: InferenceJob,
        tokens: usize,
        positions: usize,
        device: &Device,
        build: impl FnOnce(&ModelSpec, u64) -> Result<B>,
    ) -> Result<Self> {
        let held = base_quantization(settings, checkpoint);
        Self::load_held(settings, checkpoint, adapters, None, Some(held), job, tokens, positions, device, build)
    }

    /// [`load`](Self::load) with weights that `rewrite` changes while loading, and without warnings about their
    /// quantization.
    pub fn load_rewritten(
        settings: &Settings,
        checkpoint: &Checkpoint,
        adapters: &Adapters,
        rewrite: Option<&mut dyn Rewrite>,
        job: InferenceJob,
        tokens: usize,
        positions: usize,
        device: &Device,
        build: impl FnOnce(&ModelSpec, u64) -> Result<B>,
    ) -> Result<Self> {
        Self::load_held(settings, checkpoint, adapters, rewrite, None, job, tokens, positions, device, build)
    }

    /// Warns of an adapter that was trained on a base in another quantization than `held`.
    fn load_held(
        settings: &Settings,
        checkpoint: &Checkpoint,
        adapters: &Adapters,
        rewrite: Option<&mut dyn Rewrite>,
        held: Option<BaseQuantization>,
        job: InferenceJob,
        tokens: usize,
        positions: usize,
        device: &Device,
        build: impl FnOnce(&ModelSpec, u64) -> Result<B>,
    ) -> Result<Self> {
        let rewritten = rewrite.is_some();
        let load = |path: &PathBuf| -> Result<(PathBuf, Adapter)> { Ok((path.clone(), Adapter::load(path)?)) };
        let (together, weights) = (adapters.together(), adapters.weights());
        let adapters: Vec<_> = adapters.dirs.iter().map(load).collect::<Result<_>>()?;
        if adapters.is_empty() && !rewritten {
            check_quantization(settings, checkpoint)?;
            let quantized =
                held.as_ref().filter(|held| **held != BaseQuantization::NONE && checkpoint.quantization().is_none());
            if let Some(held) = quantized {
                status!(
                    "the base is quantized as it is loaded ({held}); `--quantization none` takes it as it is stored"
                );
            }
        }
        let several = adapters.len() > 1;
        let warn = |path: &Path, warning: &str| match several {
            false => warning!("{warning}"),
            true => warning!("{}: {warning}", path.display()),
        };
        checkpoint.arch().check_positions(positions)?;
        let budget = device.budget(settings)?;
        for (path, adapter) in &adapters {
            // Shapes can be checked before the base is read; its fingerprint only after.
            let fits = adapter.check_shapes(checkpoint.arch(), checkpoint.base_name());
            fits.context(|| path.display().to_string())?;
        }
        if together != Together::OneByOne {
            check_plain(&adapters)?;
        }
        let sum = match together {
            Together::Sum => {
                let parts = adapters.iter().zip(weights).map(|((_, adapter), weight)| (adapter, *weight));
                Some(Adapter::weighted_sum(parts)?)
            }
            Together::OneByOne | Together::ByRow => None,
        };
        let mut specs = Vec::new();
        for lora in loras(&adapters, together, sum.as_ref())? {
            let format = if rewritten { of_settings(settings) } else { quantization(settings, checkpoint) };
            let spec = ModelSpec::new(lora, checkpoint.arch().clone(), format, tokens);
            specs.push(ModelSpec { positions, seed: settings.seed, ..spec });
        }
        let stored: &dyn Fn(&str) -> TensorStorage = match rewritten {
            true => &|name| TensorStorage { dtype: checkpoint.dense_type(name), resident_as: None },
            false => &plan::stored_in(checkpoint),
        };
        let levers = planner::Levers::of(settings);
        let levers = if rewritten { levers.without_files(device)? } else { levers };
        // Some adapters have an output layer or magnitudes of their own: only what serves each of them is a place.
        let mut residencies = planner::residencies(device, &specs[0], levers, stored)?;
        for spec in &specs[1..] {
            let own = planner::residencies(device, spec, levers, stored)?;
            residencies.retain(|place| own.contains(place));
        }
        let mut first = specs[0].clone();
        let plan = planner::first_that_fits(&mut first, &residencies, |first| {
            specs.iter_mut().for_each(|spec| spec.residency.clone_from(&first.residency));
            plan(device, &specs, &job, stored, budget)
        })?;
        let advice = match job {
            InferenceJob::Loss => "Lower --max-length",
            InferenceJob::Text { .. } => "Give fewer or shorter prompts, or a lower --max-new-tokens",
        };
        plan::refuse_unless_it_fits(&plan, tokens, advice)?;
        let spec = specs.swap_remove(0);
        for note in [spec.weights_note(), spec.head_note(), unpinned_note(&plan)].into_iter().flatten() {
            status!("{note}");
        }

        let mut backend = build(&spec, plan.run_bytes)?;
        let each = || adapters.iter().map(|(_, adapter)| adapter);
        let source = match together {
            Together::OneByOne => CheckpointSource::with_adapter(checkpoint, each().next(), settings.seed)?,
            Together::Sum => CheckpointSource::with_adapter(checkpoint, sum.as_ref(), settings.seed)?,
            Together::ByRow => CheckpointSource::with_adapters_of_rows(checkpoint, each(), settings.seed)?,
        };
        let mut source = source.rewritten(rewrite).hashing_ahead()?;
        let (mut bar, bytes) = (Bars::new("loading", spec.arch.num_layers as u64), checkpoint.stored_bytes());
        let mut progress = |layer| bar.set_read(layer as u64, bytes);
        let model = Llama::build(&mut backend, &mut source, spec, &mut progress)?;
        bar.finish();
        detail!("{}", source.loading_note());
        let fingerprint = source.finish()?;
        for (path, adapter) in &adapters {
            let (arch, name) = (checkpoint.arch(), checkpoint.base_name());
            let warnings = adapter.check_base(arch, &fingerprint, name, settings.allow_other_base);
            let of_quantization =
                held.as_ref().and_then(|held| adapter.check_base_quantization(Some(&fingerprint), held));
            for warning in warnings.context(|| path.display().to_string())?.into_iter().chain(of_quantization) {
                warn(path, &warning);
            }
        }
        let adapters = if together == Together::OneByOne { adapters } else { Vec::new() };
        Ok(Self { backend, model, adapters, seed: settings.seed })
    }

    /// Puts adapter `index` of those given to [`load`](Self::load) on the base, where each is used alone.
    pub fn activate_adapter(&mut self, checkpoint: &Checkpoint, index: usize) -> Result<()> {
        let (_, adapter) = &self.adapters[index];
        let mut source = CheckpointSource::with_adapter(checkpoint, Some(adapter), self.seed)?;
        // Frees the buffers of the last adapter's rank.
        self.backend.trim();
        self.model.replace_lora(&mut self.backend, &mut source, adapter.lora_spec()?)
    }

    /// Removes the adapter, which leaves the base alone.
    pub fn remove_adapter(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let mut source = CheckpointSource::new(checkpoint, BTreeMap::new(), self.seed);
        self.backend.trim();
        self.model.replace_lora(&mut self.backend, &mut source, LoraSpec::default())
    }
}

/// Refuses adapters that hold more than plain LoRA, if several are used at once.
fn check_plain(adapters: &[(PathBuf, Adapter)]) -> Result<()> {
    for (path, adapter) in adapters {
        if let Some(what) = adapter.lora_spec()?.beside_plain_lora() {
            bail_usage!(
                "{}: holds {what}, expected plain LoRA in an adapter that is used together with others: use it alone",
                path.display()
            );
        }
    }
    Ok(())
}

/// Terms that are on the base, one after the other; without an adapter none.
fn loras(adapters: &[(PathBuf, Adapter)], together: Together, sum: Option<&Adapter>) -> Result<Vec<LoraSpec>> {
    let of_each = adapters.iter().map(|(_, adapter)| adapter.lora_spec()).collect::<Result<Vec<_>>>()?;
    Ok(match (together, sum) {
        (Together::ByRow, _) => vec![LoraSpec::of_rows(of_each)],
        (_, Some(sum)) => vec![sum.lora_spec()?],
        _ if of_each.is_empty() => vec![LoraSpec::default()],
        _ => of_each,
    })
}

/// Memory plan of the job with the adapters of `specs`, one after the other.
fn plan(
    device: &Device,
    specs: &[ModelSpec],
    job: &InferenceJob,
    stored: &dyn Fn(&str) -> TensorStorage,
    budget: Budget,
) -> Result<MemoryPlan> {
    let of = |spec: &ModelSpec, adapters: &[LoraSpec]| {
        let work = match job {
            InferenceJob::Loss => PlannedJob::Loss(adapters),
            InferenceJob::Text { prompts, max_new_tokens } => {
                PlannedJob::Text { adapters, prompts, max_new_tokens: *max_new_tokens }
            }
        };
        plan::plan(device, spec, stored, work, budget)
    };
    let adapters: Vec<LoraSpec> = specs.iter().map(|spec| spec.lora.clone()).collect();
    if !device.is_cpu() {
        return of(&specs[0], &adapters);
    }
    // Each takes and frees the host's memory in turn.
    let mut plans = specs.iter().zip(&adapters).map(|(spec, adapter)| of(spec, std::slice::from_ref(adapter)));
    let first = plans.next().expect("there is an adapter, or the base alone")?;
    plans.try_fold(first, |most, plan| plan.map(|plan| if plan.run_bytes > most.run_bytes { plan } else { most }))
}
