//! The directories `checkpoint-<step>` of a run: each appears whole or not at all, whenever the process ends.
//!
//! A checkpoint is filled and synced under a temporary name, then renamed. One that replaces another of the same step
//! (an interruption within the next step) sets the old one aside first: between the two renames the old one is found
//! under the name that [`recover`] knows.

use crate::error::{Context, Result};
use crate::files::atomic::{AtomicFiles, remove_stale_files, sync_dir};
use crate::files::failpoint;
use crate::files::hash::file_hash;
use crate::refuse;
use crate::report::warning;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// SHA-256 of the files that a resumed run reads, as `sha256sum` writes and checks them.
const SUMS: &str = "SHA256SUMS";
const PARTIAL: &str = "partial";
const REPLACED: &str = "replaced";
const REMOVED: &str = "removed";

pub fn name(step: u64) -> String {
    format!("checkpoint-{step}")
}

/// The hidden name of a checkpoint on its way out.
fn hidden(output: &Path, step: u64, state: &str) -> PathBuf {
    output.join(format!(".{}.{state}", name(step)))
}

/// Step of a directory `checkpoint-<step>`.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
    (self::name(step) == name).then_some(step)
}

/// The checkpoints in `output`, by step; none if there is no such directory.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for (name, path) in directories(output)? {
        found.extend(step_of(&name).map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

fn directories(output: &Path) -> Result<Vec<(String, PathBuf)>> {
    let read = || -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(output)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        Ok(found)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result.usage_context(|| format!("{}: cannot be read (output_dir)", output.display())),
    }
}

/// Puts a checkpoint back that was set aside by a process that ended before its successor was in place. Only for who
/// holds the directory's lock.
pub fn recover(output: &Path) -> Result<()> {
    for (name, path) in directories(output)? {
        let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(&format!(".{REPLACED}"))) else {
            continue;
        };
        let target = output.join(name);
        if step_of(name).is_some() && !target.exists() {
            fs::rename(&path, &target).context(|| format!("{}: cannot be put back", target.display()))?;
        }
    }
    Ok(())
}

/// Removes what a process that ended left under temporary names. Only for who holds the directory's lock.
pub fn remove_stale(output: &Path) -> Result<()> {
    remove_stale_files(output)?;
    for (name, path) in directories(output)? {
        let ours = [PARTIAL, REPLACED, REMOVED].iter().any(|state| name.ends_with(&format!(".{state}")));
        if name.starts_with(".checkpoint-") && ours {
            fs::remove_dir_all(&path)
                .context(|| format!("{}: what an earlier run left cannot be removed", path.display()))?;
        }
    }
    Ok(())
}

/// Makes `checkpoint-<step>` of what `fill` writes into the directory it is given; `checksummed` are the files whose
/// damage is to be noticed. Failed: a disk error; then nothing changed.
pub fn write(
    output: &Path,
    step: u64,
    checksummed: &[&str],
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let target = output.join(name(step));
    let what = || format!("{}: cannot be written", target.display());
    failpoint::point("checkpoint-begun", "").context(what)?;
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{}.", name(step)))
        .suffix(&format!(".{PARTIAL}"))
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(output)
        .context(what)?;
    fill(partial.path())?;
    write_sums(partial.path(), checksummed)?;
    failpoint::point("checkpoint-whole", "").context(what)?;

    let aside = hidden(output, step, REPLACED);
    let replaces = target.exists();
    if replaces {
        fs::rename(&target, &aside).context(what)?;
        failpoint::moment("checkpoint-set-aside");
    }
    if let Err(error) = fs::rename(partial.path(), &target) {
        if replaces {
            fs::rename(&aside, &target).context(|| format!("{}: cannot be put back", target.display()))?;
        }
        return Err(error).context(what);
    }
    // It is no longer there to be removed.
    let _ = partial.keep();
    sync_dir(output)?;
    failpoint::moment("checkpoint-in-place");
    if replaces {
        remove(&aside, &aside);
    }
    Ok(target)
}

fn write_sums(dir: &Path, checksummed: &[&str]) -> Result<()> {
    let sums = checksummed.iter().map(|name| Ok(format!("{}  {name}\n", file_hash(&dir.join(name))?)));
    let sums = sums.collect::<Result<String>>()?;
    let mut files = AtomicFiles::new(dir)?;
    files.add(SUMS, |to| to.write_all(sums.as_bytes()))?;
    files.commit()
}

/// Refuses a checkpoint of which a checksummed file is missing or holds other bytes than were written.
pub fn check_sums(dir: &Path, checksummed: &[&str]) -> Result<()> {
    let path = dir.join(SUMS);
    let Ok(text) = fs::read_to_string(&path) else {
        refuse!("{}: cannot be read: the checkpoint is damaged, or a directory of another program", path.display());
    };
    for name in checksummed {
        let file = dir.join(name);
        let Some(expected) = text.lines().find_map(|line| line.strip_suffix(&format!("  {name}"))) else {
            refuse!("{}: found no line of {name}: the checkpoint is damaged", path.display());
        };
        if !file.is_file() {
            refuse!("{}: found no such file: the checkpoint is half deleted", file.display());
        }
        let found = file_hash(&file)?;
        if found != expected {
            refuse!(
                "{}: found a SHA-256 of {found}, expected {expected}: the file changed after it was written, the \
                 checkpoint is damaged",
                file.display()
            );
        }
    }
    Ok(())
}

/// Removes the oldest checkpoints up to `newest`, so that `keep` of them are left; `spared` is not counted.
pub fn prune(output: &Path, newest: u64, keep: Option<usize>, spared: Option<&str>) -> Result<()> {
    let Some(keep) = keep else { return Ok(()) };
    let mut steps: Vec<u64> = list(output)?.into_iter().map(|(step, _)| step).filter(|&step| step <= newest).collect();
    let surplus = steps.len().saturating_sub(keep);
    steps.truncate(surplus);
    for step in steps.into_iter().filter(|&step| spared != Some(&name(step))) {
        remove(&output.join(name(step)), &hidden(output, step, REMOVED));
    }
    Ok(())
}

/// Under the name `aside` it is no checkpoint any more, however much of it is left. A failure costs only room.
fn remove(dir: &Path, aside: &Path) {
    let remove = || -> io::Result<()> {
        if dir != aside {
            fs::rename(dir, aside)?;
            failpoint::moment("removal-begun");
        }
        for entry in fs::read_dir(aside)? {
            let path = entry?.path();
            if path.is_file() {
                fs::remove_file(path)?;
                failpoint::moment("removal");
            }
        }
        fs::remove_dir_all(aside)
    };
    if let Err(error) = remove() {
        warning!("{}: cannot be removed: {error}", dir.display());
    }
}
