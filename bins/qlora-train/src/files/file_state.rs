//! The state of an opened file, to detect changes without reading its bytes: its size, its inode and the times of its
//! last changes.
//!
//! The time of change, unlike that of the last write, cannot be set by a program: every change to a file advances it.
//! Two changes may get the same time, because clocks of file systems are coarse; so a state from shortly after a change
//! may miss the next one.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

/// Two changes that are this far apart have different times on every file system.
const APART: Duration = Duration::from_secs(2);

/// State of a file at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileState {
    bytes: u64,
    inode: u64,
    /// Seconds and nanoseconds since 1970
    written: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    pub fn of(file: &File) -> io::Result<Self> {
        let of = file.metadata()?;
        let (written, changed) = ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
        Ok(Self { bytes: of.len(), inode: of.ino(), written, changed })
    }

    /// A text that differs for every other state.
    pub fn key(&self) -> String {
        let Self { bytes, inode, written, changed } = self;
        format!("{bytes} {inode} {}.{:09} {}.{:09}", written.0, written.1, changed.0, changed.1)
    }

    /// True if every change from `now` on is sure to give another state. False if the file was changed shortly before,
    /// or its file system keeps no time of change.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        seconds > 0 && age.is_some_and(|age| age >= APART)
    }
}

#[cfg(test)]
mod tests;
