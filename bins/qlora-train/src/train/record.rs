//! The files a run leaves beside its adapter: `metrics.jsonl` as it goes, `trainer_state.json` at the end, and
//! `run.json`, which tells which run the directory belongs to and what in it is the run's own.

use super::locked_dir::LockedDir;
use super::names::{METRICS_FILE, RUN_FILE, STATE_FILE};
use super::owned::{OWNED_KEY, Owned, remove_temporary};
use crate::error::{Context, Error, Result};
use crate::files::atomic::{AtomicFiles, sync, write_synced};
use crate::files::dir::Dir;
use crate::files::failpoint;
pub use crate::run_report::{LogEntry, RunSummary};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{self, ErrorKind, Write};

/// `trainer_state.json`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    pub global_step: u64,
    pub epoch: f64,
    pub max_steps: u64,
    pub log_history: Vec<LogEntry>,
    /// The best figure of `metric_for_best_model` so far.
    pub best_metric: Option<f64>,
    /// The directory in `output_dir` that it was saved in.
    pub best_model_checkpoint: Option<String>,
    pub num_input_tokens_seen: u64,
}

/// The run that a directory belongs to: its lock, its record, its metrics file, and the place where its files are made.
pub(super) struct RunRecord {
    output: LockedDir,
    /// Holds what is being written or removed
    temporary: Dir,
    metrics: File,
    /// `run.json`
    run: Value,
    owned: Owned,
}

impl RunRecord {
    /// Starts the run's files again: `history` is the log of a resumed run so far. Files that an earlier process of the
    /// run left half-written or half-removed are removed.
    pub fn create(output: LockedDir, run: Value, history: &[LogEntry]) -> Result<Self> {
        let dir = output.dir();
        let mut owned = Owned::recorded_in(dir.path())?.unwrap_or_else(Owned::new);
        remove_temporary(dir, &owned)?;
        owned.retain_present(dir);
        let recorded = with_owned(run.clone(), &owned);
        if dir.kind(RUN_FILE).context(|| dir.join(RUN_FILE).display().to_string())?.is_none() {
            // First what says whose the others are: a process that is killed at any moment leaves nothing unnamed.
            write_first(dir, &recorded)?;
        }
        let what = || format!("{}: the directory cannot be made", dir.join(&owned.temporary).display());
        let temporary = dir.create_sub(&owned.temporary).context(what)?;
        let begin = || -> Result<File> {
            let mut files = AtomicFiles::within(dir, &temporary);
            add_json(&mut files, RUN_FILE, &recorded)?;
            files.add(METRICS_FILE, |to| history.iter().try_for_each(|entry| to.write_all(line(entry).as_bytes())))?;
            files.commit()?;
            let metrics = dir.append_to(METRICS_FILE);
            metrics.context(|| format!("{}: cannot be written", dir.join(METRICS_FILE).display()))
        };
        // The failure is the one to tell.
        let metrics = begin().inspect_err(|_| drop(dir.remove_empty(&owned.temporary)))?;
        Ok(Self { output, temporary, metrics, run, owned })
    }

    pub fn dir(&self) -> &Dir {
        self.output.dir()
    }

    /// The directory for what is not complete, or no longer.
    pub fn temporary(&self) -> &Dir {
        &self.temporary
    }

    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    /// Files of the run that appear together. Failed: the directory is another one by now.
    pub fn files(&self) -> Result<AtomicFiles> {
        self.check_in_place()?;
        Ok(AtomicFiles::within(self.dir(), &self.temporary))
    }

    /// Fails if the directory was removed, moved or replaced while the run worked in it: what is written to it would be
    /// lost, or found by nobody.
    pub fn check_in_place(&self) -> Result<()> {
        let path = self.dir().path().display();
        match self.dir().is_in_place().context(|| format!("{path}: cannot be read"))? {
            true => Ok(()),
            false => Err(Error::Failed(format!(
                "{path}: the directory that the run worked in was removed, moved or replaced (output_dir); the run \
                 stops, nothing more is written"
            ))),
        }
    }

    /// Names a checkpoint as the run's own, before it is there.
    pub fn own(&mut self, checkpoint: &str) -> Result<()> {
        match self.owned.checkpoints.insert(checkpoint.to_owned()) {
            true => self.write_run(),
            false => Ok(()),
        }
    }

    /// The run has no more to do with a checkpoint. It is left to the next write to say so.
    pub fn disown(&mut self, checkpoint: &str) {
        self.owned.checkpoints.remove(checkpoint);
    }

    fn write_run(&self) -> Result<()> {
        let mut files = self.files()?;
        add_json(&mut files, RUN_FILE, &with_owned(self.run.clone(), &self.owned))?;
        files.commit()
    }

    pub fn log(&mut self, entry: &LogEntry) -> Result<()> {
        self.check_in_place()?;
        let line = line(entry);
        let mut bytes = line.as_bytes();
        while !bytes.is_empty() {
            match failpoint::write(&self.metrics, METRICS_FILE, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let path = self.dir().join(METRICS_FILE);
                    return Err(error).context(|| format!("{}: cannot be written", path.display()));
                }
            }
        }
        Ok(())
    }

    pub fn write_state(&self, state: &TrainerState) -> Result<()> {
        let mut files = self.files()?;
        add_json(&mut files, STATE_FILE, state)?;
        files.commit()
    }

    /// `run.json`
    pub fn run(&self) -> &Value {
        &self.run
    }

    /// Says that the run's adapter is there; the last thing a run does.
    pub fn finish(&mut self, summary: &RunSummary) -> Result<()> {
        self.run["finished"] = serde_json::to_value(summary).expect("numbers serialize");
        self.write_run()
    }
}

/// However a run ends, an empty directory of temporary files is not left.
impl Drop for RunRecord {
    fn drop(&mut self) {
        // One that is not empty is removed by the next process of the run.
        let _ = self.dir().remove_empty(&self.owned.temporary);
    }
}

fn with_owned(mut run: Value, owned: &Owned) -> Value {
    run[OWNED_KEY] = serde_json::to_value(owned).expect("names serialize");
    run
}

/// `run.json` where there is none: it appears whole, and nothing is left if the process is killed before.
fn write_first(dir: &Dir, run: &Value) -> Result<()> {
    let Ok(file) = dir.create_nameless() else {
        // A file system without files of no name: a process that is killed here leaves a small hidden one.
        let mut files = AtomicFiles::within(dir, dir);
        add_json(&mut files, RUN_FILE, run)?;
        return files.commit();
    };
    let write = || -> io::Result<()> {
        write_synced(&file, RUN_FILE, |to| write_json(to, run))?;
        failpoint::point("rename", RUN_FILE)?;
        dir.link(&file, RUN_FILE)?;
        failpoint::point("renamed", RUN_FILE)
    };
    write().context(|| format!("{}: cannot be written", dir.join(RUN_FILE).display()))?;
    sync(dir)
}

fn line(entry: &LogEntry) -> String {
    serde_json::to_string(entry).expect("numbers and names serialize") + "\n"
}

/// Adds a file of pretty JSON.
pub(super) fn add_json(files: &mut AtomicFiles, name: &str, value: &impl Serialize) -> Result<()> {
    files.add(name, |to| write_json(to, value))
}

fn write_json(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *to, value)?;
    to.write_all(b"\n")
}
