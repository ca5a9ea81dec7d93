//! The cache of a model or data set: `models--org--name/{refs/<branch>, blobs/<hash>, snapshots/<commit>/<file>}`, in
//! which the files of a snapshot are links to blobs.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::BlobName;
use super::listing::{Listing, MAX_LISTING_BYTES, is_commit};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::dir::unique;
use crate::files::json::read_bounded;

/// Limit far above the length of a commit's name.
const MAX_REFERENCE_BYTES: u64 = 4096;
/// Listings of commits, which other clients do not keep.
const LISTINGS: &str = ".qlora-train";

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Model,
    DataSet,
}

impl Kind {
    /// Beginning of its folders in the cache
    fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "models--",
            Kind::DataSet => "datasets--",
        }
    }

    /// Beginning of its addresses below the hub's
    pub fn route(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::DataSet => "datasets/",
        }
    }

    /// Beginning of its addresses below the hub's API
    pub fn api(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::DataSet => "datasets",
        }
    }

    /// Sentence for a name that is neither on the hub nor a path
    pub fn missing(self) -> &'static str {
        match self {
            Kind::Model => "found no such directory",
            Kind::DataSet => "found no such file or folder",
        }
    }

    pub fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::DataSet => "data set",
        }
    }
}

/// The folder of one model or data set in one cache.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
    name: String,
}

impl Folder {
    pub fn new(root: &Path, kind: Kind, id: &str) -> Self {
        Self { root: root.to_owned(), name: format!("{}{}", kind.prefix(), id.replace('/', "--")) }
    }

    /// The folder of a snapshot, and its commit. None: the path is not a snapshot's.
    pub fn of_snapshot(snapshot: &Path) -> Option<(Self, String)> {
        let snapshots = snapshot.parent().filter(|dir| dir.file_name().is_some_and(|name| name == "snapshots"))?;
        let (commit, folder) = (snapshot.file_name()?.to_str()?, snapshots.parent()?);
        let (root, name) = (folder.parent()?.to_owned(), folder.file_name()?.to_str()?.to_owned());
        is_commit(commit).then(|| (Self { root, name }, commit.to_owned()))
    }

    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.path().join("snapshots").join(commit)
    }

    pub fn blob(&self, name: &BlobName) -> PathBuf {
        self.path().join("blobs").join(name.as_str())
    }

    /// A blob that is not whole yet.
    pub fn partial(&self, name: &BlobName) -> PathBuf {
        self.path().join("blobs").join(format!("{}.incomplete", name.as_str()))
    }

    /// The file that one process locks while it writes a blob.
    pub fn lock(&self, name: &BlobName) -> PathBuf {
        self.root.join(".locks").join(&self.name).join(format!("{}.lock", name.as_str()))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.path().join("refs").join(revision)
    }

    fn listing_file(&self, commit: &str) -> PathBuf {
        self.path().join(LISTINGS).join(format!("{commit}.json"))
    }

    /// The commit that a branch or tag stood for when it was last downloaded, or the revision itself where it names a
    /// snapshot. Refused: a reference that holds something else.
    pub fn commit_of(&self, revision: &str) -> Result<Option<String>> {
        let reference = self.reference(revision);
        if reference.is_file() {
            let text = String::from_utf8_lossy(&read_bounded(&reference, MAX_REFERENCE_BYTES)?).trim().to_owned();
            if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric()) {
                bail_usage!(
                    "{}: found {text:?}, expected the name of a commit: download it again",
                    reference.display()
                );
            }
            return Ok(Some(text));
        }
        Ok(self.snapshot(revision).is_dir().then(|| revision.to_owned()))
    }

    /// True if a revision is the name of a commit, which never changes.
    pub fn names_commit(&self, revision: &str) -> bool {
        is_commit(revision) || (!self.reference(revision).is_file() && self.snapshot(revision).is_dir())
    }

    pub fn write_reference(&self, revision: &str, commit: &str) -> Result<()> {
        put(&self.reference(revision), commit.as_bytes())
    }

    /// The listing of a commit that was kept. None: there is none, or it is damaged.
    pub fn listing(&self, commit: &str) -> Option<Listing> {
        let file = self.listing_file(commit);
        if !file.is_file() {
            return None;
        }
        let listing: Listing = serde_json::from_slice(&read_bounded(&file, MAX_LISTING_BYTES).ok()?).ok()?;
        (listing.commit == commit && listing.check("").is_ok()).then_some(listing)
    }

    pub fn keep_listing(&self, listing: &Listing) -> Result<()> {
        let file = self.listing_file(&listing.commit);
        let json = serde_json::to_vec(listing).context(|| format!("{}: cannot be written", file.display()))?;
        put(&file, &json)
    }

    /// True if the snapshot has a file, of the size that is expected.
    pub fn has(&self, commit: &str, name: &str, size: Option<u64>) -> bool {
        let metadata = std::fs::metadata(self.snapshot(commit).join(name));
        metadata.is_ok_and(|found| found.is_file() && size.is_none_or(|size| found.len() == size))
    }

    /// Puts a blob into a snapshot, under the name of its file.
    pub fn link(&self, commit: &str, name: &str, blob: &BlobName) -> Result<()> {
        let pointer = self.snapshot(commit).join(name);
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{}", blob.as_str());
        let put = || -> io::Result<()> {
            let dir = pointer.parent().ok_or(ErrorKind::InvalidInput)?;
            std::fs::create_dir_all(dir)?;
            let temporary = dir.join(format!(".{}.link", unique()));
            // Some file systems have no links.
            let linked = symlink(&target, &temporary);
            let made = linked.or_else(|_| std::fs::copy(self.blob(blob), &temporary).map(drop));
            let put = made.and_then(|()| std::fs::rename(&temporary, &pointer));
            put.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        };
        put().context(|| format!("{}: cannot be made", pointer.display()))
    }

    /// The files of a snapshot that are there, if there is no listing of those that should be.
    pub fn found(&self, commit: &str) -> Result<Listing> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        walk(&root, "", &mut files).context(|| format!("{}: cannot be read", root.display()))?;
        files.sort();
        let file = |name| super::listing::File { name, size: None, blob: None };
        Ok(Listing { commit: commit.to_owned(), files: files.into_iter().map(file).collect(), license: None })
    }
}

/// Limit on the depth of folders, beyond any data set's.
const MAX_DEPTH: usize = 16;

fn walk(dir: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    if prefix.matches('/').count() > MAX_DEPTH || files.len() > super::listing::MAX_FILES {
        return Err(io::Error::other("more files or folders than a repository has"));
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (path, Ok(name)) = (entry.path(), entry.file_name().into_string()) else { continue };
        // Links to folders are none of this layout.
        if entry.file_type()?.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), files)?;
        } else if path.is_file() {
            files.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// Writes a small file whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
        std::fs::create_dir_all(dir)?;
        let temporary = dir.join(format!(".{}.partial", unique()));
        let written = File::create_new(&temporary).and_then(|mut file| file.write_all(bytes));
        let done = written.and_then(|()| std::fs::rename(&temporary, path));
        done.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    };
    write().context(|| format!("{}: cannot be written", path.display()))
}

#[cfg(test)]
mod tests;
