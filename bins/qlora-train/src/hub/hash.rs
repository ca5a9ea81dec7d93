//! The hashes by which the hub names the bytes of a file: SHA-256 of large ones, that of a git blob for the rest.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::files::hash::hex;

/// A hash in lower-case hexadecimal: the name of a blob in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BlobName {
    Sha256(String),
    /// SHA-1 of "blob", the size, and the bytes
    Git(String),
}

impl BlobName {
    /// A hash by its number of digits. None: the text is no hash.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hash = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match text.len() {
            64 if is_hash => Some(Self::Sha256(text.to_owned())),
            40 if is_hash => Some(Self::Git(text.to_owned())),
            _ => None,
        }
    }

    /// The name in an `ETag`, which may be quoted or weak.
    pub fn of_etag(text: &str) -> Option<Self> {
        let text = text.trim();
        Self::parse(text.strip_prefix("W/").unwrap_or(text).trim_matches('"'))
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Sha256(hash) | Self::Git(hash) => hash,
        }
    }

    /// True if the text is a valid hash, from whatever file it was read.
    pub fn is_valid(&self) -> bool {
        Self::parse(self.as_str()).is_some_and(|parsed| parsed == *self)
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Sha256(hash) => write!(f, "SHA-256 {hash}"),
            Self::Git(hash) => write!(f, "git hash {hash}"),
        }
    }
}

/// A hash that grows with the bytes of a file.
pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// For a file of `size` bytes that is to have this name.
    pub fn new(name: &BlobName, size: u64) -> Self {
        match name {
            BlobName::Sha256(_) => Self::Sha256(Sha256::new()),
            BlobName::Git(_) => Self::Git(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
        }
    }

    pub fn finish(self) -> BlobName {
        match self {
            Self::Sha256(hash) => BlobName::Sha256(hex(hash.finalize())),
            Self::Git(hash) => BlobName::Git(hex(hash.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        let of = |name: &str| {
            let mut hasher = Hasher::new(&BlobName::parse(name).unwrap(), 6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            hasher.finish()
        };
        // `printf 'hello\n' | git hash-object --stdin`, and `sha256sum`.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(of(git).as_str(), git);
        assert_eq!(of(sha256).as_str(), sha256);
    }

    #[test]
    fn a_name_is_a_hash_and_nothing_else() {
        let hash = "ce013625030ba8dba906f756967f9e9ca394464a";
        for etag in [format!("\"{hash}\""), format!("W/\"{hash}\""), hash.to_owned()] {
            assert_eq!(BlobName::of_etag(&etag).unwrap().as_str(), hash);
        }
        for wrong in ["", "x", "../../etc/passwd", &hash[1..], &hash.to_uppercase(), &format!("{}/", &hash[1..])] {
            assert_eq!(BlobName::parse(wrong), None, "{wrong}");
        }
        assert!(!BlobName::Sha256(hash.to_owned()).is_valid() && BlobName::Git(hash.to_owned()).is_valid());
    }
}
