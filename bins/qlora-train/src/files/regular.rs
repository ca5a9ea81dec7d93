//! Files of others, opened and read so that none makes the process wait or fills its memory: a pipe has perhaps no
//! writer, and a device no end.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Context, Result};

/// Opens a regular file to read; links are followed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => {
            let what = "found something that is not a regular file, expected a file";
            Err(io::Error::new(ErrorKind::InvalidInput, what))
        }
    }
}

/// The bytes of a regular file of at most `limit` of them. None: it is longer.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok((bytes.len() as u64 <= limit).then_some(bytes))
    };
    read().usage_context(|| format!("{}: cannot be read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_or_a_device_is_no_file_and_a_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        // Without a writer it would wait for ever.
        for path in [&pipe, Path::new("/dev/zero"), dir.path()] {
            let refused = read_at_most(path, 9).unwrap_err();
            assert!(refused.to_string().contains("not a regular file") && refused.is_usage(), "{refused}");
        }
        std::fs::write(&file, "123456789").unwrap();
        assert_eq!(read_at_most(&file, 9).unwrap().unwrap(), b"123456789");
        assert_eq!(read_at_most(&file, 8).unwrap(), None);
    }
}
