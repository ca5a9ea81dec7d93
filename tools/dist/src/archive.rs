//! Archives whose bytes depend on their files alone: sorted names, no owner, one time.

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

/// Seconds since 1970 of 1 January 1980, before which a zip file has no time.
const TIME: u64 = 315_532_800;

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub bytes: Vec<u8>,
    pub is_executable: bool,
}

impl Entry {
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), bytes: bytes.into(), is_executable: false }
    }

    pub fn executable(path: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { is_executable: true, ..Self::new(path, bytes) }
    }

    /// Moved below a folder.
    pub fn below(&self, folder: &str) -> Self {
        Self { path: format!("{folder}/{}", self.path), ..self.clone() }
    }

    fn mode(&self) -> u32 {
        if self.is_executable { 0o755 } else { 0o644 }
    }
}

fn sorted(entries: &[Entry]) -> Vec<&Entry> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    sorted
}

pub fn tar_gz(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(GzBuilder::new().write(Vec::new(), Compression::best()));
    for entry in sorted(entries) {
        let mut header = tar::Header::new_ustar();
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(entry.mode());
        header.set_mtime(TIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        tar.append_data(&mut header, &entry.path, entry.bytes.as_slice())
            .with_context(|| format!("cannot pack {}", entry.path))?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// In the order of `entries`: a wheel's own files come last.
pub fn zip(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for entry in entries {
        // Without a time of its own it is of 1980.
        let options = SimpleFileOptions::default()
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(entry.mode())
            .compression_level(Some(9));
        zip.start_file(&entry.path, options).with_context(|| format!("cannot pack {}", entry.path))?;
        zip.write_all(&entry.bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn entries() -> Vec<Entry> {
        vec![Entry::new("b/two.txt", "two"), Entry::executable("a/one", b"one".to_vec()).below("top")]
    }

    #[test]
    fn a_tarball_has_sorted_files_without_owner_or_time_of_their_own() {
        let bytes = tar_gz(&entries()).unwrap();
        let mut reversed = entries();
        reversed.reverse();
        assert_eq!(tar_gz(&reversed).unwrap(), bytes);
        assert_eq!(bytes[4..8], [0; 4], "gzip's time");
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, TIME));
            found.push((entry.path().unwrap().display().to_string(), header.mode().unwrap(), text));
        }
        let file = |path: &str, mode, text: &str| (path.to_owned(), mode, text.to_owned());
        assert_eq!(found, [file("b/two.txt", 0o644, "two"), file("top/a/one", 0o755, "one")]);
    }

    #[test]
    fn a_zip_file_keeps_its_order_and_has_the_time_of_no_clock() {
        let bytes = zip(&entries()).unwrap();
        assert_eq!(zip(&entries()).unwrap(), bytes);
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
        let names: Vec<_> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["b/two.txt", "top/a/one"]);
        let file = zip.by_index(1).unwrap();
        assert_eq!(
            (file.unix_mode().map(|mode| mode & 0o777), file.last_modified()),
            (Some(0o755), Some(zip::DateTime::default()))
        );
    }
}
