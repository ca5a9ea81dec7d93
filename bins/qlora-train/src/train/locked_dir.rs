//! The lock of an output directory: one process works in it.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::dir::{Dir, Kind};
use crate::report::warning;

pub(super) const LOCK_FILE: &str = ".lock";

/// An output directory that no other process works in, as long as this is held; the system lets go of it however the
/// process ends. The lock is on the directory itself, whatever becomes of its path, and on a file in it, for file
/// systems that cannot lock a directory.
#[derive(Debug)]
pub(super) struct LockedDir {
    dir: Dir,
    _lock: Option<File>,
}

impl LockedDir {
    /// Locks a directory that is there; none if it is not. Nothing is written. Refused: another process works in it.
    pub fn of_existing(path: &Path) -> Result<Option<Self>> {
        let what = || format!("{}: cannot be read (output_dir)", path.display());
        let dir = match Dir::open(path) {
            Ok(dir) => dir,
            // `check_writable` has more to say about a file in its place.
            Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => return Ok(None),
            Err(e) => return Err(e).usage_context(what),
        };
        let lock = match dir.kind(LOCK_FILE).usage_context(what)? {
            Some(Kind::File) => Some(
                dir.append_to(LOCK_FILE)
                    .usage_context(|| format!("{}: cannot be written (output_dir)", dir.join(LOCK_FILE).display()))?,
            ),
            _ => None,
        };
        Self::lock(dir, lock).map(Some)
    }

    /// Makes the directory if need be, and locks it. Refused: another process works in it.
    pub fn create(path: &Path) -> Result<Self> {
        let dir = Dir::create(path).context(|| format!("{}: the directory cannot be made", path.display()))?;
        Self::lock(dir, None)?.with_lock_file()
    }

    /// Makes the file that is locked beside the directory.
    pub fn with_lock_file(self) -> Result<Self> {
        if self._lock.is_some() {
            return Ok(self);
        }
        let path = self.dir.join(LOCK_FILE);
        let file = self.dir.append_to(LOCK_FILE).context(|| format!("{}: cannot be written", path.display()))?;
        Self::lock(self.dir, Some(file))
    }

    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    fn lock(dir: Dir, file: Option<File>) -> Result<Self> {
        let mut cause = None;
        let mut locked = false;
        for handle in [Some(dir.handle()), file.as_ref()].into_iter().flatten() {
            match handle.try_lock() {
                Ok(()) => locked = true,
                Err(TryLockError::WouldBlock) => bail_usage!(
                    "{}: another process is training in it; wait for it, or choose another output_dir",
                    dir.path().display()
                ),
                Err(TryLockError::Error(error)) => cause = Some(error),
            }
        }
        if let Some(cause) = cause.filter(|_| !locked && file.is_some()) {
            warning!(
                "{}: its file system has no locks ({cause}): nothing keeps a second run out of it",
                dir.path().display()
            );
        }
        if !dir.is_in_place().usage_context(|| format!("{}: cannot be read", dir.path().display()))? {
            bail_usage!("{}: was removed or replaced just now: begin again", dir.path().display());
        }
        Ok(Self { dir, _lock: file })
    }
}
