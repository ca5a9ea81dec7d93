//! Several files that appear together: each is written under a temporary name and synced; only when all are complete
//! are they renamed. A failure before that leaves nothing behind.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::dir::{Dir, unique};
use super::failpoint;
use super::hash::hex;
use super::json::read_bounded;
use super::regular::{in_place_of, is_there};
use crate::error::{Context, Result};

/// SHA-256 of files beside it, as `sha256sum` writes and checks them.
pub(crate) const SUMS: &str = "SHA256SUMS";
/// Limit far above the size of any list of ours.
pub(crate) const MAX_SUMS_BYTES: u64 = 1 << 20;

pub(crate) struct AtomicFiles {
    /// Directory of the finished files
    dir: Dir,
    /// Directory of the files until then
    temporary: Dir,
    pending: Vec<Pending>,
}

struct Pending {
    temporary: String,
    name: String,
    /// SHA-256 (hex) of the written bytes
    hash: String,
}

/// A file under its temporary name.
pub(crate) struct PartialFile<'a> {
    file: &'a File,
    name: &'a str,
    hash: Sha256,
}

impl Write for PartialFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = failpoint::write(self.file, self.name, bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AtomicFiles {
    /// Makes `dir` if need be. A process that is killed leaves temporary files in it.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = Dir::create(dir).context(|| format!("{}: the directory cannot be made", dir.display()))?;
        Ok(Self::within(&dir, &dir))
    }

    /// The files are in `temporary`, of the same file system, until they are complete.
    pub fn within(dir: &Dir, temporary: &Dir) -> Self {
        Self { dir: dir.clone(), temporary: temporary.clone(), pending: Vec::new() }
    }

    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Writes one file under a temporary name.
    pub fn add(&mut self, name: &str, write: impl FnOnce(&mut BufWriter<PartialFile>) -> io::Result<()>) -> Result<()> {
        let temporary = format!(".{name}.{}.partial", unique());
        // From now on it is removed if anything fails.
        self.pending.push(Pending { temporary: temporary.clone(), name: name.to_owned(), hash: String::new() });
        let make = || -> io::Result<String> {
            let file = self.temporary.create_file(&temporary)?;
            let hash = write_synced(&file, name, write)?;
            Ok(hash)
        };
        let hash = make().context(|| format!("{}: cannot be written", self.dir.join(name).display()))?;
        self.pending.last_mut().expect("it was just added").hash = hash;
        Ok(())
    }

    /// True if a file of this name is among those so far.
    pub fn holds(&self, name: &str) -> bool {
        self.pending.iter().any(|file| file.name == name)
    }

    /// Adds `SHA256SUMS`, a line for each of the files so far.
    pub fn add_sums(&mut self) -> Result<()> {
        let sums: String = self.pending.iter().map(|file| format!("{}  {}\n", file.hash, file.name)).collect();
        self.add(SUMS, |to| to.write_all(sums.as_bytes()))
    }

    /// Adds the existing `SHA256SUMS`, with the lines of the files so far replaced.
    pub fn update_sums(&mut self) -> Result<()> {
        let mut earlier = String::new();
        let read = self.dir.open_file(SUMS).and_then(|file| file.take(MAX_SUMS_BYTES).read_to_string(&mut earlier));
        read.context(|| format!("{}: cannot be read", self.dir.join(SUMS).display()))?;
        let kept = parse_sums(&earlier).into_iter().filter(|&(_, name)| !self.holds(name));
        let new = self.pending.iter().map(|file| (file.hash.as_str(), file.name.as_str()));
        let sums: String = kept.chain(new).map(|(hash, name)| format!("{hash}  {name}\n")).collect();
        self.add(SUMS, |to| to.write_all(sums.as_bytes()))
    }

    /// Renames the files in the order in which they were added, but `last`, if it is one of them: the file by which a
    /// reader knows that the rest is there.
    pub fn commit_with_last(mut self, last: &str) -> Result<()> {
        self.pending.sort_by_key(|file| file.name == last);
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        for file in pending.by_ref() {
            let path = self.dir.join(&file.name);
            let put = || -> io::Result<()> {
                failpoint::point("rename", &file.name)?;
                self.temporary.rename(&file.temporary, &self.dir, &file.name)?;
                failpoint::point("renamed", &file.name)
            };
            if let Err(error) = put() {
                self.pending = std::iter::once(file).chain(pending).collect();
                return Err(error).context(|| format!("{}: cannot be put in place", path.display()));
            }
        }
        sync(&self.dir)
    }

    /// Renames the files in the order in which they were added.
    pub fn commit(self) -> Result<()> {
        self.commit_with_last("")
    }
}

/// Removes files that were written but not committed.
impl Drop for AtomicFiles {
    fn drop(&mut self) {
        for file in &self.pending {
            // The failure that led here is the one to report.
            let _ = self.temporary.remove_file(&file.temporary);
        }
    }
}

/// Writes a file to the disk and returns its SHA-256 (hex); `name` is what failpoints call it.
pub(crate) fn write_synced(
    file: &File,
    name: &str,
    write: impl FnOnce(&mut BufWriter<PartialFile>) -> io::Result<()>,
) -> io::Result<String> {
    let mut writer = BufWriter::with_capacity(1 << 20, PartialFile { file, name, hash: Sha256::new() });
    write(&mut writer)?;
    let written = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    failpoint::point("sync", name)?;
    file.sync_all()?;
    failpoint::point("synced", name)?;
    Ok(hex(written.hash.finalize()))
}

/// Makes renames in `dir` durable.
pub(crate) fn sync(dir: &Dir) -> Result<()> {
    let sync = || {
        failpoint::point("sync-directory", "")?;
        dir.sync()
    };
    sync().context(|| format!("{}: the directory cannot be synced", dir.path().display()))
}

/// The lines of a `SHA256SUMS`: (hash, name).
pub(crate) fn parse_sums(text: &str) -> Vec<(&str, &str)> {
    text.lines().filter_map(|line| line.split_once("  ")).collect()
}

/// A file that does not match `SHA256SUMS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// `SHA256SUMS` itself cannot be read.
    NoSums(PathBuf),
    /// It has no line of this name.
    NoLine(PathBuf, String),
    Missing(PathBuf),
    /// Something other than a file is in its place.
    NoFile(PathBuf, &'static str),
    Changed {
        file: PathBuf,
        found: String,
        expected: String,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Damage::NoSums(path) => write!(f, "{}: cannot be read", path.display()),
            Damage::NoLine(path, name) => write!(f, "{}: found no line of {name}", path.display()),
            Damage::Missing(file) => write!(f, "{}: found no such file", file.display()),
            Damage::NoFile(file, found) => write!(f, "{}: found {found}, expected a file", file.display()),
            Damage::Changed { file, found, expected } => write!(
                f,
                "{}: found a SHA-256 of {found}, expected {expected}, the file changed after it was written",
                file.display()
            ),
        }
    }
}

/// Compares files with `SHA256SUMS`: each that it names but `unchecked`, and at least `required`. None: all are whole.
pub(crate) fn find_damage(dir: &Path, required: &[&str], unchecked: &[&str]) -> Result<Option<Damage>> {
    let path = dir.join(SUMS);
    let text = read_bounded(&path, MAX_SUMS_BYTES).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(text) = text else { return Ok(Some(Damage::NoSums(path))) };
    let sums = parse_sums(&text);
    for name in required {
        if !sums.iter().any(|(_, summed)| summed == name) {
            return Ok(Some(Damage::NoLine(path, (*name).to_owned())));
        }
    }
    for (expected, name) in sums {
        // A name that is a path would be one outside.
        if unchecked.contains(&name) || name.contains('/') {
            continue;
        }
        let file = dir.join(name);
        if let Some(found) = in_place_of(&file) {
            return Ok(Some(Damage::NoFile(file, found)));
        }
        if !file.is_file() {
            return Ok(Some(Damage::Missing(file)));
        }
        let found = super::hash::file_hash(&file)?;
        if found != expected {
            return Ok(Some(Damage::Changed { file, found, expected: expected.to_owned() }));
        }
    }
    Ok(None)
}

/// Compares one file with `SHA256SUMS`, if that is there and names it. None: it is unchanged, or there is no record of
/// it. Refused: something that is no file in the place of `SHA256SUMS`.
pub(crate) fn find_change(dir: &Path, name: &str) -> Result<Option<Damage>> {
    let path = dir.join(SUMS);
    if !is_there(&path)? {
        return Ok(None);
    }
    let bytes = read_bounded(&path, MAX_SUMS_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((expected, _)) = parse_sums(&text).into_iter().find(|&(_, summed)| summed == name) else {
        return Ok(None);
    };
    let file = dir.join(name);
    let found = super::hash::file_hash(&file)?;
    Ok((!found.eq_ignore_ascii_case(expected)).then(|| Damage::Changed { file, found, expected: expected.to_owned() }))
}

#[cfg(test)]
mod tests;
