//! Several files that appear together: each is written beside its final place and synced; only when all are complete
//! are they renamed. A failure before that leaves nothing behind; a process that is killed leaves files with names
//! that `remove_stale_files` knows.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::failpoint;
use crate::error::{Context, Result};

/// At the end of every temporary name.
const STALE: &str = ".partial";

pub(crate) struct AtomicFiles {
    dir: PathBuf,
    pending: Vec<(NamedTempFile, String)>,
}

/// A file under its temporary name.
pub(crate) struct PartialFile<'a> {
    file: &'a File,
    name: &'a str,
}

impl Write for PartialFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        failpoint::write(self.file, self.name, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AtomicFiles {
    /// Makes `dir` if need be.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).context(|| format!("{}: the directory cannot be made", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), pending: Vec::new() })
    }

    /// Writes one file under a temporary name.
    pub fn add(&mut self, name: &str, write: impl FnOnce(&mut BufWriter<PartialFile>) -> io::Result<()>) -> Result<()> {
        let make = || -> io::Result<NamedTempFile> {
            // As an ordinary new file, so that the umask decides: a private file could not be read by a server that
            // runs as another user.
            let temporary = tempfile::Builder::new()
                .prefix(&format!(".{name}."))
                .suffix(STALE)
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(&self.dir)?;
            let mut writer = BufWriter::with_capacity(1 << 20, PartialFile { file: temporary.as_file(), name });
            write(&mut writer)?;
            writer.flush()?;
            drop(writer);
            temporary.as_file().sync_all()?;
            failpoint::point("synced", name)?;
            Ok(temporary)
        };
        let temporary = make().context(|| format!("{}: cannot be written", self.dir.join(name).display()))?;
        self.pending.push((temporary, name.to_owned()));
        Ok(())
    }

    /// Renames the files in the order in which they were added: add last the one by which a reader knows that the rest
    /// is there.
    pub fn commit(self) -> Result<()> {
        for (temporary, name) in self.pending {
            let path = self.dir.join(&name);
            let put = || -> io::Result<()> {
                failpoint::point("rename", &name)?;
                temporary.persist(&path)?;
                failpoint::point("renamed", &name)
            };
            put().context(|| format!("{}: cannot be put in place", path.display()))?;
        }
        sync_dir(&self.dir)
    }
}

/// Makes renames in `dir` last.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let sync = || File::open(dir)?.sync_all();
    sync().context(|| format!("{}: the directory cannot be synced", dir.display()))
}

/// Removes what a process that was killed left half-written in `dir`. Only for who holds the directory's lock.
pub(crate) fn remove_stale_files(dir: &Path) -> Result<()> {
    let remove = || -> io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(STALE) && entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    remove().context(|| format!("{}: half-written files of an earlier run cannot be removed", dir.display()))
}
