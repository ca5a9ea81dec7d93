//! Output-directory checks: empty, this run's, or someone else's.

use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::checkpoints;
use super::identity::Identity;
use super::locked_dir::LOCK_FILE;
use super::names::{EVENTS_DIR, METRICS_FILE, RUN_FILE, STATE_FILE, checkpoint, step_of};
use super::owned::{Owned, foreign, read_run};
use super::record::RunSummary;
use super::resume::begin_with;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, CARD, CURVE, TOKENIZER_FILES};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::atomic::{SUMS, find_damage};
use crate::files::dir::{Dir, Kind};
use crate::run_report::tensorboard::is_own;
use crate::run_report::{DETAILS_FILE, REPORT_FILE};

/// Files of a run that are removed with it
const FILES: [&str; 8] =
    [ADAPTER_MODEL, ADAPTER_CONFIG, STATE_FILE, METRICS_FILE, REPORT_FILE, DETAILS_FILE, SUMS, RUN_FILE];

/// State of an output directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    Nothing,
    /// It was started.
    Unfinished,
    /// Its adapter is there.
    Finished(RunSummary),
}

/// Looks at where a run may write: a directory that is empty or new, or holds the same run. Nothing is written.
/// Refused: anything else. `longer`: the same run with other `num_train_epochs` or `max_steps` is there to go on with.
pub fn check_output_dir(dir: &Path, identity: &Identity, longer: bool) -> Result<Found> {
    let Some(run) = read_run(dir)? else {
        let mut occupied =
            vec![ADAPTER_CONFIG, ADAPTER_MODEL, STATE_FILE, METRICS_FILE, REPORT_FILE, DETAILS_FILE, SUMS];
        // A model: its tokenizer would be overwritten.
        occupied.extend(["config.json"].iter().chain(&TOKENIZER_FILES));
        if let Some(name) = occupied.iter().find(|name| dir.join(name).symlink_metadata().is_ok()) {
            bail_usage!(
                "{}: found {name} without {RUN_FILE}: a model, another program's run, or one of another version; \
                 choose another output_dir",
                dir.display()
            );
        }
        if let Some(name) = checkpoints::names(dir)?.first() {
            bail_usage!(
                "{}: found {name} without {RUN_FILE}: a checkpoint of another run, or not of this program; choose another \
                 output_dir",
                dir.display()
            );
        }
        return Ok(Found::Nothing);
    };
    let recorded = run.get("identity").cloned().unwrap_or_default();
    let recorded: Identity = serde_json::from_value(recorded).usage_context(|| {
        format!("{}: a run of another version; choose another output_dir, or move that run away", dir.display())
    })?;
    let (difference, beyond_length) = (identity.difference(&recorded), identity.difference_beyond_length(&recorded));
    if longer && difference.is_some() && beyond_length.is_none() {
        return Ok(Found::Unfinished);
    }
    // A length that may change is no reason.
    let reason = if longer { &beyond_length } else { &difference };
    if let Some(difference) = reason {
        let goes_on = match beyond_length {
            Some(_) => String::new(),
            None if checkpoints::list(dir)?.is_empty() => format!("; {}", begin_with(dir)),
            None => "; `--resume-from-checkpoint` goes on with it to the new length".to_owned(),
        };
        bail_usage!(
            "{}: holds a different run: {difference}; choose another output_dir, or move that run away{goes_on}",
            dir.display()
        );
    }
    let written = [ADAPTER_CONFIG, ADAPTER_MODEL].iter().all(|name| dir.join(name).symlink_metadata().is_ok());
    match run.get("finished").map(RunSummary::deserialize) {
        Some(Ok(finished)) if written => {
            check_finished(dir)?;
            Ok(Found::Finished(finished))
        }
        _ => Ok(Found::Unfinished),
    }
}

/// Refuses a finished run whose files are not those that were written. The model card and its picture may be edited.
fn check_finished(dir: &Path) -> Result<()> {
    match find_damage(dir, &[ADAPTER_CONFIG, ADAPTER_MODEL], &[CARD, CURVE])? {
        None => Ok(()),
        Some(damage) => bail_usage!(
            "{damage}; the run in {} is finished, but its adapter is damaged or was changed: remove {} to write it anew \
             (with --resume-from-checkpoint from the last checkpoint), or choose another output_dir",
            dir.display(),
            dir.join(ADAPTER_CONFIG).display()
        ),
    }
}

/// Refuses names of checkpoints that the run would come to write, from `step` on, and that are not its own.
pub(super) fn check_room(dir: &Path, step: u64, total: u64) -> Result<()> {
    let owned = Owned::recorded_in(dir)?.unwrap_or_else(Owned::new);
    let reached = |name: &&String| step_of(name).is_some_and(|found| step < found && found <= total);
    // Something else may have taken the place of one that is named.
    let whole: Vec<String> = checkpoints::list(dir)?.into_iter().map(|(found, _)| checkpoint(found)).collect();
    for name in checkpoints::names(dir)?.iter().filter(reached) {
        let why = match (owned.checkpoints.contains(name), whole.contains(name)) {
            (true, true) => continue,
            (false, _) => format!("{RUN_FILE} does not name it"),
            (true, false) => "it is no directory".to_owned(),
        };
        bail_usage!(
            "{}: is not of this run ({why}), and the run may come to write there: move it away, or choose another \
             output_dir",
            dir.join(name).display()
        );
    }
    Ok(())
}

/// Refuses a directory in the place of a file that the run puts there, at its end at the latest, and anything but a
/// file in that of its lock. With `removes` the files of an earlier run have to be removable too.
pub(super) fn check_names(dir: &Dir, removes: bool) -> Result<()> {
    let kind = |name: &str| {
        let what = || format!("{}: cannot be read (output_dir)", dir.join(name).display());
        dir.kind(name).usage_context(what)
    };
    // A report that cannot be written ends no run.
    let replaced = FILES.iter().filter(|name| removes || ![REPORT_FILE, DETAILS_FILE].contains(name));
    for name in replaced.chain(&TOKENIZER_FILES) {
        if kind(name)? == Some(Kind::Directory) {
            bail_usage!(
                "{}: found a directory, expected a file of the run, or nothing: move it away, or choose another output_dir",
                dir.join(name).display()
            );
        }
    }
    if kind(LOCK_FILE)?.is_some_and(|found| found != Kind::File) {
        bail_usage!(
            "{}: found something that is not a regular file, expected the run's lock, or nothing: move it away, or choose \
             another output_dir",
            dir.join(LOCK_FILE).display()
        );
    }
    Ok(())
}

/// Refuses a run that cannot be removed as a whole without removing what is not its own.
pub(super) fn check_removable(dir: &Path) -> Result<()> {
    let open = Dir::open(dir).usage_context(|| format!("{}: cannot be read (output_dir)", dir.display()))?;
    let owned = Owned::recorded_in(dir)?.unwrap_or_else(Owned::new);
    for name in checkpoints::names(dir)? {
        let path = dir.join(&name);
        if !owned.checkpoints.contains(&name) {
            bail_usage!(
                "{}: is not of the run there ({RUN_FILE} does not name it), so overwrite_output_dir does not remove it: move \
                 it away",
                path.display()
            );
        }
        let found = open.kind(&name).usage_context(|| format!("{}: cannot be read", path.display()))?;
        if found != Some(Kind::Directory) || open.is_mount(&name) {
            bail_usage!(
                "{}: found something else in the place of a checkpoint of the run there, which overwrite_output_dir does \
                 not remove: move it away",
                path.display()
            );
        }
        if let Some(foreign) = foreign(&open, &name)? {
            bail_usage!(
                "{}: was not written by the run there, so overwrite_output_dir does not remove it: move it away",
                path.join(foreign).display()
            );
        }
    }
    Ok(())
}

/// Removes the run that `dir` holds, `run.json` last, so that what is left of it is still known as a run. Other files
/// stay.
pub(super) fn remove_run(dir: &Dir) -> Result<()> {
    let what = |name: &str| format!("{}: cannot be removed (overwrite_output_dir)", dir.join(name).display());
    if let Some(owned) = Owned::recorded_in(dir.path())? {
        for name in owned.checkpoints.iter().chain([&owned.temporary]) {
            // A link of the name is not of the run.
            if dir.kind(name).context(|| what(name))? == Some(Kind::Directory) {
                dir.remove_all(name, &mut || ()).context(|| what(name))?;
            }
        }
    }
    remove_events(dir).context(|| what(EVENTS_DIR))?;
    for name in FILES {
        dir.remove_file(name).context(|| what(name))?;
    }
    Ok(())
}

/// Removes TensorBoard's event files that this program wrote, and their directory if nothing else is in it.
fn remove_events(dir: &Dir) -> io::Result<()> {
    if dir.kind(EVENTS_DIR)? != Some(Kind::Directory) {
        return Ok(());
    }
    let events = dir.sub(EVENTS_DIR)?;
    for name in events.names()?.iter().filter(|name| name.to_str().is_some_and(is_own)) {
        events.remove_file(name)?;
    }
    // Files of others stay, and it with them.
    let _ = dir.remove_empty(EVENTS_DIR);
    Ok(())
}

/// True if `dir` holds a run, of any settings.
pub fn holds_run(dir: &Path) -> bool {
    dir.join(RUN_FILE).is_file()
}

/// The part of [`check_output_dir`] that can only be told once the base is loaded: that a run in `dir` was one of the
/// same weights.
pub fn check_recorded_base(dir: &Path, fingerprint: &str) -> Result<()> {
    let Some(run) = read_run(dir)? else { return Ok(()) };
    let found = run.pointer("/base/fingerprint").and_then(Value::as_str).unwrap_or("none");
    if found != fingerprint {
        bail_usage!(
            "{}: holds a run on another base (fingerprint {found}, this model has {fingerprint}); choose another \
             output_dir, or move that run away",
            dir.display()
        );
    }
    Ok(())
}

/// Arithmetic of the run in this directory, as [`Device::arithmetic`](crate::session::Device::arithmetic) named it;
/// none where there is no run.
pub fn recorded_arithmetic(dir: &Path) -> Result<Option<Option<String>>> {
    let run = read_run(dir)?;
    Ok(run.map(|run| run["identity"]["settings"]["compute"].as_str().map(str::to_owned)))
}
