//! Ownership in an output directory: the names that the record of a run gives, and the files of a checkpoint.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::{RUN_FILE, step_of};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::atomic::{MAX_SUMS_BYTES, SUMS, parse_sums};
use crate::files::dir::{Dir, Kind, unique};
use crate::files::failpoint;
use crate::files::json::read_bounded;

/// Key of [`Owned`] in `run.json`
pub const OWNED_KEY: &str = "owned";
/// Settings and hashes of a run: the files of a data set may be many.
pub const MAX_RUN_BYTES: u64 = 256 << 20;
/// Before the name of a checkpoint in the temporary directory
pub const REPLACED: &str = "replaced-";

/// Directories that are the run's own, beside files of fixed names: nothing else is ever replaced or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owned {
    /// Directory of files that are being written or removed
    pub temporary: String,
    /// Directories that the run wrote, or was about to write
    pub checkpoints: BTreeSet<String>,
}

impl Owned {
    const PREFIX: &str = ".run-";

    pub fn new() -> Self {
        Self { temporary: format!("{}{}", Self::PREFIX, unique()), checkpoints: BTreeSet::new() }
    }

    /// Names that the run in `dir` owns. Refused: names that this program does not give.
    pub fn recorded_in(dir: &Path) -> Result<Option<Self>> {
        let Some(run) = read_run(dir)? else { return Ok(None) };
        let Some(owned) = run.get(OWNED_KEY) else { return Ok(None) };
        let what = || format!("{}: key `{OWNED_KEY}`", dir.join(RUN_FILE).display());
        let owned = Self::deserialize(owned).usage_context(what)?;
        let drawn = owned.temporary.strip_prefix(Self::PREFIX);
        let is_ours = drawn.is_some_and(|drawn| drawn.len() == 16 && drawn.bytes().all(|b| b.is_ascii_hexdigit()));
        let others = owned.checkpoints.iter().find(|name| step_of(name).is_none());
        match others.or((!is_ours).then_some(&owned.temporary)) {
            None => Ok(Some(owned)),
            Some(name) => {
                bail_usage!("{}: found {name:?}, which is no name of this program's; choose another output_dir", what())
            }
        }
    }

    /// Forgets checkpoints that are no longer there.
    pub fn retain_present(&mut self, dir: &Dir) {
        self.checkpoints.retain(|name| matches!(dir.kind(name), Ok(Some(Kind::Directory))));
    }
}

/// `run.json`, where there is one.
pub fn read_run(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join(RUN_FILE);
    let what = || format!("{}: cannot be read as the record of a run; choose another output_dir", path.display());
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        _ => serde_json::from_slice(&read_bounded(&path, MAX_RUN_BYTES)?).usage_context(what).map(Some),
    }
}

/// Puts a checkpoint back that was set aside by a process that ended before its successor was in place. Only for who
/// holds the directory's lock.
pub fn recover(dir: &Dir) -> Result<()> {
    let Some(owned) = Owned::recorded_in(dir.path())? else { return Ok(()) };
    let what = |name: &str| format!("{}: cannot be put back", dir.join(name).display());
    let Some(temporary) = open_temporary(dir, &owned)? else { return Ok(()) };
    for name in &owned.checkpoints {
        let aside = format!("{REPLACED}{name}");
        let set_aside = temporary.kind(&aside).context(|| what(name))? == Some(Kind::Directory);
        if set_aside && dir.kind(name).context(|| what(name))?.is_none() {
            temporary.rename(&aside, dir, name).context(|| what(name))?;
        }
    }
    Ok(())
}

/// The temporary directory of a run. None: there is no directory of the name.
fn open_temporary(dir: &Dir, owned: &Owned) -> Result<Option<Dir>> {
    let what = || format!("{}: cannot be read", dir.join(&owned.temporary).display());
    match dir.kind(&owned.temporary).context(what)? {
        Some(Kind::Directory) => dir.sub(&owned.temporary).context(what).map(Some),
        _ => Ok(None),
    }
}

/// Removes what a process that ended left half-written or half-removed. Only for who holds the directory's lock.
pub fn remove_temporary(dir: &Dir, owned: &Owned) -> Result<()> {
    let Some(temporary) = open_temporary(dir, owned)? else { return Ok(()) };
    let what = || format!("{}: what an earlier process left cannot be removed", temporary.path().display());
    // Files that a user put into a checkpoint which was replaced go on in its successor.
    for name in &owned.checkpoints {
        let aside = format!("{REPLACED}{name}");
        if temporary.kind(&aside).context(what)? == Some(Kind::Directory) {
            keep_foreign(&temporary, &aside, dir, name).context(what)?;
        }
    }
    dir.remove_all(&owned.temporary, &mut || failpoint::moment("removal")).context(what)
}

/// An entry of a checkpoint that its `SHA256SUMS` does not name, so that it is not the run's. Without the list none is.
pub fn foreign(dir: &Dir, name: &str) -> Result<Option<OsString>> {
    let find = || -> io::Result<Option<OsString>> {
        let checkpoint = dir.sub(name)?;
        let own = own_files(&checkpoint)?;
        Ok(foreign_in(&checkpoint, &own)?.into_iter().next())
    };
    find().context(|| format!("{}: cannot be read", dir.join(name).display()))
}

fn own_files(checkpoint: &Dir) -> io::Result<Vec<String>> {
    if checkpoint.kind(SUMS)? != Some(Kind::File) {
        return Ok(Vec::new());
    }
    let mut text = String::new();
    match checkpoint.open_file(SUMS)?.take(MAX_SUMS_BYTES).read_to_string(&mut text) {
        Ok(_) => {}
        // No list of ours.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    Ok(parse_sums(&text).into_iter().map(|(_, name)| name.to_owned()).chain([SUMS.to_owned()]).collect())
}

fn foreign_in(checkpoint: &Dir, own: &[String]) -> io::Result<Vec<OsString>> {
    let mut foreign = Vec::new();
    for name in checkpoint.names()? {
        let listed = name.to_str().is_some_and(|name| own.iter().any(|own| own == name));
        if !listed || checkpoint.kind(&name)? != Some(Kind::File) {
            foreign.push(name);
        }
    }
    Ok(foreign)
}

/// Moves what is not the run's from a checkpoint that was replaced into its successor.
pub fn keep_foreign(temporary: &Dir, aside: &str, dir: &Dir, name: &str) -> io::Result<()> {
    let old = temporary.sub(aside)?;
    let foreign = foreign_in(&old, &own_files(&old)?)?;
    if foreign.is_empty() {
        return Ok(());
    }
    let new = dir.sub(name)?;
    for name in foreign {
        if new.kind(&name)?.is_none() {
            old.rename(&name, &new, &name)?;
        }
    }
    Ok(())
}
