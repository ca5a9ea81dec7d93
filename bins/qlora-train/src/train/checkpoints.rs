//! The directories `checkpoint-<step>` of a run: each appears whole or not at all, whenever the process ends.
//!
//! A checkpoint is filled and synced in the run's temporary directory, named in `run.json`, then renamed. One that
//! replaces another of the same step (an interruption within the next step) sets the old one aside first: between the
//! two renames the old one is found under the name that [`recover`] knows. Only what `run.json` names is ever replaced
//! or removed, and of that only the files that the checkpoint's own `SHA256SUMS` names.

use super::names::{checkpoint, step_of};
use super::owned::{REPLACED, foreign, keep_foreign};
use super::record::RunRecord;
use crate::error::{Context, Error, Result};
use crate::files::atomic::{AtomicFiles, sync};
use crate::files::dir::{Dir, Kind};
use crate::files::failpoint;
use crate::report::warning;
use std::io;
use std::path::{Path, PathBuf};

/// Before the name of a checkpoint in the temporary directory
const REMOVED: &str = "removed-";

/// Names of checkpoints in `output`, by step, whatever they stand for; none if there is no such directory.
pub fn names(output: &Path) -> Result<Vec<String>> {
    found(output, |_| true)
}

/// The checkpoints in `output`, by step; none if there is no such directory. A link is none.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let names = found(output, |kind| kind == Kind::Directory)?;
    Ok(names.into_iter().filter_map(|name| Some((step_of(&name)?, output.join(name)))).collect())
}

fn found(output: &Path, wanted: impl Fn(Kind) -> bool) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        let dir = Dir::open(output)?;
        let mut names: Vec<String> = dir.names()?.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| step_of(name).is_some() && matches!(dir.kind(name), Ok(Some(kind)) if wanted(kind)));
        names.sort_by_key(|name| step_of(name));
        Ok(names)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.usage_context(|| format!("{}: cannot be read (output_dir)", output.display())),
    }
}

/// A checkpoint that is being made; removed if it is not put in place.
struct Partial<'a> {
    temporary: &'a Dir,
    name: &'a str,
    dir: Dir,
}

impl<'a> Partial<'a> {
    fn create(temporary: &'a Dir, name: &'a str) -> io::Result<Self> {
        // Files that a failed save could not remove.
        temporary.remove_all(name, &mut || ())?;
        Ok(Self { temporary, name, dir: temporary.create_sub(name)? })
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // Put in place, it is not there any more. The failure that led here is the one to tell.
        let _ = self.temporary.remove_all(self.name, &mut || ());
    }
}

/// Makes `checkpoint-<step>` of the files that `fill` adds; `SHA256SUMS` covers them all. Failed: a disk error, or
/// something else of the name; then nothing changed.
pub fn write(record: &mut RunRecord, step: u64, fill: impl FnOnce(&mut AtomicFiles) -> Result<()>) -> Result<PathBuf> {
    record.check_in_place()?;
    let name = checkpoint(step);
    let target = record.dir().join(&name);
    let what = || format!("{}: cannot be written", target.display());
    failpoint::point("checkpoint-begun", "").context(what)?;
    let found = record.dir().kind(&name).context(what)?;
    let replaces = match found {
        None => false,
        Some(Kind::Directory) if record.owned().checkpoints.contains(&name) => true,
        Some(_) => {
            return Err(Error::Failed(format!(
                "{}: found something there that is not of this run, expected nothing: move it away and resume",
                target.display()
            )));
        }
    };
    let dir = record.dir().clone();
    let temporary = record.temporary().clone();
    let partial = Partial::create(&temporary, &name).context(what)?;
    let mut files = AtomicFiles::within(&partial.dir, &partial.dir);
    fill(&mut files)?;
    files.add_sums()?;
    files.commit()?;
    failpoint::point("checkpoint-whole", "").context(what)?;
    record.own(&name)?;

    let aside = format!("{REPLACED}{name}");
    if replaces {
        temporary.remove_all(&aside, &mut || ()).context(what)?;
        rename(&dir, &name, &temporary, &aside).context(what)?;
        failpoint::moment("checkpoint-set-aside");
    }
    if let Err(error) = rename(&temporary, &name, &dir, &name) {
        if replaces {
            let what = || format!("{}: cannot be put back", target.display());
            temporary.rename(&aside, &dir, &name).context(what)?;
        }
        return Err(error).context(what);
    }
    sync(&dir)?;
    failpoint::moment("checkpoint-in-place");
    if replaces {
        let kept = keep_foreign(&temporary, &aside, &dir, &name);
        told(&target, kept.and_then(|()| remove_aside(&temporary, &aside)));
    }
    Ok(target)
}

fn rename(from: &Dir, name: &str, to: &Dir, new: &str) -> io::Result<()> {
    failpoint::point("rename", "checkpoint")?;
    from.rename(name, to, new)
}

/// Removes the oldest of the run's checkpoints up to `newest`, so that `keep` of them are left; `spared` is not
/// counted.
pub fn prune(record: &mut RunRecord, newest: u64, keep: Option<usize>, spared: Option<&str>) {
    let Some(keep) = keep else { return };
    let mut owned: Vec<(u64, String)> =
        record.owned().checkpoints.iter().filter_map(|name| Some((step_of(name)?, name.clone()))).collect();
    owned.retain(|(step, name)| *step <= newest && matches!(record.dir().kind(name), Ok(Some(Kind::Directory))));
    owned.sort();
    let surplus = owned.len().saturating_sub(keep);
    owned.truncate(surplus);
    for (_, name) in owned.into_iter().filter(|(_, name)| spared != Some(name)) {
        let path = record.dir().join(&name);
        match foreign(record.dir(), &name) {
            Ok(None) => told(&path, remove(record, &name)),
            Ok(Some(foreign)) => warning!(
                "{}: kept, although save_total_limit would remove it: it holds {}, which this run did not write",
                path.display(),
                foreign.to_string_lossy()
            ),
            Err(error) => warning!("{}: cannot be removed: {error}", path.display()),
        }
        // A directory that could not be removed is left to its owner.
        record.disown(&name);
    }
}

/// A failure to remove costs only room.
fn told(path: &Path, done: io::Result<()>) {
    if let Err(error) = done {
        warning!("{}: cannot be removed: {error}", path.display());
    }
}

/// In the temporary directory it is no checkpoint any more, however much of it is left.
fn remove(record: &RunRecord, name: &str) -> io::Result<()> {
    let aside = format!("{REMOVED}{name}");
    record.dir().rename(name, record.temporary(), &aside)?;
    failpoint::moment("removal-begun");
    remove_aside(record.temporary(), &aside)
}

fn remove_aside(temporary: &Dir, aside: &str) -> io::Result<()> {
    temporary.remove_all(aside, &mut || failpoint::moment("removal"))
}
