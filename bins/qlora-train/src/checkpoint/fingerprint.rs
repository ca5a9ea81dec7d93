//! The identity of a base model: one SHA-256 over the names, shapes, types and stored bytes of its tensors.
//!
//! Recipe. For every tensor that the model uses (those of [`expected_tensors`](super::expected_tensors); a stored
//! `lm_head.weight` that is tied, or `inv_freq`, is not used):
//!
//! ```text
//! digest = SHA-256(the tensor's bytes as stored: row-major, little-endian), as 64 lower-case hex digits
//! line   = name TAB dtype TAB shape TAB digest LF      dtype: BF16, F16, F32; shape: decimal, joined by ","
//! ```
//!
//! The fingerprint is the SHA-256 in lower-case hex of the line `qlora base fingerprint 1` LF, followed by the lines of
//! all tensors sorted by the bytes of the name. It does not depend on how the tensors are spread over files, on the
//! order they are read in, or on the number of threads; it can be computed while the weights are loaded.

use std::collections::BTreeMap;
use std::fmt::Write;

use rayon::prelude::*;
use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};

use super::{Checkpoint, Tensor16};
use crate::error::{Error, Result};

const HEAD: &str = "qlora base fingerprint 1\n";

/// The digest of one tensor's stored bytes, with what else goes into the fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDigest {
    pub name: String,
    /// The line of the recipe, less the name and the newline.
    description: String,
}

impl TensorDigest {
    fn new(name: &str, info: &TensorInfo, hasher: Sha256) -> Self {
        let shape: Vec<String> = info.shape.iter().map(usize::to_string).collect();
        let description = format!("{}\t{}\t{}", info.dtype, shape.join(","), hex(&hasher.finalize()));
        Self { name: name.to_owned(), description }
    }
}

/// Collects digests of tensors, in any order, into the fingerprint of a checkpoint.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// Every tensor of the checkpoint, with its description once it was seen.
    seen: BTreeMap<String, Option<String>>,
}

impl Fingerprint {
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self { seen: checkpoint.names().map(|name| (name.to_owned(), None)).collect() }
    }

    /// A tensor may come twice (a tied embedding is read for both ends), but not with other bytes. Failed: the
    /// checkpoint has no such tensor, or its file changed in between.
    pub fn add(&mut self, digest: TensorDigest) -> Result<()> {
        let TensorDigest { name, description } = digest;
        match self.seen.get_mut(&name) {
            Some(slot) if slot.as_ref().is_none_or(|earlier| *earlier == description) => *slot = Some(description),
            Some(_) => return Err(Error::Failed(format!("tensor `{name}`: its file changed while it was being read"))),
            None => return Err(Error::Failed(format!("tensor `{name}` is not part of the fingerprinted checkpoint"))),
        }
        Ok(())
    }

    /// 64 hex digits, equal to [`Checkpoint::fingerprint`]. Failed: a tensor was not added.
    pub fn finish(self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(HEAD);
        for (name, description) in self.seen {
            let Some(description) = description else {
                return Err(Error::Failed(format!("fingerprint: tensor `{name}` was never read")));
            };
            hasher.update(format!("{name}\t{description}\n"));
        }
        Ok(hex(&hasher.finalize()))
    }
}

impl Checkpoint {
    /// Reads every tensor once, several at a time (rayon), 1 MiB of each in memory.
    pub fn fingerprint(&self) -> Result<String> {
        let names: Vec<&str> = self.names().collect();
        let digests: Vec<TensorDigest> = names.into_par_iter().map(|name| self.digest(name)).collect::<Result<_>>()?;
        let mut fingerprint = Fingerprint::new(self);
        digests.into_iter().try_for_each(|digest| fingerprint.add(digest))?;
        fingerprint.finish()
    }

    /// [`read`](Self::read) and digest in one pass over the file.
    pub fn read_with_digest(&self, name: &str) -> Result<(Tensor16, TensorDigest)> {
        let (file, info) = self.find(name)?;
        let mut hasher = Sha256::new();
        let tensor = file.read(name, info, |bytes| hasher.update(bytes))?;
        Ok((tensor, TensorDigest::new(name, info, hasher)))
    }

    /// [`read_f32`](Self::read_f32) and digest (of the bytes as stored) in one pass over the file.
    pub fn read_f32_with_digest(&self, name: &str) -> Result<(Vec<f32>, TensorDigest)> {
        let (file, info) = self.find(name)?;
        let mut hasher = Sha256::new();
        let values = file.read_f32(name, info, |bytes| hasher.update(bytes))?;
        Ok((values, TensorDigest::new(name, info, hasher)))
    }

    /// The digest of one tensor, without keeping it.
    pub fn digest(&self, name: &str) -> Result<TensorDigest> {
        let (file, info) = self.find(name)?;
        let mut hasher = Sha256::new();
        file.scan(name, info, |bytes| hasher.update(bytes))?;
        Ok(TensorDigest::new(name, info, hasher))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
