//! The steps of a run, with what happens between them: log, evaluation, checkpoint, interruption.

use super::checkpoints;
use super::identity::Identity;
use super::names::{self, RUN_STATE, STATE_FILE};
use super::observer::Observer;
use super::progress::{Progress, Speed};
use super::record::{LogEntry, RunRecord, TrainerState, add_json};
use super::snapshot::{DataCursor, RngState, RunState, Snapshot, add_optimizer};
use super::trained_adapter::{add_trained_adapter, described};
use super::trained_card::Told;
use super::watch::{Watch, is_measured};
use crate::backend::{Backend, Batch, TraceMode};
use crate::base::BaseFingerprint;
use crate::comm::{Communicator, Signs, agreement, is_first};
use crate::config::{Every, Settings};
use crate::data::Step;
use crate::error::{Context, Error, Result};
use crate::files::failpoint;
use crate::hub::HubCommit;
use crate::infer::questions::Questions;
use crate::lint::ModuleGradients;
use crate::lora::ParamKind;
use crate::lora::start::Factors;
use crate::model::Llama;
use crate::model::optimizer_step::{Hyperparameters, StepReport, accumulate, update};
use crate::objective::{Objective, Sft, WeightedBatch};
use crate::report::{Bars, sparkline, status};
use crate::session::chat_template::add_tokenizer;
use crate::session::interruption::{Interruption, resume_command};
use crate::session::{Loaded, TrainingData};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A run under way.
pub(super) struct Run<'a, B: Backend> {
    pub settings: &'a Settings,
    pub output: &'a Path,
    pub loaded: &'a Loaded,
    pub data: &'a TrainingData,
    /// Prompts and rows that are answered at the start, at each evaluation and at the end
    pub questions: &'a Questions,
    pub identity: &'a Identity,
    pub base_fingerprint: &'a BaseFingerprint,
    /// Values with which the terms began that the base was changed by, by module
    pub starts: BTreeMap<String, Factors>,
    /// The processes of the run: all of them take its steps
    pub comm: &'a mut dyn Communicator,
    /// Micro-batches of a step that each of them was asked for
    pub accumulation_per_process: usize,
    /// Commits of the hub's branches that the run is of
    pub hub_commits: Vec<HubCommit>,
    pub backend: B,
    pub model: Llama<B>,
    /// On rank 0 only
    pub record: Option<RunRecord>,
    pub state: TrainerState,
    pub progress: Progress,
    pub speed: Speed,
    pub started: Instant,
    /// Warns while it trains.
    pub watch: Watch,
    /// Shows the run while it works.
    pub observer: Observer,
    pub interruption: Interruption,
    /// Norms of the gradients of all A and of all B, where they were looked at in this step
    pub gradient_norms: Option<(f64, f64)>,
    /// The newest checkpoint of `output`, if the run stands exactly there.
    pub standing_at: Option<PathBuf>,
    /// Norm of the last step's gradients, by its bits: the same on all ranks
    pub last_norm: u64,
}

impl<B: Backend> Run<'_, B> {
    /// Trains to the end, or until the figure that the run is judged by is no longer better. [`Error::Interrupted`]:
    /// after a checkpoint.
    pub fn steps(&mut self) -> Result<()> {
        let (settings, data) = (self.settings, self.data);
        let total = data.schedule.total_steps();
        let hyper = Hyperparameters::of(settings);
        // Interrupted while it was evaluating.
        let from = self.state.global_step;
        let mut bar = Bars::resumed("training", total, from);
        if self.evaluation_due() && self.progress.evaluated_at != Some(from) && self.evaluate()? {
            self.save()?;
        }
        // The adapter of before is not the best of those that were trained.
        if from == 0 && !self.is_begun() {
            self.measure_at_start()?;
        }
        for step in data.schedule.steps(from) {
            if self.progress.stopped_early {
                break;
            }
            self.stop_if_interrupted()?;
            // The first step of a process also touches every page and file for the first time.
            let timed = step.index == from + 1 && self.observer.wants_times();
            if timed {
                self.backend.set_trace(TraceMode::Times)?;
            }
            let begun = Instant::now();
            let report = self.step(&hyper, &step)?;
            self.speed.add(report.tokens, begun.elapsed());
            if timed {
                let times = self.backend.times()?;
                self.observer.set_times(&times);
                self.backend.set_trace(TraceMode::Off)?;
            }
            self.account(&step, &report)?;
            bar.set(self.state.global_step, progress(&report, self.speed.tokens_per_second()));
            self.print_loss(total);
            failpoint::moment("step");
            let improved = self.evaluation_due() && self.evaluate()?;
            let due = settings.save_steps.due(self.state.global_step, total, data.schedule.steps_per_epoch());
            if due || improved {
                self.save()?;
            }
            self.show(due || improved);
        }
        bar.finish();
        self.stop_if_interrupted()
    }

    fn step(&mut self, hyper: &Hyperparameters, step: &Step) -> Result<StepReport> {
        let batch_of = |numbers: &Vec<usize>| Sft.micro_batch_of(&self.data.rows, numbers);
        let batches: Vec<WeightedBatch> = step.micro_batches.iter().map(batch_of).collect::<Result<_>>()?;
        let batches: Vec<Batch> = batches.iter().map(WeightedBatch::batch).collect();
        let accumulation = self.settings.gradient_accumulation_steps;
        let signs = self.signs();
        let stop = || {
            failpoint::moment("micro-batch");
            signs()
        };
        let (backend, model) = (&mut self.backend, &mut self.model);
        let done = std::mem::take(&mut self.progress.accumulation);
        let (done, signal) = accumulate(backend, model, self.comm, step.index, accumulation, &batches, done, &stop)?;
        if done.micro_batches < batches.len() {
            // The parts of several ranks are taken again, from where the step began: in another order their sum would
            // have other bits.
            if self.comm.world_size() == 1 {
                self.progress.accumulation = done;
                self.standing_at = None;
            }
            return Err(self.interrupted(signal)?);
        }
        if is_measured(step.index + 1) {
            self.measure_gradients(step)?;
        }
        let (backend, model) = (&mut self.backend, &mut self.model);
        let factor = self.settings.lr_factor(step.index as usize, self.data.schedule.total_steps() as usize);
        update(backend, model, self.comm, hyper, step.index, accumulation, factor, &batches, done.loss)
    }

    /// Tells what this rank has to say to the others, now and later in the same step.
    pub fn signs(&self) -> impl Fn() -> Signs + use<B> {
        let (interruption, step, norm) = (self.interruption.clone(), self.state.global_step, self.last_norm);
        move || Signs { signal: interruption.signal(), step, norm }
    }

    /// Shows what the run has come to, if it is `due` or was not for long.
    fn show(&mut self, due: bool) {
        if let Some(record) = &self.record {
            self.observer.write(record, &self.state.log_history, due);
        }
    }

    /// Looks at the gradients of all adapters, one tensor in memory at a time.
    fn measure_gradients(&mut self, step: &Step) -> Result<()> {
        let (mut modules, mut cut): (Vec<(String, f64, f64)>, BTreeSet<String>) = Default::default();
        for (id, _, param) in self.model.params() {
            let squares: f64 = self.backend.gradient(param)?.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            // A of a module comes before its B.
            match id.kind() {
                ParamKind::LoraA => modules.push((id.module().to_owned(), squares.sqrt(), 0.0)),
                ParamKind::LoraB => modules.iter_mut().rev().take(1).for_each(|module| module.2 = squares.sqrt()),
                ParamKind::LoraE if self.backend.param_values(param)?.iter().all(|&e| e == 0.0) => {
                    cut.insert(id.module().to_owned());
                }
                ParamKind::LoraE | ParamKind::Magnitude | ParamKind::Whole | ParamKind::Tokens => {}
            }
        }
        let total = self.data.schedule.total_steps() as usize;
        let rate = |index: u64| self.settings.lr_factor(index as usize, total);
        let is_warming_up = rate(step.index) < rate(step.index + 1);
        let mut gradients = ModuleGradients { step: step.index + 1, is_warming_up, modules };
        self.gradient_norms = Some(gradients.norms());
        // No gradient reaches a term of which AdaLoRA has cut every rank, and that is no fault.
        gradients.modules.retain(|(module, ..)| !cut.contains(module));
        let findings = self.watch.gradients(&gradients);
        self.observer.warn(gradients.step, &findings);
        Ok(())
    }

    fn account(&mut self, step: &Step, report: &StepReport) -> Result<()> {
        self.standing_at = None;
        self.last_norm = report.grad_norm.to_bits();
        self.progress.whole_run.add(report);
        self.progress.since_log.add(report);
        let (done, total) = (step.index + 1, self.data.schedule.total_steps());
        self.state.global_step = done;
        self.state.epoch = step.epoch;
        self.state.num_input_tokens_seen += report.tokens as u64;
        let per_epoch = self.data.schedule.steps_per_epoch();
        let norms = self.gradient_norms.take();
        let (grad_norm_a, grad_norm_b) = (norms.map(|(a, _)| a), norms.map(|(_, b)| b));
        if self.settings.logging_steps.due(done, total, per_epoch) || self.is_logged_first(done) || done == total {
            let since_log = std::mem::take(&mut self.progress.since_log);
            self.log(LogEntry {
                loss: Some(since_log.mean()),
                grad_norm: Some(report.grad_norm),
                grad_norm_a,
                grad_norm_b,
                learning_rate: Some(report.learning_rate_a),
                learning_rate_b: Some(report.learning_rate_b),
                tokens_per_second: self.speed.tokens_per_second(),
                seconds: Some(self.started.elapsed().as_secs_f64()),
                num_input_tokens_seen: Some(self.state.num_input_tokens_seen),
                memory_bytes: Some(self.backend.bytes()),
                ..LogEntry::new(done, step.epoch)
            })?;
        }
        Ok(())
    }

    /// True if a step is logged because it is the first (`logging_first_step`).
    fn is_logged_first(&self, step: u64) -> bool {
        step == 1 && self.settings.logging_first_step
    }

    /// A line for the loss that was just logged, with its curve so far: at each `logging_steps`, or some twenty in a
    /// run that logs every step.
    fn print_loss(&self, total: u64) {
        let Some(entry) = self.state.log_history.last().filter(|entry| entry.step == self.state.global_step) else {
            return;
        };
        let Some(loss) = entry.loss else { return };
        let every = match self.settings.logging_steps {
            Every::Steps(1) => Every::Steps((total / 20).max(1)),
            every => every,
        };
        let due = every.due(entry.step, total, self.data.schedule.steps_per_epoch());
        if !due && !self.is_logged_first(entry.step) && entry.step != total {
            return;
        }
        let losses: Vec<f64> = self.state.log_history.iter().filter_map(|entry| entry.loss).collect();
        let speed = self.speed.tokens_per_second().map_or(String::new(), |speed| format!("  {speed:.0} tokens/s"));
        let (step, epoch, curve) = (entry.step, entry.epoch, sparkline(&losses, 20));
        status!("step {step}/{total}  epoch {epoch:.2}  loss {loss:.4}  {curve}{speed}");
    }

    pub fn log(&mut self, entry: LogEntry) -> Result<()> {
        if let Some(record) = &mut self.record {
            record.log(&entry)?;
        }
        let findings = self.watch.log(&entry);
        self.observer.warn(entry.step, &findings);
        self.observer.log(&entry);
        self.state.log_history.push(entry);
        Ok(())
    }

    /// True if `eval_steps` asks for an evaluation here; the one at the end comes after the adapter is written.
    fn evaluation_due(&self) -> bool {
        let (done, schedule) = (self.state.global_step, &self.data.schedule);
        let total = schedule.total_steps();
        0 < done && done < total && self.settings.eval_steps.due(done, total, schedule.steps_per_epoch())
    }

    /// Evaluated before, or within the first step.
    fn is_begun(&self) -> bool {
        self.progress.evaluated_at.is_some() || self.progress.accumulation.micro_batches > 0
    }

    /// Writes the checkpoint of where the run stands, and removes those that are no longer kept. Failed: a rank stands
    /// elsewhere.
    pub fn save(&mut self) -> Result<PathBuf> {
        self.agree_on_adapter()?;
        if self.record.is_none() {
            let dir = self.output.join(names::checkpoint(self.state.global_step));
            self.standing_at = Some(dir.clone());
            return Ok(dir);
        }
        let (step, within) = (self.state.global_step, self.progress.accumulation.micro_batches);
        let accumulation = self.settings.gradient_accumulation_steps;
        let draw = step * accumulation as u64 + within as u64;
        let state = RunState::new(
            self.identity,
            &self.base_fingerprint.whole,
            DataCursor::of(&self.data.schedule, step, accumulation, within),
            RngState::new(self.settings.seed, draw),
            self.progress.clone(),
        );
        let asked = self.accumulation_per_process;
        let accumulation_per_process = (asked != accumulation).then_some(asked);
        let state = RunState { accumulation_per_process, hub_commits: self.hub_commits.clone(), ..state };
        let told = self.told();
        let (training, adapter) = (told.of_checkpoint(), told.adapter);
        let Some(record) = &mut self.record else { return Err(Error::Failed("rank 0 alone saves".to_owned())) };
        let dir = checkpoints::write(record, step, |files| {
            let (loaded, model, backend) = (self.loaded, &self.model, &self.backend);
            add_tokenizer(loaded.checkpoint.dir(), loaded.tokenizer(), files)?;
            adapter.add_story(files, &training, None)?;
            add_trained_adapter(files, self.settings, loaded, self.base_fingerprint, model, &self.starts, backend)?;
            add_optimizer(files, &self.backend, model, within > 0)?;
            add_json(files, STATE_FILE, &self.state)?;
            add_json(files, RUN_STATE, &state)
        })?;
        self.standing_at = Some(dir.clone());
        let best = self.state.best_model_checkpoint.as_deref();
        checkpoints::prune(record, step, self.settings.save_total_limit.0, best);
        Ok(dir)
    }

    /// Facts of the run for cards.
    pub fn told(&self) -> Told<'_> {
        Told {
            settings: self.settings,
            loaded: self.loaded,
            data: self.data,
            identity: self.identity,
            state: &self.state,
            train_loss: self.progress.whole_run.mean(),
            adapter: described(self.settings, self.loaded, self.base_fingerprint, &self.model),
            parameters: self.model.spec().trained_parameters(),
            processes: self.comm.world_size(),
        }
    }

    /// Fails where the trainable tensors of a rank are not those of rank 0.
    pub fn agree_on_adapter(&mut self) -> Result<()> {
        if self.comm.world_size() == 1 {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for (_, _, param) in self.model.params() {
            self.backend.param_values(param)?.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        let what = format!("adapter after step {}", self.state.global_step);
        agreement::agree_on_results(self.comm, &what, &hash.finalize())
    }

    fn stop_if_interrupted(&mut self) -> Result<()> {
        let signs = self.signs();
        match signs().agreed(self.comm)? {
            Some(signal) => Err(self.interrupted(Some(signal))?),
            None => Ok(()),
        }
    }

    /// Saves where the run stands, says how to go on, and returns the error to end with, for the signal that all ranks
    /// agreed on.
    pub fn interrupted(&mut self, signal: Option<i32>) -> Result<Error> {
        let dir = match self.standing_at.clone() {
            Some(dir) => dir,
            None => self.save()?,
        };
        let (done, total) = (self.state.global_step, self.data.schedule.total_steps());
        let within = match self.progress.accumulation.micro_batches {
            0 => String::new(),
            micro => format!(" and {micro} micro-batches"),
        };
        self.show(true);
        status!("stopped after step {done} of {total}{within}; saved in {}", dir.display());
        status!("to go on: {}", resume_command());
        Ok(Error::Interrupted(signal.unwrap_or(signal_hook::consts::SIGTERM)))
    }

    /// Restores the trainable tensors of the best figure, on rank 0. True if they were others.
    pub fn load_best(&mut self) -> Result<bool> {
        if !is_first(self.comm) {
            return Ok(false);
        }
        let Some(best) = self.state.best_model_checkpoint.clone() else { return Ok(false) };
        if best == names::checkpoint(self.state.global_step) {
            return Ok(false);
        }
        let saved = Snapshot::open(&self.output.join(&best), self.identity)
            .failure_context(|| "load_best_model_at_end".to_owned())?;
        saved.restore(&mut self.backend, &mut self.model)?;
        let metric = self.settings.metric_for_best_model;
        let best_of = if metric.rises() { "highest" } else { "lowest" };
        status!("restored {best}, the checkpoint with the {best_of} {}", metric.in_words());
        Ok(true)
    }
}

fn progress(report: &StepReport, tokens_per_second: Option<f64>) -> String {
    let speed = tokens_per_second.map_or(String::new(), |speed| format!(" {speed:.0} tokens/s"));
    let StepReport { loss, learning_rate_a, learning_rate_b, .. } = report;
    let rates = match learning_rate_a == learning_rate_b {
        true => format!("lr {learning_rate_a:.2e}"),
        false => format!("lr A {learning_rate_a:.2e} B {learning_rate_b:.2e}"),
    };
    format!("loss {loss:.4} {rates}{speed}")
}
