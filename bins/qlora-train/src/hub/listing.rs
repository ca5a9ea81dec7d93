//! The files of a commit, as the hub lists them, checked before use: names come from outside.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hash::BlobName;
use super::license::License;
use crate::bail_usage;
use crate::error::{Context, Result};

/// Beyond this many files the hub's own answer is cut.
pub(super) const MAX_FILES: usize = 50_000;
/// Limit on a listing: some 200 bytes for each file.
pub(super) const MAX_LISTING_BYTES: u64 = 32 << 20;
/// Limit of file systems on names.
const MAX_PATH_BYTES: usize = 1024;
const MAX_PART_BYTES: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Path in the repository
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobName>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<File>,
    /// License that the card of the repository names
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<License>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// The fields of its card
    #[serde(rename = "cardData", default)]
    card: Value,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads the hub's answer. Refused: a text that is no listing, or one with names that could lead out of the cache.
    pub fn of_answer(bytes: &[u8], whose: &str) -> Result<Self> {
        let Answer { sha, siblings, card } =
            serde_json::from_slice(bytes)
                .map_err(|error| shown(&error.to_string()))
                .failure_context(|| format!("{whose}: the hub's answer is no list of files (`sha` and `siblings`)"))?;
        let file = |sibling: Sibling| {
            let large = sibling.lfs.as_ref();
            let blob = large.map_or(sibling.blob_id.as_deref(), |lfs| lfs.sha256.as_deref());
            File {
                size: large.and_then(|lfs| lfs.size).or(sibling.size),
                blob: blob.and_then(BlobName::parse),
                name: sibling.rfilename,
            }
        };
        let license = License::of_fields(&card);
        let listing = Self { commit: sha, files: siblings.into_iter().map(file).collect(), license };
        listing.check(whose)?;
        Ok(listing)
    }

    /// Refused: names or numbers that no repository has.
    pub fn check(&self, whose: &str) -> Result<()> {
        if !is_commit(&self.commit) {
            bail_usage!("{whose}: the hub names the commit {:?}, expected 40 hexadecimal digits", shown(&self.commit));
        }
        if self.files.len() > MAX_FILES {
            bail_usage!(
                "{whose}: the hub lists {} files, expected at most {MAX_FILES}; download the ones that you need with \
                 `hf download` and give their paths",
                self.files.len()
            );
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !is_safe(&file.name) {
                bail_usage!(
                    "{whose}: the hub lists a file {:?}, expected a path inside the repository",
                    shown(&file.name)
                );
            }
            if !names.insert(file.name.as_str()) {
                bail_usage!("{whose}: the hub lists {:?} twice, expected each file once", file.name);
            }
            if file.blob.as_ref().is_some_and(|blob| !blob.is_valid()) {
                bail_usage!("{whose}: {:?} has a hash that is none", file.name);
            }
        }
        Ok(())
    }

    pub fn names(&self) -> Vec<&str> {
        self.files.iter().map(|file| file.name.as_str()).collect()
    }

    pub fn find(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }
}

/// Maximum characters of a text from outside in a message.
const MAX_SHOWN: usize = 300;

/// A text from outside as a message shows it.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// True for the name of a commit, whose files never change.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(BlobName::parse(text), Some(BlobName::Git(_)))
}

/// True if a path stays in the directory that it is joined to.
pub(super) fn is_safe(name: &str) -> bool {
    let is_part = |part: &str| {
        let harmless = !part.chars().any(char::is_control);
        !matches!(part, "" | "." | "..") && part.len() <= MAX_PART_BYTES && harmless
    };
    name.len() <= MAX_PATH_BYTES && name.split('/').all(is_part)
}

#[cfg(test)]
mod tests;
