//! The files of a commit, as the hub lists them, checked before anything is made of them: names come from outside.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hash::BlobName;
use super::license::License;
use crate::error::{Context, Result};
use crate::refuse;

/// Beyond this many files the hub's own answer is cut.
pub(super) const MAX_FILES: usize = 50_000;
/// Some 200 bytes for each file.
pub(super) const MAX_LISTING_BYTES: u64 = 32 << 20;
/// Longer names are none of a file system.
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
    /// Reads the hub's answer. Refused: what is no listing, or one with names that could lead out of the cache.
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
            refuse!("{whose}: the hub names the commit {:?}, expected 40 hexadecimal digits", shown(&self.commit));
        }
        if self.files.len() > MAX_FILES {
            refuse!(
                "{whose}: the hub lists {} files, expected at most {MAX_FILES}; download the ones that you need with \
                 `hf download` and give their paths",
                self.files.len()
            );
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !is_safe(&file.name) {
                refuse!("{whose}: the hub lists a file {:?}, expected a path inside the repository", shown(&file.name));
            }
            if !names.insert(file.name.as_str()) {
                refuse!("{whose}: the hub lists {:?} twice, expected each file once", file.name);
            }
            if file.blob.as_ref().is_some_and(|blob| !blob.is_valid()) {
                refuse!("{whose}: {:?} has a hash that is none", file.name);
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

/// Characters of a text from outside in a message: it may have any length.
const MAX_SHOWN: usize = 300;

/// A text from outside as a message shows it.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The name of a commit, by which the hub's files never change.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(BlobName::parse(text), Some(BlobName::Git(_)))
}

/// Whether a path stays in the directory that it is joined to.
pub(super) fn is_safe(name: &str) -> bool {
    let is_part = |part: &str| {
        let harmless = !part.chars().any(char::is_control);
        !matches!(part, "" | "." | "..") && part.len() <= MAX_PART_BYTES && harmless
    };
    name.len() <= MAX_PATH_BYTES && name.split('/').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn read(siblings: &str) -> Result<Listing> {
        Listing::of_answer(format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#).as_bytes(), "org/name")
    }

    #[test]
    fn sizes_and_hashes_are_those_of_the_file_and_not_of_its_pointer() {
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let listing = read(&format!(
            r#"{{"rfilename": "config.json", "size": 6, "blobId": "{COMMIT}"}},
               {{"rfilename": "model.safetensors", "size": 134, "blobId": "{COMMIT}",
                 "lfs": {{"sha256": "{sha256}", "size": 99, "pointerSize": 134}}}},
               {{"rfilename": "a b/ü"}}"#
        ))
        .unwrap();
        let of = |name: &str| listing.find(name).map(|file| (file.size, file.blob.clone())).unwrap();
        assert_eq!(of("config.json"), (Some(6), BlobName::parse(COMMIT)));
        assert_eq!(of("model.safetensors"), (Some(99), BlobName::parse(sha256)));
        assert_eq!(of("a b/ü"), (None, None));
        let again: Listing = serde_json::from_str(&serde_json::to_string(&listing).unwrap()).unwrap();
        assert_eq!(again, listing);
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let long = "x".repeat(300);
        let upwards = ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "", "."];
        let others = ["a\\u0000b", "a\\nb", "\\u001b[31m", long.as_str()];
        for name in upwards.into_iter().chain(others) {
            let error = read(&format!(r#"{{"rfilename": "{name}"}}"#)).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains("inside the repository"), "{name}: {error}");
        }
        let twice = r#"{"rfilename": "a"}, {"rfilename": "a"}"#;
        assert!(read(twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn what_is_no_listing_is_told() {
        for bytes in ["", "[]", "{}", r#"{"sha": 3}"#, "<html>"] {
            let error = Listing::of_answer(bytes.as_bytes(), "org/name").unwrap_err();
            assert!(error.to_string().contains("no list of files") && !error.is_usage(), "{bytes}: {error}");
        }
        let long = "x".repeat(1 << 20);
        for answer in [
            format!(r#"{{"sha": "{long}"}}"#),
            format!(r#"{{"sha": "{COMMIT}", "siblings": "{long}"}}"#),
            format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{long}"}}]}}"#),
        ] {
            let error = Listing::of_answer(answer.as_bytes(), "org/name").unwrap_err();
            assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
        }
        for commit in ["main", "..", "0123", &COMMIT.to_uppercase()] {
            let error = Listing::of_answer(format!(r#"{{"sha": "{commit}"}}"#).as_bytes(), "org/name").unwrap_err();
            assert!(error.to_string().contains("names the commit"), "{error}");
        }
        let many: Vec<String> = (0..=MAX_FILES).map(|n| format!(r#"{{"rfilename": "f{n}"}}"#)).collect();
        assert!(read(&many.join(",")).unwrap_err().to_string().contains("50001 files"));
    }
}
