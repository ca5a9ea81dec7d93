//! The files a run leaves beside its adapter: `metrics.jsonl` as it goes, `trainer_state.json` at the end, and
//! `run.json`, which tells which run the directory belongs to.

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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// Where a run may write: a directory that is empty, new, or holds the same run. Nothing is written.
pub fn check_output_dir(dir: &Path, identity: &str) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        refuse!("{}: found a file, expected a directory (output_dir)", dir.display());
    }
    let path = dir.join(RUN_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let occupied = ["adapter_config.json", "adapter_model.safetensors", STATE_FILE, METRICS_FILE];
            if let Some(name) = occupied.iter().find(|name| dir.join(name).exists()) {
                refuse!(
                    "{}: found {name} without {RUN_FILE}: another program's run, or one of another version; choose \
                     another output_dir",
                    dir.display()
                );
            }
            return Ok(());
        }
        Err(e) => refuse!("{}: cannot read: {e}", path.display()),
    };
    let found: Value = serde_json::from_str(&text).or_refuse(|| format!("{}: not JSON", path.display()))?;
    if found.get("identity").and_then(Value::as_str) != Some(identity) {
        refuse!(
            "{}: holds a different run (other settings, data or base model); choose another output_dir, or move that \
             run away",
            dir.display()
        );
    }
    Ok(())
}

impl RunRecord {
    /// Makes the directory if need be, and starts the run's files anew.
    pub fn create(dir: &Path, identity: &str, settings: &Value) -> Result<Self> {
        check_output_dir(dir, identity)?;
        std::fs::create_dir_all(dir).or_refuse(|| format!("{}: cannot be made (output_dir)", dir.display()))?;
        let run = serde_json::json!({
            "identity": identity,
            "version": env!("CARGO_PKG_VERSION"),
            "settings": settings,
        });
        write_atomic(&dir.join(RUN_FILE), &run)?;
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
        write_atomic(&self.dir.join(STATE_FILE), &serde_json::to_value(state).expect("numbers and names serialise"))
    }
}

/// Through a temporary file in the same directory, so that a reader sees the old or the new content.
fn write_atomic(path: &Path, value: &Value) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().or_fail(|| format!("{}: cannot be written", path.display()))
}
