//! The cache of a model or data set: `models--org--name/{refs/<branch>, blobs/<hash>, snapshots/<commit>/<file>}`, in
//! which the files of a snapshot are links to blobs.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::hash::BlobName;
use super::listing::{Listing, MAX_LISTING_BYTES, is_commit};
use crate::error::{Context, Result};
use crate::files::dir::unique;
use crate::files::json::read_bounded;
use crate::refuse;

/// Far above the name of a commit.
const MAX_REFERENCE_BYTES: u64 = 4096;
/// Listings of commits, which other clients do not keep.
const LISTINGS: &str = ".qlora-train";

/// A repository is of one of these.
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

    /// Sentence for a name of which there is no path either
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

    /// The folder of a snapshot, and its commit. None: the path is none of a snapshot.
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
                refuse!("{}: found {text:?}, expected the name of a commit: download it again", reference.display());
            }
            return Ok(Some(text));
        }
        Ok(self.snapshot(revision).is_dir().then(|| revision.to_owned()))
    }

    /// Whether a revision is the name of a commit, which never stands for another.
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

    /// Whether the snapshot has a file, of the size that is expected.
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

    /// The files of a snapshot as they lie there, where no listing says which there should be.
    pub fn found(&self, commit: &str) -> Result<Listing> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        walk(&root, "", &mut files).context(|| format!("{}: cannot be read", root.display()))?;
        files.sort();
        let file = |name| super::listing::File { name, size: None, blob: None };
        Ok(Listing { commit: commit.to_owned(), files: files.into_iter().map(file).collect(), license: None })
    }
}

/// Folders in folders, as no data set has them.
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
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_layout_is_that_of_the_hubs_own_client() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), Kind::DataSet, "org/name");
        let dir = root.path().join("datasets--org--name");
        let blob = BlobName::parse(COMMIT).unwrap();
        std::fs::create_dir_all(dir.join("blobs")).unwrap();
        std::fs::write(folder.blob(&blob), "rows").unwrap();
        for name in ["README.md", "data/deep/train.jsonl"] {
            folder.link(COMMIT, name, &blob).unwrap();
            // Twice is once.
            folder.link(COMMIT, name, &blob).unwrap();
            let path = dir.join("snapshots").join(COMMIT).join(name);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "rows");
            assert!(std::fs::read_link(&path).unwrap().is_relative());
            assert!(folder.has(COMMIT, name, Some(4)) && !folder.has(COMMIT, name, Some(5)));
        }
        assert_eq!(folder.found(COMMIT).unwrap().names(), ["README.md", "data/deep/train.jsonl"]);
        assert!(folder.lock(&blob).starts_with(root.path().join(".locks/datasets--org--name")));
        for revision in ["main", "refs/convert/parquet"] {
            folder.write_reference(revision, COMMIT).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("refs").join(revision)).unwrap(), COMMIT);
            assert_eq!(folder.commit_of(revision).unwrap().as_deref(), Some(COMMIT));
            assert!(!folder.names_commit(revision));
        }
        assert!(folder.names_commit(COMMIT));
        assert_eq!(folder.commit_of("v2").unwrap(), None);
        std::fs::write(dir.join("refs/main"), "../../../etc").unwrap();
        assert!(folder.commit_of("main").unwrap_err().to_string().contains("expected the name of a commit"));
    }

    #[test]
    fn a_listing_is_kept_and_one_that_was_changed_is_none() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), Kind::Model, "org/name");
        let file = super::super::listing::File { name: "a".to_owned(), size: Some(3), blob: BlobName::parse(COMMIT) };
        let listing = Listing { commit: COMMIT.to_owned(), files: vec![file], license: None };
        assert_eq!(folder.listing(COMMIT), None);
        folder.keep_listing(&listing).unwrap();
        assert_eq!(folder.listing(COMMIT), Some(listing.clone()));
        let path = folder.listing_file(COMMIT);
        let hostile = format!(r#"{{"commit": "{COMMIT}", "files": [{{"name": "../a"}}]}}"#);
        for text in ["{", r#"{"commit": "x", "files": []}"#, &hostile] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(folder.listing(COMMIT), None, "{text}");
        }
    }
}
