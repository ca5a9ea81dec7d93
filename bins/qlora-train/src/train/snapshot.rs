//! Snapshots: the state of a run beside its adapter, and how a run is restored from it.
//!
//! `optimizer.safetensors` has, of every trainable tensor, the moments (`<name>.m`, `<name>.v`, with `_absmax` if they
//! are 8-bit), the value itself where the adapter's file does not hold it bit for bit (rsLoRA is folded there), the
//! gradient so far if the run was stopped within a step, and with AdaLoRA what the next cut follows from.
//! `run_state.json` has the rest that the next step follows from.
//! Random numbers are a function of seed, step and place, so the step is all there is to keep of the generators.

use super::identity::Identity;
use super::names::{RUN_STATE, STATE_FILE};
use super::progress::Progress;
use super::record::TrainerState;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, CARD, served_key};
use crate::backend::{Backend, OptimizerState};
use crate::bail_usage;
use crate::config::Settings;
use crate::data::Schedule;
use crate::error::{Context, Result};
use crate::files::atomic::{AtomicFiles, Damage, find_damage};
use crate::files::hash::hex;
use crate::files::json::read_bounded;
use crate::files::safetensors::{TensorFile, write_header};
use crate::hub::HubCommit;
use crate::lora::ParamId;
use crate::model::Llama;
use crate::report::status;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of the files described here; raised when their meaning changes.
const FORMAT: u64 = 2;
const OPTIMIZER: &str = "optimizer.safetensors";
/// The files that a resumed run reads.
const REQUIRED: [&str; 5] = [ADAPTER_MODEL, ADAPTER_CONFIG, OPTIMIZER, STATE_FILE, RUN_STATE];
/// A log of millions of steps.
const MAX_STATE_BYTES: u64 = 1 << 31;

/// `run_state.json`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    pub format: u64,
    /// Version of the program that wrote it
    pub version: String,
    /// SHA-256 (hex) over `identity`.
    pub identity_hash: String,
    pub identity: Identity,
    pub base_fingerprint: String,
    pub cursor: DataCursor,
    pub generator: RngState,
    pub progress: Progress,
    /// Micro-batches of a step that each of several processes was asked for, where they are not all of the step's
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulation_per_process: Option<usize>,
    /// Commits of the hub's branches that the run is of
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hub_commits: Vec<HubCommit>,
}

/// Position in the data: what is trained on next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataCursor {
    /// Steps done.
    pub step: u64,
    /// The epoch of the next step, from 0, and the micro-batches of it that are done.
    pub epoch: u64,
    pub micro_batches: u64,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    /// SHA-256 (hex) over the rows of the next step; none at the end.
    pub next_rows: Option<String>,
}

impl DataCursor {
    pub fn of(schedule: &Schedule, step: u64, accumulation: usize, within: usize) -> Self {
        let per_epoch = schedule.steps_per_epoch();
        let next = schedule.steps(step).next();
        Self {
            step,
            epoch: step / per_epoch,
            micro_batches: step % per_epoch * accumulation as u64 + within as u64,
            steps_per_epoch: per_epoch,
            total_steps: schedule.total_steps(),
            next_rows: next.map(|next| hex(Sha256::digest(format!("{:?}", next.micro_batches)))),
        }
    }
}

/// Counter-based: the numbers drawn at a place follow from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RngState {
    pub kind: String,
    pub seed: u64,
    /// Index of the next micro-batch's dropout masks
    pub draw: u64,
}

impl RngState {
    pub fn new(seed: u64, draw: u64) -> Self {
        Self { kind: "philox4x32-10".to_owned(), seed, draw }
    }
}

impl RunState {
    pub fn new(
        identity: &Identity,
        base_fingerprint: &str,
        cursor: DataCursor,
        generator: RngState,
        progress: Progress,
    ) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            identity_hash: identity.hash(),
            identity: identity.clone(),
            base_fingerprint: base_fingerprint.to_owned(),
            cursor,
            generator,
            progress,
            accumulation_per_process: None,
            hub_commits: Vec::new(),
        }
    }
}

/// The tensors of one parameter, in the order they are written.
fn tensors_of(state: OptimizerState, value: Option<Vec<f32>>, gradient: Option<Vec<f32>>) -> Vec<(&'static str, Data)> {
    let mut tensors = match state {
        OptimizerState::F32 { m, v } => vec![("m", Data::F32(m)), ("v", Data::F32(v))],
        OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => vec![
            ("m", Data::U8(m)),
            ("m_absmax", Data::F32(m_absmax)),
            ("v", Data::U8(v)),
            ("v_absmax", Data::F32(v_absmax)),
        ],
    };
    tensors.extend(value.map(|value| ("value", Data::F32(value))));
    tensors.extend(gradient.map(|gradient| ("gradient", Data::F32(gradient))));
    tensors
}

enum Data {
    F32(Vec<f32>),
    U8(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::F32(values) => bytemuck::cast_slice(values),
            Data::U8(values) => values,
        }
    }
    fn shape(&self) -> (Dtype, [usize; 1]) {
        match self {
            Data::F32(values) => (Dtype::F32, [values.len()]),
            Data::U8(values) => (Dtype::U8, [values.len()]),
        }
    }
}

/// Adds `optimizer.safetensors`, one parameter in memory at a time.
pub(super) fn add_optimizer<B: Backend>(
    files: &mut AtomicFiles,
    backend: &B,
    model: &Llama<B>,
    gradients: bool,
) -> Result<()> {
    // In the adapter's file rsLoRA and AdaLoRA are folded, what the terms began with is beside them, and a norm is as a
    // checkpoint stores it.
    let lora = &model.spec().lora;
    let differs = lora.rslora || lora.init.changes_base() || lora.adalora.is_some();
    let mut ranks: BTreeMap<ParamId, Vec<(&'static str, &[f32])>> = BTreeMap::new();
    for (id, part, values) in model.rank_values() {
        ranks.entry(id).or_default().push((part, values));
    }
    let tensors = |id: &ParamId, param: &B::Param| {
        let state = backend.optimizer_state(param)?.expect("every parameter of a training run has one");
        let exact = !differs && model.stored_offset(id) == 0.0;
        let value = (!exact).then(|| backend.param_values(param)).transpose()?;
        let mut tensors = tensors_of(state, value, gradients.then(|| backend.gradient(param)).transpose()?);
        let ranks = ranks.get(id).into_iter().flatten();
        tensors.extend(ranks.map(|&(part, values)| (part, Data::F32(values.to_vec()))));
        Ok::<_, crate::error::Error>(tensors)
    };
    let params = model.params();
    let mut header = Vec::new();
    for (id, _, param) in &params {
        header.extend(tensors(id, param)?.iter().map(|(part, data)| (format!("{id}.{part}"), data.shape())));
    }
    files.add(OPTIMIZER, |to| {
        let entries = header.iter().map(|(name, (dtype, shape))| (name.as_str(), *dtype, &shape[..]));
        write_header(to, &BTreeMap::new(), entries)?;
        for (id, _, param) in &params {
            let tensors = tensors(id, param).map_err(std::io::Error::other)?;
            tensors.iter().try_for_each(|(_, data)| to.write_all(data.bytes()))?;
        }
        Ok(())
    })
}

/// A checkpoint whose files are whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub dir: PathBuf,
    pub state: RunState,
    pub trainer: TrainerState,
}

impl Snapshot {
    /// Refused: a directory that is no checkpoint, one that is damaged, of another version, or of another run.
    pub fn open(dir: &Path, identity: &Identity) -> Result<Self> {
        let shown = dir.display();
        if !dir.is_dir() {
            bail_usage!("{shown}: found no such directory, expected a checkpoint (resume_from_checkpoint)");
        }
        let path = dir.join(RUN_STATE);
        if !path.is_file() {
            let hint = match dir.join(STATE_FILE).is_file() {
                true => "a half-deleted checkpoint, or one of another program",
                false => "no checkpoint of this program",
            };
            bail_usage!("{shown}: found no {RUN_STATE}: {hint} (resume_from_checkpoint)");
        }
        // The version comes first: another one may have other files.
        let what = |path: &Path| format!("{}: not readable: the checkpoint is damaged", path.display());
        let value: Value =
            serde_json::from_slice(&read_bounded(&path, MAX_STATE_BYTES)?).usage_context(|| what(&path))?;
        if value.get("format") != Some(&FORMAT.into()) {
            let text = |key: &str| value.get(key).map_or("none".to_owned(), Value::to_string);
            bail_usage!(
                "{}: found format {} (written by version {}), this program ({}) reads {FORMAT}: resume it with the \
                 version that wrote it",
                path.display(),
                text("format"),
                text("version"),
                env!("CARGO_PKG_VERSION")
            );
        }
        check_whole(dir)?;
        let state: RunState = serde_json::from_value(value).usage_context(|| what(&path))?;
        let path = dir.join(STATE_FILE);
        let trainer: TrainerState =
            serde_json::from_slice(&read_bounded(&path, MAX_STATE_BYTES)?).usage_context(|| what(&path))?;
        if let Some(difference) = identity.difference_beyond_length(&state.identity) {
            bail_usage!(
                "{shown}: is of a different run: {difference}; a resumed run takes the same settings, data and base, \
                 a changed one starts in another output_dir"
            );
        }
        Ok(Self { dir: dir.to_owned(), state, trainer })
    }

    /// Refuses a checkpoint whose next rows this program would not train on.
    pub fn check_schedule(&self, schedule: &Schedule, accumulation: usize) -> Result<()> {
        let found = &self.state.cursor;
        let (then, now) = (found.total_steps, schedule.total_steps());
        if now > then && self.state.identity.settings.get("use_adalora") == Some(&Value::Bool(true)) {
            bail_usage!(
                "{}: is of a run of {then} steps that cuts ranks (use_adalora) by how many are left; this one would have \
                 {now}: keep num_train_epochs and max_steps, or choose another output_dir",
                self.dir.display()
            );
        }
        if now < then {
            bail_usage!(
                "{}: is of a run of {then} steps, this one ends after {now}: a run goes on as it was or longer, not \
                 shorter; raise num_train_epochs or max_steps, or choose another output_dir",
                self.dir.display()
            );
        }
        let expected =
            DataCursor::of(schedule, found.step, accumulation, self.state.progress.accumulation.micro_batches);
        let same = match now > then {
            // At the old end nothing came next.
            true => {
                let next_rows = found.next_rows.clone().or_else(|| expected.next_rows.clone());
                DataCursor { total_steps: now, next_rows, ..found.clone() } == expected
            }
            false => *found == expected,
        };
        if same && now > then {
            status!(
                "the run goes on for {now} steps instead of {then}: the first {} followed the schedule of {then}, the \
                 rest follow that of {now}",
                found.step
            );
        }
        if !same {
            bail_usage!(
                "{}: goes on with other rows than this program would (step {} of {}, here of {}): it was written by \
                 version {}, resume it with that one",
                self.dir.display(),
                found.step,
                found.total_steps,
                expected.total_steps,
                self.state.version
            );
        }
        Ok(())
    }

    /// Refuses a checkpoint that was trained on other weights.
    pub fn check_base(&self, fingerprint: &str) -> Result<()> {
        if self.state.base_fingerprint != fingerprint {
            bail_usage!(
                "{}: was trained on another base (fingerprint {}, this model has {fingerprint})",
                self.dir.display(),
                self.state.base_fingerprint
            );
        }
        Ok(())
    }

    /// Refuses a run that would end with a checkpoint that is gone.
    pub fn check_best(&self, settings: &Settings, output: &Path) -> Result<()> {
        if let Some(best) = self.trainer.best_model_checkpoint.as_ref().filter(|_| settings.load_best_model_at_end) {
            let dir = output.join(best);
            if !dir.join(RUN_STATE).is_file() {
                bail_usage!(
                    "{}: found no such checkpoint, and the run has its best figure there ({}, \
                     load_best_model_at_end): put it back, or start over",
                    dir.display(),
                    settings.metric_for_best_model.in_words()
                );
            }
        }
        Ok(())
    }

    /// Puts every trainable tensor back, bit for bit. Refused: files that do not fit the model.
    pub fn restore<B: Backend>(&self, backend: &mut B, model: &mut Llama<B>) -> Result<()> {
        // Read tensor by tensor: whole, it would take as much memory as the trainable tensors themselves.
        let adapter = TensorFile::open(&self.dir.join(ADAPTER_MODEL))?;
        let file = Optimizer(TensorFile::open(&self.dir.join(OPTIMIZER))?);
        let wrapped = model.spec().arch.wrapper.is_some();
        let stopped_within = self.state.progress.accumulation.micro_batches > 0;
        for (id, param) in model.params_mut() {
            let values = match file.f32(&id, "value")? {
                Some(values) => values,
                None => adapter_values(&adapter, &served_key(&id.peft_key(), wrapped))?,
            };
            let state = file.state(&id, &self.dir)?;
            let what = || format!("{}: `{id}`", self.dir.display());
            backend.restore(param, values, state).usage_context(what)?;
            if stopped_within {
                let Some(gradient) = file.f32(&id, "gradient")? else {
                    bail_usage!("{}: found no gradient of `{id}`", self.dir.join(OPTIMIZER).display());
                };
                backend.restore_gradient(param, gradient).usage_context(what)?;
            }
        }
        for (id, part, len, values) in model.rank_values_mut() {
            *values = file.f32(&id, part)?.unwrap_or_default();
            if !values.is_empty() && values.len() != len {
                let path = self.dir.join(OPTIMIZER);
                bail_usage!("{}: `{id}.{part}`: found {} values, expected {len}", path.display(), values.len());
            }
        }
        model.refresh(backend)
    }
}

/// Refuses a checkpoint of which a file is missing or holds other bytes than were written. Its model card may be
/// edited.
fn check_whole(dir: &Path) -> Result<()> {
    let Some(damage) = find_damage(dir, &REQUIRED, &[CARD])? else { return Ok(()) };
    let means = match damage {
        Damage::NoSums(_) => "the checkpoint is damaged, or a directory of another program",
        Damage::Missing(_) => "the checkpoint is half deleted",
        Damage::NoLine(..) | Damage::NoFile(..) | Damage::Changed { .. } => "the checkpoint is damaged",
    };
    bail_usage!("{damage}: {means}")
}

fn adapter_values(adapter: &TensorFile, key: &str) -> Result<Vec<f32>> {
    match adapter.tensors.get(key) {
        Some(info) => adapter.read_f32(key, info, |_| ()),
        None => bail_usage!("{}: found no tensor `{key}`", adapter.path().display()),
    }
}

struct Optimizer(TensorFile);

impl Optimizer {
    fn f32(&self, id: &ParamId, part: &str) -> Result<Option<Vec<f32>>> {
        let key = format!("{id}.{part}");
        let Some(info) = self.0.tensors.get(&key) else { return Ok(None) };
        self.0.read_f32(&key, info, |_| ()).map(Some)
    }

    fn state(&self, id: &ParamId, dir: &Path) -> Result<OptimizerState> {
        let missing = |part: &str| -> Result<Vec<f32>> {
            bail_usage!("{}: found no tensor `{id}.{part}`", dir.join(OPTIMIZER).display())
        };
        let f32 = |part: &str| self.f32(id, part)?.map_or_else(|| missing(part), Ok);
        let (m, v) = (format!("{id}.m"), format!("{id}.v"));
        match (self.0.tensors.get(&m), self.0.tensors.get(&v)) {
            (Some(m_info), Some(v_info)) if m_info.dtype == Dtype::U8 && v_info.dtype == Dtype::U8 => {
                let bytes = |key: &str, info| {
                    let mut bytes = Vec::new();
                    self.0.scan(key, info, |piece| bytes.extend_from_slice(piece)).map(|()| bytes)
                };
                Ok(OptimizerState::Blockwise8 {
                    m: bytes(&m, m_info)?,
                    m_absmax: f32("m_absmax")?,
                    v: bytes(&v, v_info)?,
                    v_absmax: f32("v_absmax")?,
                })
            }
            _ => Ok(OptimizerState::F32 { m: f32("m")?, v: f32("v")? }),
        }
    }
}
