//! A file for values that leave memory for a while. It has no name: nothing is left of it, however the process ends.

use super::failpoint;
use crate::error::{Error, Result};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Places in the file begin at multiples of it.
pub(crate) const BLOCK: u64 = 4096;

/// Bytes that are written or read at a time, and of which the system's cache of files holds no more than these.
const PIECE: usize = 64 << 20;

pub(crate) struct ScratchFile {
    dir: PathBuf,
    file: File,
}

impl ScratchFile {
    /// An empty file in the file system of the directory `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        match tempfile::tempfile_in(&dir) {
            Ok(file) => Ok(Self { dir, file }),
            Err(error) => Err(fault(&dir, "made", &error)),
        }
    }

    /// Takes these bytes of the file system now, so that they are there when they are written.
    #[cfg(target_os = "linux")]
    pub fn reserve(&self, bytes: Range<u64>) -> Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        let taken = failpoint::point("scratch", "reserve").and_then(|()| {
            let len = bytes.end - bytes.start;
            let taken = rustix::io::retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), bytes.start, len));
            match taken {
                // A file system that takes bytes only when they are written.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        taken.map_err(|error| fault(&self.dir, "made larger", &error))
    }

    /// Takes these bytes of the file system now, so that they are there when they are written.
    #[cfg(not(target_os = "linux"))]
    pub fn reserve(&self, _bytes: Range<u64>) -> Result<()> {
        failpoint::point("scratch", "reserve").map_err(|error| fault(&self.dir, "made larger", &error))
    }

    /// Writes `bytes` at `offset`. They are on the disk when it returns: only then their pages can be given back.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(PIECE) {
            let written = failpoint::point("scratch", "write")
                .and_then(|()| self.file.write_all_at(piece, at))
                .and_then(|()| self.file.sync_data());
            written.map_err(|error| fault(&self.dir, "written", &error))?;
            self.forget(at, piece.len());
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads what was written at `offset`.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let mut at = offset;
        for piece in bytes.chunks_mut(PIECE) {
            let read = failpoint::point("scratch", "read").and_then(|()| self.file.read_exact_at(piece, at));
            read.map_err(|error| fault(&self.dir, "read", &error))?;
            self.forget(at, piece.len());
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Tells the system that these pages need not stay in its cache of files. Advice: where it is not taken, nothing is
    /// wrong.
    fn forget(&self, offset: u64, len: usize) {
        #[cfg(target_os = "linux")]
        if let Some(len) = std::num::NonZeroU64::new(len as u64) {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), rustix::fs::Advice::DontNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, len);
    }

    /// True if the file system is one in memory, as `/dev/shm` is.
    #[cfg(target_os = "linux")]
    pub fn is_in_memory(&self) -> bool {
        /// tmpfs and ramfs
        const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
        rustix::fs::fstatfs(&self.file).is_ok_and(|status| IN_MEMORY.contains(&(status.f_type as u64 & 0xffff_ffff)))
    }

    /// True if the file system is one in memory, as `/dev/shm` is.
    #[cfg(not(target_os = "linux"))]
    pub fn is_in_memory(&self) -> bool {
        false
    }
}

fn fault(dir: &Path, what: &str, error: &dyn fmt::Display) -> Error {
    Error::Failed(format!(
        "{}: the scratch file there cannot be {what}: {error}. Make room there or name another directory with \
         `scratch_dir`, and give the same command again; what was saved is whole",
        dir.display()
    ))
}

#[cfg(test)]
mod tests;
