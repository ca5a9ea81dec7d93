//! SHA-256, and bytes in hexadecimal.

use super::regular;
use crate::error::{Context, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 (hex) of a file's bytes.
pub fn file_hash(path: &Path) -> Result<String> {
    let read = || hash_of(regular::open(path)?);
    read().usage_context(|| format!("{}: cannot be read", path.display()))
}

/// SHA-256 (hex) of what is left to read.
pub(crate) fn hash_of(from: impl Read) -> std::io::Result<String> {
    let mut reader = HashingReader::new(from);
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(reader.finish())
}

/// A reader that hashes what is read.
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    /// SHA-256 (hex) of the bytes so far.
    pub fn finish(self) -> String {
        hex(self.hash.finalize())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
