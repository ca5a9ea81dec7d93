//! Files of one execution of a fuzz target, which the next one writes anew.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub(crate) fn empty() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a file that nothing else writes or removes. It stays open, and a file that has these bytes is left alone: to
/// open and empty one takes longer than many parsers do.
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    thread_local!(static WRITTEN: RefCell<HashMap<PathBuf, (File, Vec<u8>)>> = RefCell::default());
    WRITTEN.with_borrow_mut(|written| {
        let Some((file, before)) = written.get_mut(path) else {
            fs::write(path, bytes).unwrap();
            let file = File::options().write(true).open(path).unwrap();
            written.insert(path.to_owned(), (file, bytes.to_owned()));
            return;
        };
        if before == bytes {
            return;
        }
        file.write_all_at(bytes, 0).unwrap();
        if bytes.len() < before.len() {
            file.set_len(bytes.len() as u64).unwrap();
        }
        bytes.clone_into(before);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_bytes_that_were_put_last() {
        let dir = empty();
        let path = dir.path().join("file");
        for bytes in ["long", "longer", "", "s", "s", "other"] {
            put(&path, bytes.as_bytes());
            assert_eq!(fs::read(&path).unwrap(), bytes.as_bytes());
        }
    }
}
