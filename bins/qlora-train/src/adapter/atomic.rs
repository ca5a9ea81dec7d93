//! Several files that appear together: each is written beside its final place and synced; only when all are complete
//! are they renamed. A failure before that leaves nothing behind.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Context, Result};

pub(crate) struct AtomicFiles {
    dir: PathBuf,
    pending: Vec<(NamedTempFile, String)>,
}

impl AtomicFiles {
    /// Makes `dir` if need be.
    pub fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).or_fail(|| format!("{}: the directory cannot be made", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), pending: Vec::new() })
    }

    /// Writes one file under a temporary name.
    pub fn add(&mut self, name: &str, write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>) -> Result<()> {
        let make = || -> io::Result<NamedTempFile> {
            // As an ordinary new file, so that the umask decides: a private file could not be read by a server that
            // runs as another user.
            let temporary = tempfile::Builder::new()
                .prefix(&format!(".{name}."))
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(&self.dir)?;
            let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
            write(&mut writer)?;
            writer.flush()?;
            drop(writer);
            temporary.as_file().sync_all()?;
            Ok(temporary)
        };
        let temporary = make().or_fail(|| format!("{}: cannot be written", self.dir.join(name).display()))?;
        self.pending.push((temporary, name.to_owned()));
        Ok(())
    }

    /// Renames the files in the order in which they were added: add last the one by which a reader knows that the rest
    /// is there.
    pub fn commit(self) -> Result<()> {
        for (temporary, name) in self.pending {
            let path = self.dir.join(name);
            temporary.persist(&path).or_fail(|| format!("{}: cannot be put in place", path.display()))?;
        }
        let sync = || File::open(&self.dir)?.sync_all();
        sync().or_fail(|| format!("{}: the directory cannot be synced", self.dir.display()))
    }
}
