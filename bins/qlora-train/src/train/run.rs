//! A whole fine-tuning run, from settings to adapter.

use super::evaluate::evaluate;
use super::{CheckpointSource, Hyperparameters, memory, optimizer_step};
use crate::adapter::{Adapter, AdapterConfig, Provenance, copy_tokenizer_files};
use crate::backend::cpu::Cpu;
use crate::backend::{Batch, Quantization};
use crate::checkpoint::{Checkpoint, Module, resolve_model};
use crate::config::{self, Settings};
use crate::data::{self, ChatTokenizer, DataOptions, MicroBatch, Row, Schedule, ScheduleOptions};
use crate::error::{Context, Result};
use crate::model::{Factor, Llama, LoraSpec, ModelSpec};
use crate::refuse;
use crate::report::{Bars, LogEntry, RunRecord, TrainerState, trainable_line};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Above this many parameters the CPU is only used when it is asked for.
const CPU_PARAMETERS: u64 = 3_000_000_000;

/// A base model with what its directory says about text.
pub struct Loaded {
    pub checkpoint: Checkpoint,
    pub tokenizer: Option<ChatTokenizer>,
}

/// Opens and checks the base; its tokenizer too if any of `files` holds text.
pub fn load_base(settings: &Settings, files: &[PathBuf]) -> Result<Loaded> {
    let arg = settings.model_path()?;
    let dir = resolve_model(&arg.to_string_lossy(), settings.revision.as_deref())?;
    let checkpoint = Checkpoint::open(&dir)?;
    for note in checkpoint.notes() {
        eprintln!("{note}");
    }
    let tokenizer = match data::needs_tokenizer(files)? {
        true => Some(ChatTokenizer::open(&dir, settings.chat_template.as_deref())?),
        false => None,
    };
    Ok(Loaded { checkpoint, tokenizer })
}

/// Refuses what this build or machine cannot do, before anything is loaded.
pub fn check_device(settings: &Settings, parameters: u64) -> Result<()> {
    match settings.device {
        Some(config::Device::Cuda(_)) => {
            refuse!("`device`: found cuda, but this version trains on the CPU only; expected cpu")
        }
        None if parameters > CPU_PARAMETERS => refuse!(
            "the model has {:.1}B parameters, which takes very long on a CPU; say `--device cpu` if that is what you want",
            parameters as f64 / 1e9
        ),
        _ => Ok(()),
    }
}

/// The model that the settings describe, for batches of `tokens` and rows of `positions` tokens.
pub fn model_spec(settings: &Settings, checkpoint: &Checkpoint, tokens: usize, positions: usize) -> ModelSpec {
    let r = settings.lora_r;
    let divisor = if settings.use_rslora { (r as f64).sqrt() } else { r as f64 };
    let modules: Vec<Module> =
        Module::ALL.into_iter().filter(|m| settings.lora_target_modules.contains(m.name())).collect();
    let scale = (settings.lora_alpha / divisor) as f32;
    ModelSpec {
        config: checkpoint.config().clone(),
        quantization: quantization(settings),
        lora: LoraSpec::uniform(checkpoint.config(), &modules, r, scale, settings.lora_dropout as f32),
        trainable: true,
        recompute: false,
        tokens,
        positions,
        seed: settings.seed,
    }
}

pub fn quantization(settings: &Settings) -> Quantization {
    match settings.quantization {
        config::Quantization::Nf4 => {
            Quantization::Nf4 { block_size: settings.nf4_block_size, double_quant: settings.double_quant }
        }
        config::Quantization::Off => Quantization::None,
    }
}

pub fn data_options(settings: &Settings, checkpoint: &Checkpoint) -> DataOptions {
    DataOptions {
        max_length: settings.max_length,
        too_long: settings.too_long,
        vocab_size: checkpoint.config().vocab_size,
    }
}

/// Training and validation rows.
pub fn load_rows(settings: &Settings, loaded: &Loaded) -> Result<(Vec<Row>, Vec<Row>)> {
    let options = data_options(settings, &loaded.checkpoint);
    let training = data::load(&settings.data, loaded.tokenizer.as_ref(), &options)?;
    eprintln!("{}", training.report);
    if !settings.val_data.is_empty() {
        let validation = data::load(&settings.val_data, loaded.tokenizer.as_ref(), &options)?;
        eprintln!("validation: {}", validation.report);
        return Ok((training.rows, validation.rows));
    }
    match settings.val_set_size {
        config::ValSet::Off => Ok((training.rows, Vec::new())),
        config::ValSet::Share(share) => training.split(share, settings.seed),
        config::ValSet::Count(rows) => training.split(rows as f64, settings.seed),
    }
}

pub fn schedule(settings: &Settings, rows: &[Row]) -> Result<Schedule> {
    Schedule::new(
        rows.iter().map(Row::len).collect(),
        ScheduleOptions {
            per_device_train_batch_size: settings.per_device_train_batch_size,
            gradient_accumulation_steps: settings.gradient_accumulation_steps,
            num_train_epochs: settings.num_train_epochs,
            max_steps: settings.max_steps.0.map(|steps| steps as u64),
            packing: settings.packing,
            max_length: settings.max_length,
            seed: settings.seed,
        },
    )
}

/// What `train` reports.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub steps: u64,
    /// Mean over the supervised tokens of the whole run.
    pub train_loss: f64,
    pub eval_loss: Option<f64>,
    /// Non-padding tokens over the steps after the first.
    pub tokens_per_second: f64,
    pub peak_bytes: u64,
    pub adapter: PathBuf,
}

/// Fine-tunes. Everything that can be refused is refused before the output directory is touched.
pub fn train(mut settings: Settings) -> Result<TrainOutcome> {
    settings.validate(config::Purpose::Train)?;
    let output = settings.output_path()?.to_owned();
    let files: Vec<PathBuf> = settings.data.iter().chain(&settings.val_data).cloned().collect();
    let loaded = load_base(&settings, &files)?;
    let checkpoint = &loaded.checkpoint;
    let parameters = checkpoint.config().num_parameters().unwrap_or(u64::MAX);
    check_device(&settings, parameters)?;
    settings.resolve(parameters);
    let identity = run_identity(&settings, &loaded, &files)?;
    crate::report::check_output_dir(&output, &identity)?;

    let (rows, validation) = load_rows(&settings, &loaded)?;
    let schedule = schedule(&settings, &rows)?;
    let longest = rows.iter().chain(&validation).map(Row::len).max().unwrap_or(0);
    let tokens = schedule.max_tokens().max(longest);
    let mut spec = model_spec(&settings, checkpoint, tokens, longest);
    let budget = memory::host_budget(settings.host_memory.map(|bytes| bytes.0));
    let stored = |name: &str| checkpoint.stored_type(name).expect("every tensor was checked");
    let plan = memory::choose(&mut spec, settings.gradient_checkpointing, &stored, budget)?;
    memory::refuse_unless_it_fits(&plan, tokens)?;

    print_run(&settings, &loaded, &spec, &plan, &schedule, parameters);
    let mut record = RunRecord::create(&output, &identity, &settings.to_json())?;
    let mut backend = Cpu::new(spec.dims());
    let mut source = CheckpointSource::new(checkpoint, BTreeMap::new(), settings.seed);
    let mut bar = Bars::new("quantising", spec.config.num_layers as u64);
    let mut model = Llama::build(&mut backend, &mut source, spec, &mut |layer| bar.set(layer as u64, String::new()))?;
    bar.finish();
    let fingerprint = source.finish()?;

    let mut run = Run { settings: &settings, record: &mut record, state: TrainerState::default() };
    let outcome = run.steps(&mut backend, &mut model, &schedule, &rows)?;
    let eval_loss = match validation.is_empty() {
        true => None,
        false => Some(run.validate(&mut backend, &model, &validation, tokens)?),
    };
    let state = run.state;
    save_adapter(&settings, &loaded, &fingerprint, &model, &backend, &output)?;
    record.finish(&state)?;
    Ok(TrainOutcome { eval_loss, peak_bytes: backend.bytes(), adapter: output, ..outcome })
}

fn print_run(
    settings: &Settings,
    loaded: &Loaded,
    spec: &ModelSpec,
    plan: &memory::MemoryPlan,
    schedule: &Schedule,
    parameters: u64,
) {
    if let Some(tokenizer) = &loaded.tokenizer {
        eprintln!("chat template: {}", tokenizer.template_origin());
    }
    let trainable = spec.lora_parameters();
    eprintln!("{}", trainable_line(trainable, parameters + trainable));
    let (a, b) = settings.learning_rates_for(parameters);
    eprintln!("learning rates: {a:e} for A, {b:e} for B; {} steps", schedule.total_steps());
    eprintln!(
        "device: cpu, {} threads; memory: {} planned, {} may be used{}",
        rayon::current_num_threads(),
        config::memory::format_bytes(plan.peak_bytes),
        config::memory::format_bytes(plan.budget_bytes),
        if spec.recompute { "; activations are recomputed in the backward pass" } else { "" }
    );
}

struct Run<'a> {
    settings: &'a Settings,
    record: &'a mut RunRecord,
    state: TrainerState,
}

impl Run<'_> {
    fn steps(
        &mut self,
        backend: &mut Cpu,
        model: &mut Llama<Cpu>,
        schedule: &Schedule,
        rows: &[Row],
    ) -> Result<TrainOutcome> {
        let settings = self.settings;
        let total = schedule.total_steps();
        let learning_rate_a = settings.learning_rate_for(0);
        let hyper = Hyperparameters {
            learning_rate_a,
            learning_rate_b: learning_rate_a * settings.loraplus_lr_ratio,
            weight_decay: settings.weight_decay,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            max_grad_norm: settings.max_grad_norm,
        };
        self.state.max_steps = total;
        let mut bar = Bars::new("training", total);
        let (mut loss_sum, mut supervised) = (0.0, 0);
        // The first step also touches every page and file for the first time; the rate is that of the others.
        let (mut timed_tokens, mut timed_from) = (0, Instant::now());
        for step in schedule.steps(0) {
            let batches: Vec<MicroBatch> = step
                .micro_batches
                .iter()
                .map(|indices| MicroBatch::new(indices.iter().map(|&index| &rows[index])))
                .collect();
            let batches: Vec<Batch> = batches.iter().map(Batch::from).collect();
            let factor = settings.lr_factor(step.index as usize, total as usize);
            let accumulation = settings.gradient_accumulation_steps;
            let report = optimizer_step(backend, model, &hyper, step.index, accumulation, factor, &batches)?;
            if step.index == 0 {
                timed_from = Instant::now();
            } else {
                timed_tokens += report.tokens;
            }
            let rate = timed_tokens as f64 / timed_from.elapsed().as_secs_f64().max(1e-9);
            let done = step.index + 1;
            loss_sum += report.loss * report.supervised as f64;
            supervised += report.supervised;
            self.state.global_step = done;
            self.state.epoch = step.epoch;
            self.state.num_input_tokens_seen += report.tokens as u64;
            if done % settings.logging_steps as u64 == 0 || done == total {
                self.log(LogEntry {
                    step: done,
                    epoch: step.epoch,
                    loss: Some(report.loss),
                    eval_loss: None,
                    grad_norm: Some(report.grad_norm),
                    learning_rate: Some(report.learning_rate_a),
                    learning_rate_b: Some(report.learning_rate_b),
                    tokens_per_second: (done > 1).then_some(rate),
                })?;
            }
            let speed = if done > 1 { format!(" {rate:.0} tokens/s") } else { String::new() };
            bar.set(
                done,
                format!(
                    "loss {:.4} lr A {:.2e} B {:.2e}{speed}",
                    report.loss, report.learning_rate_a, report.learning_rate_b
                ),
            );
        }
        bar.finish();
        let seconds = timed_from.elapsed().as_secs_f64();
        Ok(TrainOutcome {
            steps: self.state.global_step,
            train_loss: loss_sum / supervised.max(1) as f64,
            eval_loss: None,
            tokens_per_second: if timed_tokens > 0 { timed_tokens as f64 / seconds } else { 0.0 },
            peak_bytes: 0,
            adapter: PathBuf::new(),
        })
    }

    fn validate(&mut self, backend: &mut Cpu, model: &Llama<Cpu>, rows: &[Row], capacity: usize) -> Result<f64> {
        let mut bar = Bars::new("validation", rows.len() as u64);
        let mut done = 0;
        let evaluation = evaluate(backend, model, rows, capacity, |n| {
            done += n as u64;
            bar.set(done, String::new());
        })?;
        bar.finish();
        self.log(LogEntry {
            step: self.state.global_step,
            epoch: self.state.epoch,
            loss: None,
            eval_loss: Some(evaluation.loss),
            grad_norm: None,
            learning_rate: None,
            learning_rate_b: None,
            tokens_per_second: None,
        })?;
        Ok(evaluation.loss)
    }

    fn log(&mut self, entry: LogEntry) -> Result<()> {
        self.record.log(&entry)?;
        self.state.log_history.push(entry);
        Ok(())
    }
}

fn save_adapter(
    settings: &Settings,
    loaded: &Loaded,
    fingerprint: &str,
    model: &Llama<Cpu>,
    backend: &Cpu,
    output: &Path,
) -> Result<()> {
    let checkpoint = &loaded.checkpoint;
    let modules: Vec<Module> =
        Module::ALL.into_iter().filter(|m| settings.lora_target_modules.contains(m.name())).collect();
    let base = checkpoint.base_name();
    let mut adapter_config =
        AdapterConfig::new(base, settings.lora_r, settings.lora_alpha, settings.lora_dropout, &modules);
    adapter_config.use_rslora = settings.use_rslora;
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: fingerprint.to_owned(),
        quantization: recipe(settings),
        chat_template_sha256: loaded.tokenizer.as_ref().and_then(ChatTokenizer::template_hash),
    };
    let mut adapter = Adapter::new(adapter_config, &provenance);
    let mut values = model.param_values(backend).into_iter();
    while let (Some((name, a_shape, a)), Some((_, b_shape, b))) = (values.next(), values.next()) {
        debug_assert_eq!(name.factor, Factor::A);
        adapter.insert(name.layer, name.module, (a_shape.to_vec(), a), (b_shape.to_vec(), b));
    }
    adapter.fold_rslora()?;
    adapter.save(output)?;
    copy_tokenizer_files(checkpoint.dir(), output)?;
    Ok(())
}

/// The quantisation recipe in words, for the adapter's metadata.
fn recipe(settings: &Settings) -> String {
    match quantization(settings) {
        Quantization::Nf4 { block_size, double_quant: true } => {
            format!("nf4, block {block_size}, double quantisation, block 256")
        }
        Quantization::Nf4 { block_size, double_quant: false } => format!("nf4, block {block_size}"),
        Quantization::None => "none".to_owned(),
    }
}

/// One hash over everything that decides a run's result: settings, base model, data.
fn run_identity(settings: &Settings, loaded: &Loaded, files: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(settings.result_hash());
    let base = loaded.checkpoint.base_name();
    hash.update(format!("{}\n{:?}\n{}\n", base.name, base.revision, loaded.checkpoint.stored_bytes()));
    for path in files {
        let mut file = std::fs::File::open(path).or_refuse(|| format!("{}: cannot read", path.display()))?;
        let mut content = Sha256::new();
        std::io::copy(&mut file, &mut Writer(&mut content)).or_refuse(|| format!("{}: cannot read", path.display()))?;
        hash.update(content.finalize());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
