//! Opening and reading files from outside without waiting for ever or filling the memory: a pipe may have no writer,
//! and a device no end.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::bail_usage;
use crate::error::{Context, Result};

fn name_of(found: FileType) -> &'static str {
    match found {
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a pipe",
        found if found.is_socket() => "a socket",
        found if found.is_char_device() || found.is_block_device() => "a device",
        _ => "something else",
    }
}

/// Name of the thing in the place of a file, links followed. None: a file is there, or nothing.
pub(crate) fn in_place_of(path: &Path) -> Option<&'static str> {
    match path.metadata() {
        Ok(found) => (!found.is_file()).then(|| name_of(found.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.symlink_metadata().is_ok().then_some("a link to nothing")
        }
        Err(_) => None,
    }
}

/// True if a file is there. Refused: something else is.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    if let Some(found) = in_place_of(path) {
        bail_usage!("{}: found {found}, expected a file", path.display());
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
mod tests;
