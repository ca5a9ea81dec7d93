//! A whole fine-tuning run, from settings to adapter.
//!
//! Everything that can be refused is refused before the output directory is touched, the weights' own faults included:
//! it is made once the base is loaded. From then on it holds `run.json` and a growing `metrics.jsonl`; the adapter
//! appears at the end, each file whole or not at all. A run that is interrupted or fails on the way therefore leaves
//! no part of an adapter, and the same run may simply be started again.

use super::evaluate::evaluate;
use super::identity::run_identity;
use super::inputs::{Loaded, Workload, check_quantization, model_spec, recipe, target_modules};
use super::memory::{self, MemoryPlan};
use super::{CheckpointSource, Hyperparameters, StepReport, optimizer_step};
use crate::adapter::{Adapter, AdapterConfig, Provenance, copy_tokenizer_files};
use crate::backend::Batch;
use crate::backend::cpu::Cpu;
use crate::config::memory::format_bytes;
use crate::config::{Purpose, Settings};
use crate::data::{ChatTokenizer, MicroBatch, Schedule};
use crate::error::{Context, Result};
use crate::model::{Llama, ModelSpec};
use crate::report::{
    Bars, LogEntry, RunRecord, TrainerState, check_output_dir, check_recorded_base, say, trainable_line,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What `train` reports.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub steps: u64,
    /// Mean over the supervised tokens of the whole run.
    pub train_loss: f64,
    pub eval_loss: Option<f64>,
    /// Non-padding tokens over the steps after the first; None where there was only one.
    pub tokens_per_second: Option<f64>,
    pub peak_bytes: u64,
    pub adapter: PathBuf,
}

pub fn train(mut settings: Settings) -> Result<TrainOutcome> {
    settings.validate(Purpose::Train)?;
    let output = settings.output_path()?.to_owned();
    let files: Vec<PathBuf> = settings.data.iter().chain(&settings.val_data).cloned().collect();
    let loaded = Loaded::open(&settings, &files)?;
    loaded.check_size(&settings)?;
    check_quantization(&settings, &loaded.checkpoint)?;
    settings.resolve(loaded.parameters());
    let identity = run_identity(&settings, &loaded)?;
    check_output_dir(&output, &identity)?;

    let work = Workload::load(&settings, &loaded)?;
    let mut spec = model_spec(&settings, &loaded.checkpoint, work.tokens, work.longest);
    let budget = memory::host_budget(settings.host_memory.map(|bytes| bytes.0));
    let stored = memory::stored_in(&loaded.checkpoint);
    let plan = memory::choose(&mut spec, settings.gradient_checkpointing, &stored, budget)?;
    memory::refuse_unless_it_fits(&plan, work.tokens)?;
    print_run(&settings, &loaded, &spec, &plan, &work.schedule);

    let mut backend = Cpu::new(spec.dims());
    let mut source = CheckpointSource::new(&loaded.checkpoint, BTreeMap::new(), settings.seed);
    let mut bar = Bars::new("loading", spec.config.num_layers as u64);
    let mut model = Llama::build(&mut backend, &mut source, spec, &mut |layer| bar.set(layer as u64, String::new()))?;
    bar.finish();
    let fingerprint = source.finish()?;
    check_recorded_base(&output, &fingerprint)?;

    let base = loaded.checkpoint.base_name();
    let mut run = Run {
        settings: &settings,
        record: RunRecord::create(&output, &identity, base, &fingerprint, &settings.to_json())?,
        state: TrainerState::default(),
    };
    let summary = run.steps(&mut backend, &mut model, &work)?;
    // Before anything else can go wrong.
    save_adapter(&settings, &loaded, fingerprint, &model, &backend, &output)?;
    run.record.finish(&run.state)?;
    let eval_loss = match work.validation.is_empty() {
        true => None,
        false => Some(run.validate(&mut backend, &model, &work)?),
    };
    run.record.finish(&run.state)?;
    Ok(TrainOutcome {
        steps: run.state.global_step,
        train_loss: summary.train_loss,
        eval_loss,
        tokens_per_second: summary.tokens_per_second,
        peak_bytes: backend.bytes(),
        adapter: output,
    })
}

fn print_run(settings: &Settings, loaded: &Loaded, spec: &ModelSpec, plan: &MemoryPlan, schedule: &Schedule) {
    let checkpoint = &loaded.checkpoint;
    let (base, parameters) = (checkpoint.base_name(), loaded.parameters());
    let revision = base.revision.as_ref().map_or(String::new(), |revision| format!(" at revision {revision}"));
    say!(
        "base: {}{revision} ({}); quantisation: {}",
        base.name,
        checkpoint.dir().display(),
        recipe(settings, checkpoint)
    );
    let trainable = spec.lora_parameters();
    say!("{}", trainable_line(trainable, parameters.saturating_add(trainable)));
    let (a, b) = settings.learning_rates_for(parameters);
    say!("learning rates: {a:e} for A, {b:e} for B; {} steps", schedule.total_steps());
    say!(
        "device: cpu, {} threads; memory: {} planned, {} may be used{}",
        rayon::current_num_threads(),
        format_bytes(plan.peak_bytes),
        format_bytes(plan.budget_bytes),
        if spec.recompute { "; activations are recomputed in the backward pass" } else { "" }
    );
}

struct Run<'a> {
    settings: &'a Settings,
    record: RunRecord,
    state: TrainerState,
}

struct Summary {
    train_loss: f64,
    tokens_per_second: Option<f64>,
}

impl Run<'_> {
    fn steps(&mut self, backend: &mut Cpu, model: &mut Llama<Cpu>, work: &Workload) -> Result<Summary> {
        let settings = self.settings;
        let total = work.schedule.total_steps();
        let hyper = hyperparameters(settings);
        self.state.max_steps = total;
        let mut bar = Bars::new("training", total);
        let (mut loss_sum, mut supervised) = (0.0, 0);
        // A logged loss is the mean over the supervised tokens since the last one.
        let mut since_log = (0.0, 0);
        let mut speed = Speed::default();
        for step in work.schedule.steps(0) {
            let rows_of = |indices: &Vec<usize>| MicroBatch::new(indices.iter().map(|&index| &work.rows[index]));
            let batches: Vec<MicroBatch> = step.micro_batches.iter().map(rows_of).collect();
            let batches: Vec<Batch> = batches.iter().map(Batch::from).collect();
            let factor = settings.lr_factor(step.index as usize, total as usize);
            let accumulation = settings.gradient_accumulation_steps;
            let report = optimizer_step(backend, model, &hyper, step.index, accumulation, factor, &batches)?;
            speed.add(report.tokens);
            loss_sum += report.loss * report.supervised as f64;
            supervised += report.supervised;
            since_log = (since_log.0 + report.loss * report.supervised as f64, since_log.1 + report.supervised);
            let done = step.index + 1;
            self.state.global_step = done;
            self.state.epoch = step.epoch;
            self.state.num_input_tokens_seen += report.tokens as u64;
            if done.is_multiple_of(settings.logging_steps as u64) || done == total {
                self.log(LogEntry {
                    loss: Some(since_log.0 / since_log.1.max(1) as f64),
                    grad_norm: Some(report.grad_norm),
                    learning_rate: Some(report.learning_rate_a),
                    learning_rate_b: Some(report.learning_rate_b),
                    tokens_per_second: speed.tokens_per_second(),
                    ..LogEntry::new(done, step.epoch)
                })?;
                since_log = (0.0, 0);
            }
            bar.set(done, progress(&report, speed.tokens_per_second()));
        }
        bar.finish();
        let train_loss = loss_sum / supervised.max(1) as f64;
        Ok(Summary { train_loss, tokens_per_second: speed.tokens_per_second() })
    }

    fn validate(&mut self, backend: &mut Cpu, model: &Llama<Cpu>, work: &Workload) -> Result<f64> {
        let mut bar = Bars::new("validation", work.validation.len() as u64);
        let mut done = 0;
        let evaluation = evaluate(backend, model, &work.validation, work.tokens, |n| {
            done += n as u64;
            bar.set(done, String::new());
        })
        .or_fail(|| "validation of the adapter that was written".to_owned())?;
        bar.finish();
        self.log(LogEntry {
            eval_loss: Some(evaluation.loss),
            ..LogEntry::new(self.state.global_step, self.state.epoch)
        })?;
        Ok(evaluation.loss)
    }

    fn log(&mut self, entry: LogEntry) -> Result<()> {
        self.record.log(&entry)?;
        self.state.log_history.push(entry);
        Ok(())
    }
}

fn hyperparameters(settings: &Settings) -> Hyperparameters {
    // `resolve` wrote the rate down, so it no longer depends on the model's size.
    let (learning_rate_a, learning_rate_b) = settings.learning_rates_for(0);
    Hyperparameters {
        learning_rate_a,
        learning_rate_b,
        weight_decay: settings.weight_decay,
        beta1: settings.adam_beta1,
        beta2: settings.adam_beta2,
        epsilon: settings.adam_epsilon,
        max_grad_norm: settings.max_grad_norm,
    }
}

fn progress(report: &StepReport, tokens_per_second: Option<f64>) -> String {
    let speed = tokens_per_second.map_or(String::new(), |speed| format!(" {speed:.0} tokens/s"));
    let StepReport { loss, learning_rate_a, learning_rate_b, .. } = report;
    format!("loss {loss:.4} lr A {learning_rate_a:.2e} B {learning_rate_b:.2e}{speed}")
}

/// Tokens per second over the steps after the first, which also touches every page and file for the first time.
#[derive(Default)]
struct Speed {
    tokens: usize,
    /// The end of the first step.
    from: Option<Instant>,
}

impl Speed {
    /// Called when a step ends.
    fn add(&mut self, tokens: usize) {
        match self.from {
            Some(_) => self.tokens += tokens,
            None => self.from = Some(Instant::now()),
        }
    }

    fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.from?.elapsed().as_secs_f64();
        (self.tokens > 0).then(|| self.tokens as f64 / seconds.max(1e-9))
    }
}

fn save_adapter(
    settings: &Settings,
    loaded: &Loaded,
    base_fingerprint: String,
    model: &Llama<Cpu>,
    backend: &Cpu,
    output: &Path,
) -> Result<()> {
    let checkpoint = &loaded.checkpoint;
    let base = checkpoint.base_name();
    let mut config = AdapterConfig::new(
        base,
        settings.lora_r,
        settings.lora_alpha,
        settings.lora_dropout,
        &target_modules(settings),
    );
    config.use_rslora = settings.use_rslora;
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint,
        quantization: recipe(settings, checkpoint),
        chat_template_sha256: loaded.tokenizer.as_ref().and_then(ChatTokenizer::template_hash),
    };
    let mut adapter = Adapter::new(config, &provenance);
    let mut values = model.param_values(backend).into_iter();
    // A before B, linear by linear.
    while let (Some((name, a_shape, a)), Some((_, b_shape, b))) = (values.next(), values.next()) {
        adapter.insert(name.layer, name.module, (a_shape.to_vec(), a), (b_shape.to_vec(), b));
    }
    adapter.save(output)?;
    copy_tokenizer_files(checkpoint.dir(), output)?;
    Ok(())
}
