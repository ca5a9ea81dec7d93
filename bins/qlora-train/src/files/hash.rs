//! SHA-256, and bytes in hexadecimal.

use super::regular;
use crate::error::{Context, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are read at once: they stay in the cache of the processor that hashes them.
const PIECE: usize = 256 << 10;
/// Bytes of a block that is hashed by itself.
const BLOCK: u64 = 4 << 20;

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 (hex) of a file's bytes.
pub fn file_hash(path: &Path) -> Result<String> {
    let read = || hash_of(regular::open(path)?);
    read().usage_context(|| format!("{}: cannot be read", path.display()))
}

/// SHA-256 (hex) of the rest of a reader.
pub(crate) fn hash_of(mut from: impl Read) -> io::Result<String> {
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(hex(hash.finalize())),
            Ok(read) => hash.update(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// SHA-256 (hex) over the SHA-256s of a file's blocks of 4 MiB, in their order, and its size (8 bytes, little-endian).
/// It distinguishes files as well as the SHA-256 of all bytes, and all processors compute it together.
pub(crate) fn block_hash(path: &Path) -> Result<String> {
    let read = || -> io::Result<String> {
        let file = regular::open(path)?;
        let size = file.metadata()?.len();
        let blocks = usize::try_from(size.div_ceil(BLOCK)).map_err(io::Error::other)?;
        let of_block = |piece: &mut Vec<u8>, block: usize| {
            let begin = block as u64 * BLOCK;
            hash_between(&file, begin, (begin + BLOCK).min(size), piece)
        };
        let hashes = (0..blocks).into_par_iter().map_init(|| vec![0; PIECE], of_block);
        let hashes = hashes.collect::<io::Result<Vec<[u8; 32]>>>()?;
        Ok(joined(&hashes, size))
    };
    read().usage_context(|| format!("{}: cannot be read", path.display()))
}

fn hash_between(file: &File, begin: u64, end: u64, piece: &mut [u8]) -> io::Result<[u8; 32]> {
    let (mut hash, mut at) = (Sha256::new(), begin);
    while at < end {
        let length = (end - at).min(piece.len() as u64);
        let part = &mut piece[..length as usize];
        file.read_exact_at(part, at)?;
        hash.update(part);
        at += length;
    }
    Ok(hash.finalize().into())
}

fn joined(blocks: &[[u8; 32]], size: u64) -> String {
    let mut hash = Sha256::new();
    blocks.iter().for_each(|block| hash.update(block));
    hash.update(size.to_le_bytes());
    hex(hash.finalize())
}

/// [`file_hash`] and [`block_hash`] of the same bytes, each of which is read once.
pub(crate) fn file_and_block_hash(path: &Path) -> Result<(String, String)> {
    let read = || -> io::Result<(String, String)> {
        let mut file = regular::open(path)?;
        let (mut whole, mut blocks, mut size) = (Sha256::new(), Vec::new(), 0);
        let mut block = Vec::with_capacity(BLOCK as usize);
        loop {
            block.clear();
            let read = Read::by_ref(&mut file).take(BLOCK).read_to_end(&mut block)? as u64;
            if read > 0 {
                let ((), of_block) = rayon::join(|| whole.update(&block), || Sha256::digest(&block));
                blocks.push(of_block.into());
                size += read;
            }
            if read < BLOCK {
                return Ok((hex(whole.finalize()), joined(&blocks, size)));
            }
        }
    };
    read().usage_context(|| format!("{}: cannot be read", path.display()))
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
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_blocks_are_those_of_the_same_bytes_and_any_byte_changes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let block = BLOCK as usize;
        let mut seen = std::collections::HashSet::new();
        for size in [0, 1, PIECE, block - 1, block, block + 1, 2 * block + PIECE + 3] {
            let mut bytes: Vec<u8> = (0..size).map(|at| (at * 31 / 7) as u8).collect();
            let others = [size.checked_sub(1), (size > block).then_some(0)].into_iter().flatten().map(Some);
            for flipped in std::iter::once(None).chain(others) {
                if let Some(at) = flipped {
                    bytes[at] ^= 0x40;
                }
                std::fs::write(&path, &bytes).unwrap();
                let (whole, blocks) = file_and_block_hash(&path).unwrap();
                assert_eq!(whole, hex(Sha256::digest(&bytes)), "{size}");
                assert_eq!((file_hash(&path).unwrap(), block_hash(&path).unwrap()), (whole, blocks.clone()), "{size}");
                assert!(seen.insert(blocks), "{size} {flipped:?}");
            }
        }
        let parts = [&Sha256::digest([7_u8])[..], &1_u64.to_le_bytes()[..]].concat();
        std::fs::write(&path, [7_u8]).unwrap();
        assert_eq!(block_hash(&path).unwrap(), hex(Sha256::digest(parts)));
        assert!(block_hash(dir.path()).unwrap_err().to_string().contains("cannot be read"));
    }
}
