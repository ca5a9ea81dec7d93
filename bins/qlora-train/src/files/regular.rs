//! Files of others, opened and read so that none makes the process wait or fills its memory: a pipe has perhaps no
//! writer, and a device no end.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::{Context, Result};
use crate::refuse;

fn name_of(found: FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a pipe",
        found if found.is_socket() => "a socket",
        found if found.is_char_device() || found.is_block_device() => "a device",
        _ => "something else",
    }
}

/// Name of what is in the place of a file, links followed. None: a file is there, or nothing.
pub(crate) fn in_place_of(path: &Path) -> Option<&'static str> {
    match path.metadata() {
        Ok(found) => (!found.is_file()).then(|| name_of(found.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.symlink_metadata().is_ok().then_some("a link to nothing")
        }
        Err(_) => None,
    }
}

/// Whether a file is there. Refused: something else is.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    if let Some(found) = in_place_of(path) {
        refuse!("{}: found {found}, expected a file", path.display());
    }
    Ok(path.symlink_metadata().is_ok())
}

/// Opens a regular file to read; links are followed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    // A socket cannot be opened.
    match opened.as_ref().map_or_else(|_| path.metadata(), File::metadata) {
        Ok(found) if !found.is_file() => {
            let what = format!("found {}, which is not a regular file, expected a file", name_of(found.file_type()));
            Err(io::Error::new(ErrorKind::InvalidInput, what))
        }
        Ok(_) => opened,
        Err(error) => opened.and(Err(error)),
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
    use std::path::PathBuf;

    #[test]
    fn a_pipe_or_a_device_is_no_file_and_a_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let socket = dir.path().join("socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // Without a writer it would wait for ever.
        for (path, what) in [
            (&pipe, "a pipe"),
            (&PathBuf::from("/dev/zero"), "a device"),
            (&dir.path().to_owned(), "a directory"),
            (&socket, "a socket"),
        ] {
            let refused = read_at_most(path, 9).unwrap_err();
            let told = format!("found {what}, which is not a regular file");
            assert!(refused.to_string().contains(&told) && refused.is_usage(), "{refused}");
            let refused = is_there(path).unwrap_err();
            assert!(refused.to_string().contains(&format!("found {what}, expected a file")), "{refused}");
        }
        assert!(!is_there(&file).unwrap());
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        assert_eq!(in_place_of(&dir.path().join("link")), Some("a link to nothing"));
        std::fs::write(&file, "123456789").unwrap();
        assert!(is_there(&file).unwrap() && is_there(&dir.path().join("link")).unwrap());
        assert_eq!(read_at_most(&file, 9).unwrap().unwrap(), b"123456789");
        assert_eq!(read_at_most(&file, 8).unwrap(), None);
    }
}
