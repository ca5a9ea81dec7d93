//! A whole fine-tuning run, from settings to adapter.
//!
//! Everything that can be refused is refused before the output directory is touched, the weights' own faults included:
//! it is made once the base is loaded. From then on it holds `run.json`, a growing `metrics.jsonl` and checkpoints; the
//! adapter appears at the end, each file whole or not at all, and `run.json` says last that the run is finished. A run
//! that ends on the way, however it ends, leaves no part of an adapter and goes on from its newest checkpoint.
//!
//! Among several processes rank 0 alone looks at the output directory and writes there; the others get its findings.

use super::announce::{check_disk, print_run};
use super::checkpoints;
use super::identity::{HUB_COMMITS, Identity, PER_PROCESS, commits_of_run, commits_to_follow};
use super::identity::{result_settings, run_clock, run_identity};
use super::initial_adapter::initial_adapter;
use super::locked_dir::LockedDir;
use super::names::checkpoint;
use super::observer::{self, Observer};
use super::output_dir::{check_recorded_base, recorded_arithmetic};
use super::progress::{Progress, Speed};
use super::record::{LogEntry, RunRecord, RunSummary, TrainerState};
use super::sharing::{check_same_run, check_same_settings, first_of_machine_first, share_restored, share_step};
use super::snapshot::Snapshot;
use super::standing::{Standing, lock, standing};
use super::steps::Run;
use super::summing::Sums;
use super::trained_adapter::add_trained_adapter;
use super::trained_card::write_card;
use super::watch::Watch;
use crate::adapter::ADAPTER_CONFIG;
use crate::backend::{Backend, DiskTraffic};
use crate::comm::{Communicator, SingleProcess, agreement, from_first, is_first};
use crate::config::{Purpose, Settings};
use crate::error::{Context, Error, Result};
use crate::files::units::format_bytes;
use crate::hub::{Environment, HubCommit, moved_since};
use crate::infer::questions::{Questions, check_positions};
use crate::lint::{self, Finding};
use crate::model::{Llama, ModelSpec};
use crate::report::{Bars, count, detail, section, status, warning};
use crate::run_report::Details;
use crate::session::chat_template::add_tokenizer;
use crate::session::disk::check_writable;
use crate::session::host_copy::{Agreed, HostCopies, PAGE};
use crate::session::interruption::Interruption;
use crate::session::lint_facts::facts;
use crate::session::model_spec::{base_quantization, check_quantization, lora_spec, model_spec, of_steps};
use crate::session::training_data::find_files_by;
use crate::session::{CheckpointSource, Device, DeviceJob, Loaded, TrainingData, replace_adapter_by_base};
use crate::session::{advice, graphs, planner, scratch};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Result of `train`.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub summary: RunSummary,
    /// Path of the adapter.
    pub adapter: PathBuf,
    /// Reads of base weights that stay on disk
    pub weights_read: Option<DiskTraffic>,
}

/// Trains in one process, or continues a run that was stopped, or reports that it is finished already.
pub fn train(settings: Settings) -> Result<TrainOutcome> {
    train_among(settings, &mut SingleProcess)
}

/// Trains as [`train`] does, in several processes, each of which calls this.
pub fn train_among(mut settings: Settings, comm: &mut dyn Communicator) -> Result<TrainOutcome> {
    settings.validate(Purpose::Train)?;
    section("Model");
    replace_adapter_by_base(&mut settings)?;
    let output = settings.output_path()?.to_owned();
    // A run that goes on stays on the commits that it began on, whatever a branch of the hub stands for by now.
    let hub =
        Environment::read().following(from_first(comm, "commits of the hub", || Ok(commits_to_follow(&settings)))?);
    find_files_by(&mut settings, &hub)?;
    if settings.leave_out_evaluations() {
        status!("eval_steps: the data has no rows to validate on, so that nothing is evaluated");
    }
    if settings.eval_on_start && !settings.has_validation() {
        status!("eval_on_start: the data has no rows to validate on, so that none are evaluated at the start");
    }
    // Rows to validate on are known only now.
    settings.validate(Purpose::Train)?;
    check_same_settings(comm, &settings)?;
    settings.device = Device::of_rank(settings.device, comm.on_this_machine().0);
    let device = Device::choose(&settings)?;
    let mut locked = None;
    if is_first(comm) {
        check_writable(&output, "output_dir")?;
        if let Some(dir) = settings.logging_dir.as_deref().filter(|_| settings.report_to.tensorboard) {
            check_writable(dir, "logging_dir")?;
        }
        locked = LockedDir::of_existing(&output)?;
    }
    let recorded = from_first(comm, "arithmetic", || Ok(Vec::from_iter(recorded_arithmetic(&output)?)))?.pop();
    let device = match recorded {
        // `compute` settles what a CPU computes in; on a GPU there is one.
        Some(recorded) if settings.compute.is_none() || !device.is_cpu() => {
            device.as_recorded(recorded.as_deref(), &output)?
        }
        _ => device,
    };
    let mut loaded = Loaded::open_by(&settings, &hub)?;
    let (_, here) = comm.on_this_machine();
    loaded.set_processes_here(here);
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    loaded.check_size(&settings, &device)?;
    check_quantization(&settings, &loaded.checkpoint)?;
    lora_spec(&settings, loaded.checkpoint.arch())?;
    settings.resolve(loaded.parameters());
    loaded.find_quantized(&settings)?;
    let accumulation_per_process = share_step(comm, &mut settings, &output, &loaded, &device)?;
    let clock = from_first(comm, "clock", || {
        Ok(run_clock(&settings, &output, &result_settings(&settings, &loaded, device.arithmetic())))
    })?;
    loaded.set_clock(clock);
    section("Data");
    // The rows are read once: they may come from a pipe, and their hash is part of the identity.
    let data = TrainingData::load(&settings, &loaded)?;
    let identity = run_identity(&settings, &loaded, &data, device.arithmetic(), clock)?;
    // Prompts may need a tokenizer where rows are token ids; it is no part of what is trained.
    let questions = Questions::load(&settings, &loaded, &data.validation)?;
    check_positions(&questions.prompts(), loaded.checkpoint.arch(), data.longest)?;
    let identity = identity.judging(&settings, &questions);
    let sums = Sums::choose(comm, &device, &settings, &output, &identity)?;
    let identity = Identity { sums: sums.recorded(comm, &settings, &output, &identity), ..identity };
    check_same_run(comm, &identity, &questions, &device)?;
    let hub_commits = hub.commits();
    let look = || {
        let found = standing(&settings, &output, &identity, locked.as_ref(), &loaded, &data);
        found.map_err(|error| with_moved(error, &hub_commits, &output))
    };
    let (saved, overwrites) = match from_first(comm, "output directory", look)? {
        Standing::Begins { saved, overwrites } => (saved.map(|saved| *saved), overwrites),
        Standing::Finished(finished) => {
            status!(
                "{}: this run is finished ({}) and its adapter is there; nothing was done. To train it anew, choose \
                 another output_dir or remove this one",
                output.display(),
                count(finished.steps, "step")
            );
            return Ok(TrainOutcome { summary: finished, adapter: output, weights_read: None });
        }
    };
    let spec = model_spec(&settings, &loaded.checkpoint, data.tokens, data.longest)?;
    let spec = of_steps(spec, data.schedule.total_steps())?;
    let mut spec = spec.with_prompts(questions.prompts());
    let largest = spec.lora.lengths(&spec.arch).max().unwrap_or(0);
    // NCCL's memory on a GPU is in use before the free memory is asked for.
    if sums == Sums::Nccl {
        device.meet(comm)?;
    }
    let of_sums = sums.host_bytes(&device, comm.world_size(), largest);
    let given = settings.host_memory.map(|bytes| bytes.0);
    let alone = device.budget(&settings)?.shared(here, given, device.is_cpu(), of_sums);
    let mut budget = alone;
    let copies = match device.is_cpu() {
        true => None,
        false => HostCopies::offered(comm, &|file| device.try_pinning(file, PAGE), &mut budget)?,
    };
    let mut shared = Agreed::default();
    let graphs;
    let plan = {
        let (stored, levers) = (loaded.stored(), planner::Levers::of(&settings));
        let mut plan = planner::choose(&device, &mut spec, levers, &stored, budget)?;
        if let Some(copies) = copies {
            shared = copies.agree(comm, plan.weights_on_host)?;
        }
        // A rank that shares nothing has nobody's memory but its own.
        if shared.copy.is_none() && budget != alone && (plan.sharers().is_some() || !plan.fits()) {
            budget = alone;
            plan = planner::choose(&device, &mut spec, levers, &stored, budget)?;
        }
        let ranks = comm.world_size();
        graphs = graphs::choose(&settings, &device, &spec, ranks, &mut plan)?;
        let rows = settings.per_device_train_batch_size;
        let asked = advice::Asked { device: &device, spec: &spec, levers, stored: &stored, budget, rows };
        advice::refuse_unless_it_fits(&plan, &asked)?;
        plan
    };
    section("Run");
    print_run(&settings, &loaded, &spec, &plan, &data.schedule);
    let scratch_bytes = scratch::check(&settings, &plan, &output, here, |dir| loaded.bytes_to_keep(dir))?;
    graphs.note.iter().for_each(|note| status!("{note}"));
    if is_first(comm) {
        let taken = scratch_bytes.saturating_add(loaded.bytes_to_keep(&output)?);
        check_disk(&settings, &loaded, &spec, &data.schedule, &output, taken)?;
    }
    let findings = lint::before(&facts(&settings, &loaded, &spec, &data), settings.allow.names());
    let earlier = saved.as_ref().map(|saved| (output.as_path(), saved.trainer.global_step));
    let details = observer::details(&settings, &loaded, &spec, &plan, &data, device.in_words(), earlier)?;
    let bytes = plan.run_bytes;
    first_of_machine_first(comm, "weights in NF4", || loaded.keep_quantized())?;
    device.share_weights(shared.copy);
    device.use_graphs(graphs.is_on);
    let run = TrainingJob {
        comm,
        waits: shared.is_shared,
        accumulation_per_process,
        hub_commits,
        settings,
        output,
        locked,
        overwrites,
        loaded,
        identity,
        saved,
        data,
        questions,
        spec,
        bytes,
        details,
        findings,
    };
    device.run(run)
}

/// A run of which everything but the weights was read and found good.
struct TrainingJob<'a> {
    comm: &'a mut dyn Communicator,
    /// All ranks have read the weights before any uses them
    waits: bool,
    accumulation_per_process: usize,
    hub_commits: Vec<HubCommit>,
    settings: Settings,
    output: PathBuf,
    locked: Option<LockedDir>,
    /// `output` holds another run, which this one replaces.
    overwrites: bool,
    loaded: Loaded,
    identity: Identity,
    saved: Option<Snapshot>,
    data: TrainingData,
    questions: Questions,
    spec: ModelSpec,
    /// Bytes that the plan found
    bytes: u64,
    details: Details,
    /// Findings of lints before the first step
    findings: Vec<Finding>,
}

impl DeviceJob for TrainingJob<'_> {
    type Output = TrainOutcome;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<TrainOutcome> {
        train_on(build(&self.spec, self.bytes)?, self)
    }
}

fn train_on<B: Backend>(mut backend: B, job: TrainingJob) -> Result<TrainOutcome> {
    let TrainingJob {
        comm,
        waits,
        accumulation_per_process,
        hub_commits,
        settings,
        output,
        locked,
        overwrites,
        loaded,
        identity,
        saved,
        data,
        questions,
        spec,
        bytes: _,
        details,
        findings,
    } = job;
    let init =
        settings.init_adapter.as_deref().map(|path| initial_adapter(path, &settings, &loaded, &spec)).transpose()?;
    let source = CheckpointSource::with_adapter(&loaded.checkpoint, init.as_ref(), settings.seed)?;
    let mut source = source.beginning(&spec.lora).hashing_ahead()?;
    if settings.report {
        source = source.measuring();
    }
    if waits {
        source = source.waiting_for(&mut *comm);
    }
    let (mut bar, stored) = (Bars::new("loading", spec.arch.num_layers as u64), loaded.checkpoint.stored_bytes());
    let mut model = Llama::build(&mut backend, &mut source, spec, &mut |layer| bar.set_read(layer as u64, stored))?;
    bar.finish();
    detail!("{}", source.loading_note());
    let (norms, starts) = (source.take_norms(), source.take_starts());
    let fingerprint = source.finish()?;
    let of_base = [("the base's weights".to_owned(), fingerprint.whole.clone().into())];
    agreement::agree(comm, "base", &of_base.into_iter().collect())?;
    if !overwrites && is_first(comm) {
        let recorded = check_recorded_base(&output, &fingerprint.whole);
        recorded.map_err(|error| with_moved(error, &hub_commits, &output))?;
    }
    if let (Some(adapter), Some(path)) = (&init, &settings.init_adapter) {
        let (arch, name) = (loaded.checkpoint.arch(), loaded.checkpoint.base_name());
        let warnings = adapter.check_base(arch, &fingerprint, name, settings.allow_other_base);
        let of_quantization =
            adapter.check_base_quantization(Some(&fingerprint), &base_quantization(&settings, &loaded.checkpoint));
        for told in warnings.context(|| path.display().to_string())?.into_iter().chain(of_quantization) {
            warning!("{told}");
        }
        status!("the adapter begins with the weights of {}", path.display());
    }
    // Its values are the model's now.
    drop(init);
    if let Some(saved) = &saved {
        if is_first(comm) {
            saved.check_base(&fingerprint.whole)?;
            saved.check_best(&settings, &output)?;
            saved.restore(&mut backend, &mut model)?;
        }
        share_restored(comm, &mut backend, &mut model)?;
    }
    let (state, progress) = match &saved {
        Some(saved) => (saved.trainer.clone(), saved.state.progress.clone()),
        None => (TrainerState::default(), Progress::default()),
    };
    let total = data.schedule.total_steps();
    if let Some(saved) = &saved {
        status!("resuming after step {} of {total} from {}", state.global_step, saved.dir.display());
    }
    let base = loaded.checkpoint.base_name();
    let mut run = json!({
        "identity": identity,
        "base": {"name": base.name, "revision": base.revision, "fingerprint": fingerprint.whole},
        "version": env!("CARGO_PKG_VERSION"),
        "settings": settings.to_json(),
    });
    if accumulation_per_process != settings.gradient_accumulation_steps {
        run[PER_PROCESS] = accumulation_per_process.into();
    }
    if !hub_commits.is_empty() {
        run[HUB_COMMITS] = json!(hub_commits);
    }
    // The others may call the directory by another name.
    let is_own = |saved: &Snapshot| saved.dir == output.join(checkpoint(saved.trainer.global_step));
    let stands_there = from_first(comm, "place", || Ok(saved.as_ref().is_some_and(is_own)))?;
    let (mut record, mut observer) = (None, Observer::silent());
    if is_first(comm) {
        // Until here a refusal left no trace.
        let locked = lock(locked, &output, &identity, overwrites)?;
        let created = record.insert(RunRecord::create(locked, run, &state.log_history)?);
        if let Some(saved) = &saved {
            // A process that was killed may have left more than are kept.
            let (keep, best) = (settings.save_total_limit.0, state.best_model_checkpoint.as_deref());
            checkpoints::prune(created, saved.trainer.global_step, keep, best);
        }
        observer = Observer::new(&settings, details, created.dir(), state.global_step);
        // A resumed run has had its warnings before.
        if saved.is_none() {
            observer.warn(0, &findings);
        }
        observer.write(created, &state.log_history, true);
    }
    backend.set_scratch_dir(&scratch::dir(&settings, &output));
    let mut run = Run {
        settings: &settings,
        output: &output,
        loaded: &loaded,
        data: &data,
        questions: &questions,
        identity: &identity,
        base_fingerprint: &fingerprint,
        starts,
        comm,
        accumulation_per_process,
        hub_commits,
        backend,
        model,
        record,
        standing_at: saved.as_ref().filter(|_| stands_there).map(|saved| saved.dir.clone()),
        gradient_norms: None,
        watch: Watch::new(&settings, &state.log_history, observer.told(), total),
        observer,
        state: TrainerState { max_steps: total, ..state },
        progress,
        speed: Speed::default(),
        started: Instant::now(),
        interruption: Interruption::watch("saving and stopping after the current micro-batch")?,
        last_norm: 0,
    };
    run.agree_on_adapter()?;
    section("Training");
    finish(run, &norms)
}

/// A refusal of the output directory, with the branches of the hub that have moved since its run began.
fn with_moved(error: Error, now: &[HubCommit], output: &Path) -> Error {
    match moved_since(now, &commits_of_run(output)) {
        Some(moved) => error.usage_hint(|| moved),
        None => error,
    }
}

/// The steps that are left, the adapter, and its evaluation.
fn finish<B: Backend>(mut run: Run<B>, norms: &BTreeMap<String, f64>) -> Result<TrainOutcome> {
    run.steps()?;
    let best = run.settings.load_best_model_at_end;
    run.agree_on_adapter()?;
    if !best {
        // Before anything else can go wrong.
        write_adapter(&run)?;
        write_state(&run)?;
    }
    let evaluated = run.progress.evaluated_at == Some(run.state.global_step);
    if run.evaluates() && !evaluated && run.evaluate()? {
        run.save()?;
    }
    let mut eval_loss = run.state.log_history.iter().rev().find_map(|entry| entry.eval_loss);
    if best {
        run.load_best()?;
        // Without a best one the adapter is that of the last step.
        let best = run.state.best_model_checkpoint.as_deref();
        let of_best = |entry: &&LogEntry| best == Some(checkpoint(entry.step).as_str()) && entry.eval_loss.is_some();
        eval_loss = run.state.log_history.iter().rev().find(of_best).and_then(|entry| entry.eval_loss).or(eval_loss);
        write_adapter(&run)?;
    }
    write_state(&run)?;
    let weights_read = run.backend.weights_read();
    if let Some(read) = weights_read {
        status!(
            "base weights: {} read from disk in {:.1} s, beside the computation, which waited {:.1} s for them",
            format_bytes(read.bytes),
            read.seconds,
            read.waited
        );
    }
    if let Some(moved) = run.backend.scratch_traffic() {
        status!(
            "layers' inputs: {} to and from the disk in {:.1} s, beside the computation, which waited {:.1} s for them",
            format_bytes(moved.bytes),
            moved.seconds,
            moved.waited
        );
    }
    let summary = RunSummary {
        steps: run.state.global_step,
        train_loss: run.progress.whole_run.mean(),
        eval_loss,
        tokens_per_second: run.speed.tokens_per_second(),
        peak_bytes: run.backend.bytes(),
    };
    if let Some(record) = &run.record {
        write_card(record, &run.told(), eval_loss)?;
    }
    if let Some(record) = &mut run.record {
        record.finish(&summary)?;
        if let Err(error) = run.observer.measure(&run.backend, &run.model, &run.starts, norms, &run.loaded.checkpoint) {
            warning!("the report does not say what the adapter changed: {error}");
        }
        run.observer.write(record, &run.state.log_history, true);
    }
    Ok(TrainOutcome { summary, adapter: run.output.to_owned(), weights_read })
}

fn write_state<B: Backend>(run: &Run<B>) -> Result<()> {
    run.record.as_ref().map_or(Ok(()), |record| record.write_state(&run.state))
}

fn write_adapter<B: Backend>(run: &Run<B>) -> Result<()> {
    let Some(record) = &run.record else { return Ok(()) };
    let mut files = record.files()?;
    let (loaded, model, backend) = (run.loaded, &run.model, &run.backend);
    add_trained_adapter(&mut files, run.settings, loaded, run.base_fingerprint, model, &run.starts, backend)?;
    add_tokenizer(run.loaded.checkpoint.dir(), run.loaded.tokenizer(), &mut files)?;
    files.add_sums()?;
    files.commit_with_last(ADAPTER_CONFIG)
}
