//! Output-directory checks: empty, this run's, or someone else's. A lock keeps a second process out while one trains.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::identity::Identity;
use super::record::{METRICS_FILE, RUN_FILE, RunSummary, STATE_FILE};
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL};
use crate::error::{Context, Result};
use crate::refuse;
use crate::report::warning;

const LOCK_FILE: &str = ".lock";

/// State of an output directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    Nothing,
    /// It was started.
    Unfinished,
    /// Its adapter is there.
    Finished(RunSummary),
}

/// Refuses a place where no run can write. Nothing is written.
pub fn check_writable(dir: &Path) -> Result<()> {
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
        .usage_context(|| format!("{}: cannot be written (output_dir): choose another", existing.display()))?;
    Ok(())
}

/// Looks at where a run may write: a directory that is empty or new, or holds the same run. Nothing is written.
/// Refused: anything else. `longer`: the same run with other `num_train_epochs` or `max_steps` is there to go on with.
pub fn check_output_dir(dir: &Path, identity: &Identity, longer: bool) -> Result<Found> {
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
        return Ok(Found::Nothing);
    };
    let recorded = run.get("identity").cloned().unwrap_or_default();
    let recorded: Identity = serde_json::from_value(recorded).usage_context(|| {
        format!("{}: a run of another version; choose another output_dir, or move that run away", dir.display())
    })?;
    if longer && identity.difference(&recorded).is_some() && identity.difference_beyond_length(&recorded).is_none() {
        return Ok(Found::Unfinished);
    }
    if let Some(difference) = identity.difference(&recorded) {
        refuse!(
            "{}: holds a different run: {difference}; choose another output_dir, or move that run away",
            dir.display()
        );
    }
    let written = [ADAPTER_CONFIG, ADAPTER_MODEL].iter().all(|name| dir.join(name).is_file());
    Ok(match run.get("finished").map(RunSummary::deserialize) {
        Some(Ok(finished)) if written => Found::Finished(finished),
        _ => Found::Unfinished,
    })
}

/// Removes the run that `dir` holds, `run.json` last, so that what is left of it is still known as a run. Other files
/// stay.
pub fn remove_run(dir: &Path) -> Result<()> {
    let what = |path: &Path| format!("{}: cannot be removed (overwrite_output_dir)", path.display());
    for (_, path) in super::checkpoints::list(dir)? {
        std::fs::remove_dir_all(&path).context(|| what(&path))?;
    }
    for name in [ADAPTER_MODEL, ADAPTER_CONFIG, STATE_FILE, METRICS_FILE, RUN_FILE] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(|| what(&path)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether `dir` holds a run, of whatever settings.
pub fn holds_run(dir: &Path) -> bool {
    dir.join(RUN_FILE).is_file()
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
        Ok(text) => serde_json::from_str(&text).usage_context(what).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).usage_context(what),
    }
}

/// What the run in this directory computes in, as [`Device::arithmetic`](crate::session::Device::arithmetic) told it;
/// none where there is no run.
pub fn recorded_arithmetic(dir: &Path) -> Result<Option<Option<String>>> {
    let run = read_run(dir)?;
    Ok(run.map(|run| run["identity"]["settings"]["compute"].as_str().map(str::to_owned)))
}

/// Held as long as a process works in an output directory; the system lets go of it however the process ends.
#[derive(Debug)]
pub struct OutputLock {
    _file: File,
}

impl OutputLock {
    /// Locks a directory that a run has worked in before; none if it is new. Refused: another process works in it.
    pub fn of_existing(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(LOCK_FILE);
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Self::lock(dir, file).map(Some),
            // `check_output_dir` has more to say about a file in its place.
            Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => Ok(None),
            Err(e) => Err(e).usage_context(|| format!("{}: cannot be written (output_dir)", path.display())),
        }
    }

    /// Makes the directory if need be, and locks it. Refused: another process works in it.
    pub fn create(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK_FILE);
        let open = || {
            std::fs::create_dir_all(dir)?;
            OpenOptions::new().write(true).create(true).truncate(false).open(&path)
        };
        Self::lock(dir, open().context(|| format!("{}: cannot be written", path.display()))?)
    }

    fn lock(dir: &Path, file: File) -> Result<Self> {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                refuse!(
                    "{}: another process is training in it; wait for it, or choose another output_dir",
                    dir.display()
                )
            }
            Err(TryLockError::Error(cause)) => warning!(
                "{}: its file system has no locks ({cause}): nothing keeps a second run out of it",
                dir.display()
            ),
        }
        Ok(Self { _file: file })
    }
}
