//! The parts of a large file that the hub's store has accepted, recorded so that an interrupted push can resume.
//!
//! The hub gives another place at every request, and the store only joins parts of one place. So its addresses are kept
//! until the file is complete there. They are signed: anybody who has them may upload parts, so only the user may read
//! the file. Its first line is JSON; each line after it is the name (ETag) of a part, from the first on.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// Limit far above the addresses and names of all parts that a store accepts.
const MAX_BYTES: u64 = 64 << 20;

/// An upload in parts, as the hub gave a place for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The hub, and the repository that the place is for
    pub hub: String,
    pub repository: String,
    /// Hash and bytes of the file, and bytes of a part
    pub sha256: String,
    pub size: u64,
    pub part: u64,
    /// Address of each part
    pub places: Vec<String>,
    /// Address to report that all parts are there
    pub complete: String,
    /// Names of the accepted parts, from the first on
    #[serde(skip)]
    pub taken: Vec<String>,
}

impl Begun {
    /// Bytes of the accepted parts.
    pub fn taken_bytes(&self) -> u64 {
        (self.taken.len() as u64).saturating_mul(self.part).min(self.size)
    }

    fn is_of_the_file_of(&self, other: &Self) -> bool {
        let of = |begun: &Self| (begun.hub.clone(), begun.repository.clone(), begun.sha256.clone(), begun.size);
        let parts = self.size.checked_div(self.part).map(|_| self.size.div_ceil(self.part));
        of(self) == of(other) && parts == Some(self.places.len() as u64) && self.taken.len() <= self.places.len()
    }

    /// True if both are the same upload for the store, even if their addresses are signed anew.
    fn is_the_upload_of(&self, other: &Self) -> bool {
        let id = |begun: &Self| {
            let (path, query) = begun.places.first()?.split_once('?')?;
            let id = query.split('&').find_map(|pair| pair.strip_prefix("uploadId="))?;
            Some((path.to_owned(), id.to_owned()))
        };
        self.part == other.part && id(self).is_some() && id(self) == id(other)
    }
}

/// Beginning of an upload.
#[derive(Debug, PartialEq)]
pub(super) enum Beginning {
    New,
    /// After the parts of an earlier one
    GoesOn,
    /// From the start, although parts of an earlier one were accepted: they are of no use.
    Again,
}

/// The record of one file's upload. It is locked against other processes as long as this lives.
#[derive(Default)]
pub(super) struct Kept {
    /// None: nothing can be recorded, or another process sends the same file.
    file: Option<(PathBuf, File)>,
    begun: Option<Begun>,
    is_refused: bool,
}

impl Kept {
    /// Opens the record of a file by its hash. If nothing can be recorded, a later push sends everything again, which
    /// is no reason to fail.
    pub fn open(dir: Option<&Path>, sha256: &str) -> Self {
        let open = || -> io::Result<(PathBuf, File)> {
            let dir = dir.ok_or(ErrorKind::NotFound)?;
            std::fs::create_dir_all(dir)?;
            let path = dir.join(sha256);
            // No link leads elsewhere, and no pipe makes the process wait.
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
            let file = options.open(&path)?;
            if !file.metadata()?.is_file() || file.try_lock().is_err() {
                return Err(ErrorKind::WouldBlock.into());
            }
            Ok((path, file))
        };
        let mut kept = Self { file: open().ok(), ..Self::default() };
        kept.begun = kept.read();
        kept
    }

    fn read(&mut self) -> Option<Begun> {
        let (_, file) = self.file.as_mut()?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let (place, names) = text.split_once('\n')?;
        let mut begun: Begun = serde_json::from_str(place).ok()?;
        // A line without an end was not written whole.
        begun.taken =
            names.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect();
        Some(begun)
    }

    /// The upload to continue, or a new one at the place that the hub gives.
    pub fn begin(&mut self, place: Begun) -> (Begun, Beginning) {
        let earlier =
            self.begun.take().filter(|earlier| earlier.is_of_the_file_of(&place) && !earlier.taken.is_empty());
        let (begun, beginning) = match earlier {
            Some(earlier) if earlier.is_the_upload_of(&place) => {
                (Begun { taken: earlier.taken, ..place }, Beginning::GoesOn)
            }
            Some(earlier) if !self.is_refused => (earlier, Beginning::GoesOn),
            Some(_) => (place, Beginning::Again),
            None => (place, Beginning::New),
        };
        self.is_refused = false;
        let mut lines = serde_json::to_string(&begun).unwrap_or_default() + "\n";
        begun.taken.iter().for_each(|name| lines += &format!("{name}\n"));
        self.clear();
        self.write(&lines);
        self.begun = Some(begun.clone());
        (begun, beginning)
    }

    /// Records that the next part was accepted, under this name.
    pub fn take(&mut self, name: &str) {
        self.write(&format!("{name}\n"));
        if let Some(begun) = &mut self.begun {
            begun.taken.push(name.to_owned());
        }
    }

    /// Handles a store that does not accept the next request.
    pub fn refuse(&mut self) {
        self.is_refused = true;
        // All parts are there, but do not make the file.
        self.begun.take_if(|begun| begun.taken.len() == begun.places.len());
    }

    /// Removes the record when it is no longer needed.
    pub fn forget(&mut self) {
        self.begun = None;
        if let Some((path, _)) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes the record of a file that the hub has completely.
    pub fn remove(dir: Option<&Path>, sha256: &str) {
        let _ = dir.map(|dir| std::fs::remove_file(dir.join(sha256)));
    }

    fn clear(&mut self) {
        if self.file.as_ref().is_some_and(|(_, file)| file.set_len(0).is_err()) {
            self.file = None;
        }
    }

    /// Writes whole lines only: half a line would spoil the next one.
    fn write(&mut self, text: &str) {
        if self.file.as_mut().is_some_and(|(_, file)| file.write_all(text.as_bytes()).is_err()) {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests;
