//! Files to upload: opened once, hashed before anything is sent, and checked again before the commit.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::super::hash::{BlobName, Hasher};
use crate::bail_usage;
use crate::error::{Context, Error, Result};

const BUFFER_BYTES: usize = 1 << 20;
/// Bytes by which the hub distinguishes text from other files.
const SAMPLE_BYTES: u64 = 512;

/// A file of an upload, with its size and its hashes.
pub struct LocalFile {
    /// Path in the repository
    name: String,
    source: Source,
    size: u64,
    /// In hexadecimal digits
    sha256: String,
    /// SHA-1 of git's blob, in hexadecimal digits
    git: String,
}

enum Source {
    /// An opened file, its name in messages, and its time of change
    File { file: File, shown: String, changed: (i64, i64) },
    /// Bytes that are in no file
    Bytes(Vec<u8>),
}

fn time_of_change(file: &File) -> io::Result<(i64, i64)> {
    file.metadata().map(|found| (found.mtime(), found.mtime_nsec()))
}

impl LocalFile {
    /// Reads an opened file once; `shown` is its path for messages. Refused: one that cannot be read.
    pub fn open(name: &str, file: File, shown: String) -> Result<Self> {
        let what = format!("{shown}: cannot be read");
        let look = || Ok::<_, io::Error>((file.metadata()?.len(), time_of_change(&file)?));
        let (size, changed) = look().usage_context(|| what.clone())?;
        Self::hashed(name, Source::File { file, shown, changed }, size).usage_context(|| what)
    }

    pub fn of_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        let size = bytes.len() as u64;
        Self::hashed(name, Source::Bytes(bytes), size)
    }

    fn hashed(name: &str, source: Source, size: u64) -> Result<Self> {
        let mut file = Self { name: name.to_owned(), source, size, sha256: String::new(), git: String::new() };
        let of = |blob: BlobName| Hasher::new(&blob, size);
        let (mut sha256, mut git) = (of(BlobName::Sha256(String::new())), of(BlobName::Git(String::new())));
        let (mut buffer, mut at) = (vec![0; BUFFER_BYTES], 0);
        while at < size {
            match file.read_at(&mut buffer, at).usage_context(|| name.to_owned())? {
                0 => break,
                read => {
                    sha256.update(&buffer[..read]);
                    git.update(&buffer[..read]);
                    at += read as u64;
                }
            }
        }
        if at != size {
            bail_usage!("{name}: found {at} bytes, expected {size}: another program writes to it");
        }
        (file.sha256, file.git) = (sha256.finish().as_str().to_owned(), git.finish().as_str().to_owned());
        Ok(file)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// True if these are the bytes that a hash names.
    pub(super) fn is(&self, blob: &BlobName) -> bool {
        match blob {
            BlobName::Sha256(hash) => *hash == self.sha256,
            BlobName::Git(hash) => *hash == self.git,
        }
    }

    /// Failed: the file was written to since it was hashed.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let Source::File { file, shown, changed } = &self.source else { return Ok(()) };
        let look = || Ok::<_, io::Error>((file.metadata()?.len(), time_of_change(file)?));
        let found = look().context(|| format!("{shown}: cannot be read"))?;
        if found != (self.size, *changed) {
            let why = "was changed while it was sent; nothing was committed: push it again when it is done";
            return Err(Error::Failed(format!("{shown}: {why}")));
        }
        Ok(())
    }

    /// The bytes by which the hub recognizes the kind of the file.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        self.bytes_to(SAMPLE_BYTES.min(self.size))
    }

    /// All of it.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        self.bytes_to(self.size)
    }

    fn bytes_to(&self, end: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.piece(0, end, &mut |_| ()).read_to_end(&mut bytes).context(|| format!("{}: cannot be read", self.name))?;
        Ok(bytes)
    }

    /// A reader of some of its bytes, which reports the number that it read.
    pub(super) fn piece<'a>(&'a self, from: u64, to: u64, sent: &'a mut dyn FnMut(i64)) -> Piece<'a> {
        Piece { file: self, at: from, end: to, sent }
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match &self.source {
            Source::File { file, .. } => loop {
                match file.read_at(buffer, at) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    read => return read,
                }
            },
            Source::Bytes(bytes) => {
                let rest = &bytes[(at as usize).min(bytes.len())..];
                let read = rest.len().min(buffer.len());
                buffer[..read].copy_from_slice(&rest[..read]);
                Ok(read)
            }
        }
    }
}

pub(super) struct Piece<'a> {
    file: &'a LocalFile,
    at: u64,
    end: u64,
    sent: &'a mut dyn FnMut(i64),
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.at).min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 {
            // An end before the one that was announced would leave the hub waiting.
            return Err(io::Error::new(ErrorKind::InvalidData, "the file became shorter while it was sent"));
        }
        self.at += read as u64;
        (self.sent)(read as i64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
