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

/// Gives a file its last size, which is not less than it has. Memory is taken when it is written, or read by a device.
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

/// Opens the file that the other process has there, and begins with `mark`. An error where it is out of sight, as from
/// another container, or where something else is there.
pub(crate) fn open((process, handle): (u32, i32), mark: &[u8]) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/{process}/fd/{handle}"));
    let other = || io::Error::new(ErrorKind::NotFound, format!("{} is something else here", path.display()));
    // Whatever has that number among the processes of another container is not opened.
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
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_is_one_for_all_who_open_it_and_has_one_size() {
        let file = create().unwrap();
        file.write_all_at(b"mark of this file", 0).unwrap();
        let other = open(place(&file), b"mark of").unwrap();
        set_last_len(&file, 5000).unwrap();
        other.write_all_at(b"end", 4997).unwrap();
        let mut found = [0; 3];
        file.read_exact_at(&mut found, 4997).unwrap();
        assert_eq!(&found, b"end");
        // Neither shorter nor longer, by nobody.
        for bytes in [4999, 5001] {
            assert!(other.set_len(bytes).is_err() && file.set_len(bytes).is_err(), "{bytes}");
        }
        assert!(other.write_all_at(b"x", 5000).is_err());
        assert_eq!(file.metadata().unwrap().len(), 5000);
        let large = create().unwrap();
        large.set_len(300).unwrap();
        set_last_len(&large, 200).unwrap();
        assert_eq!(large.metadata().unwrap().len(), 300);
    }

    #[test]
    fn what_is_not_that_file_is_not_opened() {
        let (file, disk) = (create().unwrap(), tempfile::tempfile().unwrap());
        file.write_all_at(b"one", 0).unwrap();
        let error = |place, mark: &[u8]| open(place, mark).unwrap_err().to_string();
        assert!(error(place(&file), b"two").contains("is something else here"));
        assert!(error(place(&disk), b"one").contains("is something else here"));
        let (process, handle) = place(&file);
        // No process has that number, nor a file.
        assert!(open((u32::MAX, handle), b"one").is_err() && open((process, i32::MAX), b"one").is_err());
        assert!(open((process, handle), b"one, and more").is_err());
    }
}
