//! The files a run leaves beside its adapter: `metrics.jsonl` as it goes, `trainer_state.json` at the end, and
//! `run.json`, which tells which run the directory belongs to.

use crate::error::{Context, Result};
use crate::files::atomic::AtomicFiles;
use crate::files::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
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
    /// Validation loss of each file, where there are several
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_file_losses: Option<BTreeMap<String, f64>>,
    /// Validation loss of each task, where there are several
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_task_losses: Option<BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Learning rate of A
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate_b: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tokens_per_second: Option<f64>,
    /// Since this process began to train.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub num_input_tokens_seen: Option<u64>,
    /// Held where the run works.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_bytes: Option<u64>,
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
    /// The lowest validation loss so far.
    pub best_metric: Option<f64>,
    /// The directory in `output_dir` that it was saved in.
    pub best_model_checkpoint: Option<String>,
    pub num_input_tokens_seen: u64,
}

/// Result of a finished run, kept in `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    pub steps: u64,
    /// Mean over the supervised tokens of the whole run.
    pub train_loss: f64,
    /// Validation loss of the adapter that was written
    pub eval_loss: Option<f64>,
    /// Non-padding tokens over the steps after the first; None where there was only one.
    pub tokens_per_second: Option<f64>,
    pub peak_bytes: u64,
}

/// The run that a directory belongs to, and its metrics file.
pub struct RunRecord {
    dir: PathBuf,
    metrics: File,
    /// `run.json`
    run: Value,
}

impl RunRecord {
    /// Makes the directory if need be, and starts the run's files anew: `history` is what a resumed run has logged
    /// already.
    pub fn create(dir: &Path, run: Value, history: &[LogEntry]) -> Result<Self> {
        let mut files = AtomicFiles::new(dir)?;
        // First what says whose the others are: a process that is killed in between leaves a run that goes on.
        add_json(&mut files, RUN_FILE, &run)?;
        files.add(METRICS_FILE, |to| history.iter().try_for_each(|entry| to.write_all(line(entry).as_bytes())))?;
        files.commit()?;
        let path = dir.join(METRICS_FILE);
        let metrics = OpenOptions::new().append(true).open(&path);
        let metrics = metrics.context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self { dir: dir.to_owned(), metrics, run })
    }

    pub fn log(&mut self, entry: &LogEntry) -> Result<()> {
        let line = line(entry);
        let mut bytes = line.as_bytes();
        while !bytes.is_empty() {
            let written = failpoint::write(&self.metrics, METRICS_FILE, bytes)
                .context(|| format!("{}: cannot be written", self.dir.join(METRICS_FILE).display()))?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    pub fn write_state(&self, state: &TrainerState) -> Result<()> {
        write_state(&self.dir, state)
    }

    /// Says that the run's adapter is there; the last thing a run does.
    pub fn finish(&mut self, summary: &RunSummary) -> Result<()> {
        self.run["finished"] = serde_json::to_value(summary).expect("numbers serialize");
        write_json(&self.dir, RUN_FILE, &self.run)
    }
}

fn line(entry: &LogEntry) -> String {
    serde_json::to_string(entry).expect("numbers and names serialize") + "\n"
}

/// `trainer_state.json` in any directory.
pub fn write_state(dir: &Path, state: &TrainerState) -> Result<()> {
    write_json(dir, STATE_FILE, state)
}

/// A reader sees the old content or the new one.
pub fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let mut files = AtomicFiles::new(dir)?;
    add_json(&mut files, name, value)?;
    files.commit()
}

fn add_json(files: &mut AtomicFiles, name: &str, value: &impl Serialize) -> Result<()> {
    files.add(name, |to| {
        serde_json::to_writer_pretty(&mut *to, value)?;
        to.write_all(b"\n")
    })
}
