//! Files in memory that other processes open: without a name, and gone with the last process that has them.

use std::fs::{File, OpenOptions, read_link};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

/// Name in lists of what a process has open
const NAME: &str = "qlora-weights";

/// Makes an empty file, which can grow and never shrink.
#[cfg(target_os = "linux")]
pub(crate) fn create() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // A system that is older than this flag.
        Err(rustix::io::Errno::INVAL) => memfd_create(NAME, flags),
        made => made,
    };
    let file = File::from(made?);
    fcntl_add_seals(&file, SealFlags::SHRINK)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn create() -> io::Result<File> {
    Err(io::Error::new(ErrorKind::Unsupported, "only Linux has files in memory"))
}

/// Sets a file's final size, which is not less than the present one. Memory is taken when pages are written, or read by
/// a device.
#[cfg(target_os = "linux")]
pub(crate) fn set_last_len(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{SealFlags, fcntl_add_seals};
    file.set_len(bytes.max(file.metadata()?.len()))?;
    Ok(fcntl_add_seals(file, SealFlags::GROW | SealFlags::SEAL)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn set_last_len(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}

/// Place of an open file, for the other processes of its machine.
pub(crate) fn place(file: &File) -> (u32, i32) {
    (std::process::id(), file.as_raw_fd())
}

/// Opens the other process's file at this place, which begins with `mark`. Fails if it is out of sight, as from another
/// container, or if something else is there.
pub(crate) fn open((process, handle): (u32, i32), mark: &[u8]) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/{process}/fd/{handle}"));
    let other = || io::Error::new(ErrorKind::NotFound, format!("{} is something else here", path.display()));
    // A process of another container may have the same number; its file is not opened.
    if !read_link(&path)?.to_string_lossy().starts_with(&format!("/memfd:{NAME}")) {
        return Err(other());
    }
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)?;
    let mut found = vec![0; mark.len()];
    file.read_exact_at(&mut found, 0)?;
    if found != mark { Err(other()) } else { Ok(file) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
