//! The files a run leaves beside its adapter: `metrics.jsonl` as it goes, `trainer_state.json` at the end, and
//! `run.json`, which tells which run the directory belongs to.

use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, AtomicFiles};
use crate::checkpoint::BaseName;
use crate::error::{Context, Result};
use crate::refuse;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

pub const RUN_FILE: &str = "run.json";
pub const METRICS_FILE: &str = "metrics.jsonl";
pub const STATE_FILE: &str = "trainer_state.json";

/// One logged step, as transformers writes it in `log_history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    pub step: u64,
    pub epoch: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Of A.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate_b: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_second: Option<f64>,
}

impl LogEntry {
    /// Without figures.
    pub fn new(step: u64, epoch: f64) -> Self {
        Self { step, epoch, ..Self::default() }
    }
}

/// `trainer_state.json`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    pub global_step: u64,
    pub epoch: f64,
    pub max_steps: u64,
    pub log_history: Vec<LogEntry>,
    pub best_metric: Option<f64>,
    pub best_model_checkpoint: Option<String>,
    pub num_input_tokens_seen: u64,
}

/// Which run a directory belongs to, and its metrics file.
pub struct RunRecord {
    dir: PathBuf,
    metrics: File,
}

/// Where a run may write: a directory that is empty, new and writable, or holds the same run. Nothing is written.
/// Refused: anything else.
pub fn check_output_dir(dir: &Path, identity: &str) -> Result<()> {
    // The directory itself, or the nearest one above that is there already.
    let Some(existing) = dir.ancestors().map(or_here).find(|path| path.symlink_metadata().is_ok()) else {
        refuse!("{}: found no directory above it, expected one that it can be made in (output_dir)", dir.display());
    };
    if !existing.is_dir() {
        refuse!(
            "{}: found something that is not a directory, expected one (output_dir): choose another",
            existing.display()
        );
    }
    // A file without a name: it never appears in the directory.
    tempfile::tempfile_in(existing)
        .or_refuse(|| format!("{}: cannot be written (output_dir): choose another", existing.display()))?;

    let Some(run) = read_run(dir)? else {
        let mut occupied = vec![ADAPTER_CONFIG, ADAPTER_MODEL, STATE_FILE, METRICS_FILE];
        // A model: its tokenizer would be overwritten.
        occupied.extend(["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]);
        if let Some(name) = occupied.iter().find(|name| dir.join(name).symlink_metadata().is_ok()) {
            refuse!(
                "{}: found {name} without {RUN_FILE}: a model, another program's run, or one of another version; \
                 choose another output_dir",
                dir.display()
            );
        }
        return Ok(());
    };
    if run.get("identity").and_then(Value::as_str) != Some(identity) {
        refuse!(
            "{}: holds a different run (other settings, data or base model); choose another output_dir, or move that \
             run away",
            dir.display()
        );
    }
    Ok(())
}

/// The part of [`check_output_dir`] that can only be told once the base is loaded: that a run in `dir` was one of the
/// same weights.
pub fn check_recorded_base(dir: &Path, fingerprint: &str) -> Result<()> {
    let Some(run) = read_run(dir)? else { return Ok(()) };
    let found = run.pointer("/base/fingerprint").and_then(Value::as_str).unwrap_or("none");
    if found != fingerprint {
        refuse!(
            "{}: holds a run on another base (fingerprint {found}, this model has {fingerprint}); choose another \
             output_dir, or move that run away",
            dir.display()
        );
    }
    Ok(())
}

/// "" stands for the working directory.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// `run.json`, where there is one.
fn read_run(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join(RUN_FILE);
    let what = || format!("{}: cannot be read as the record of a run; choose another output_dir", path.display());
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).or_refuse(what).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).or_refuse(what),
    }
}

impl RunRecord {
    /// Makes the directory if need be, and starts the run's files anew.
    pub fn create(
        dir: &Path,
        identity: &str,
        base: &BaseName,
        base_fingerprint: &str,
        settings: &Value,
    ) -> Result<Self> {
        let run = serde_json::json!({
            "identity": identity,
            "base": {"name": base.name, "revision": base.revision, "fingerprint": base_fingerprint},
            "version": env!("CARGO_PKG_VERSION"),
            "settings": settings,
        });
        write_json(dir, RUN_FILE, &run)?;
        let path = dir.join(METRICS_FILE);
        let metrics = File::create(&path).or_fail(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { dir: dir.to_owned(), metrics })
    }

    pub fn log(&mut self, entry: &LogEntry) -> Result<()> {
        let line = serde_json::to_string(entry).expect("numbers and names serialise") + "\n";
        self.metrics
            .write_all(line.as_bytes())
            .or_fail(|| format!("{}: cannot be written", self.dir.join(METRICS_FILE).display()))
    }

    pub fn finish(&self, state: &TrainerState) -> Result<()> {
        write_json(&self.dir, STATE_FILE, state)
    }
}

/// A reader sees the old content or the new one.
fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let mut files = AtomicFiles::new(dir)?;
    files.add(name, |to| {
        serde_json::to_writer_pretty(&mut *to, value)?;
        to.write_all(b"\n")
    })?;
    files.commit()
}
