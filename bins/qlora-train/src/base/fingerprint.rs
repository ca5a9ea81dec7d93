//! The identity of a base model: one SHA-256 over the names, shapes, types and stored bytes of its tensors.
//!
//! Recipe. For every tensor that the model uses (those of [`Arch::tensors`](crate::arch::Arch::tensors); a stored
//! `lm_head.weight` that is tied, or `inv_freq`, is not used):
//!
//! ```text
//! digest = SHA-256(the tensor's bytes as stored: row-major, little-endian), as 64 lower-case hex digits
//! line   = name TAB dtype TAB shape TAB digest LF      dtype: BF16, F16, F32; shape: decimal, joined by ","
//! ```
//!
//! The line of a weight that is stored in NF4 has the dtype NF4, the shape of the matrix, and as digest the SHA-256 of
//! the lines of its stored parts (`weight`, `weight.absmax`, …; each by the recipe above), sorted.
//!
//! The fingerprint is the SHA-256 in lower-case hex of the line `qlora base fingerprint 1` LF, followed by the lines of
//! all tensors sorted by the bytes of the name. It does not depend on how the tensors are spread over files, on the
//! order they are read in, or on the number of threads; it can be computed while the weights are loaded.
//!
//! A second one, over the lines of the tensors that quantizing leaves as they are (all but the linear layers of blocks
//! and the output layer), tells that two checkpoints are the same model in different forms.
//!
//! A checkpoint that `quantize` wrote has two: that of its own tensors, which has to be the one recorded in it, and
//! that of the original, which is the one that adapters know.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};

use super::Nf4Entry;
use super::quantized::OriginalBase;
use super::{Checkpoint, StoredTensor};
use crate::bail_usage;
use crate::error::{Context, Error, Result};
use crate::files::safetensors::TensorFile;
use crate::files::tensor::{HostTensor, PIECE, WeightSource};

const HEAD: &str = "qlora base fingerprint 1\n";
/// Pieces of a weight that wait to be taken.
const AHEAD: usize = 4;

/// The digest of one tensor's stored bytes, with what else goes into the fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDigest {
    pub name: String,
    /// The line of the recipe, less the name and the newline.
    description: String,
}

impl TensorDigest {
    fn new(name: &str, dtype: impl Display, shape: &[usize], hasher: Sha256) -> Self {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let description = format!("{dtype}\t{}\t{}", shape.join(","), hex(&hasher.finalize()));
        Self { name: name.to_owned(), description }
    }

    /// Digest of a weight in NF4 from its parts: what follows the weight's name, type, shape and bytes hashed.
    fn of_hashed_parts<'a>(
        name: &str,
        shape: &[usize],
        parts: impl Iterator<Item = (&'a str, Dtype, &'a [usize], Sha256)>,
    ) -> Self {
        let mut lines: Vec<String> = parts
            .map(|(suffix, dtype, shape, hasher)| {
                let part = Self::new(&format!("{name}{suffix}"), dtype, shape, hasher);
                format!("{}\t{}\n", part.name, part.description)
            })
            .collect();
        lines.sort();
        Self::new(name, "NF4", shape, Sha256::new_with_prefix(lines.concat()))
    }

    pub(super) fn of_parts<'a>(
        name: &str,
        shape: &[usize],
        parts: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
    ) -> Self {
        let hashed = |(suffix, dtype, shape, bytes)| (suffix, dtype, shape, Sha256::new_with_prefix(bytes));
        Self::of_hashed_parts(name, shape, parts.into_iter().map(hashed))
    }
}

/// Identity of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFingerprint {
    /// Hash of all tensors, as they were before `quantize`
    pub whole: String,
    /// Hash of the tensors that quantizing leaves as they are: equal in every form of one model
    pub unquantized: String,
}

/// Collects digests of tensors, in any order, into the fingerprint of a checkpoint.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// Every tensor of the checkpoint, with its description once it was seen.
    seen: BTreeMap<String, Option<String>>,
    /// Names of the weights that quantizing changes
    linear: BTreeSet<String>,
    /// For messages.
    checkpoint: String,
    /// Advice where the weights are not those that were quantized
    remedy: &'static str,
    original: Option<OriginalBase>,
}

impl Fingerprint {
    pub fn new(checkpoint: &Checkpoint) -> Self {
        Self {
            seen: checkpoint.names().map(|name| (name.to_owned(), None)).collect(),
            linear: checkpoint.names().filter(|name| checkpoint.is_linear(name)).map(str::to_owned).collect(),
            checkpoint: checkpoint.weights_dir.as_ref().unwrap_or(&checkpoint.dir).display().to_string(),
            remedy: match checkpoint.weights_dir {
                Some(_) => "remove this directory, and the next start quantizes it again",
                None => "quantize it again",
            },
            original: checkpoint.original.clone(),
        }
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

    /// 64 hex digits each, the first equal to [`Checkpoint::fingerprint`]. Failed: a tensor was not added. Refused: the
    /// checkpoint records another fingerprint of its quantized tensors.
    pub fn finish(self) -> Result<BaseFingerprint> {
        let (mut whole, mut unquantized) = (Sha256::new_with_prefix(HEAD), Sha256::new_with_prefix(HEAD));
        for (name, description) in self.seen {
            let Some(description) = description else {
                return Err(Error::Failed(format!("fingerprint: tensor `{name}` was never read")));
            };
            let line = format!("{name}\t{description}\n");
            whole.update(&line);
            if !self.linear.contains(&name) {
                unquantized.update(&line);
            }
        }
        let (found, unquantized) = (hex(&whole.finalize()), hex(&unquantized.finalize()));
        let Some(original) = self.original else { return Ok(BaseFingerprint { whole: found, unquantized }) };
        if found != original.quantized_fingerprint {
            bail_usage!(
                "{}: found tensors with the fingerprint {found}, expected {} as its files record: they were changed \
                 after the model was quantized; {}",
                self.checkpoint,
                original.quantized_fingerprint,
                self.remedy
            );
        }
        Ok(BaseFingerprint { whole: original.fingerprint, unquantized })
    }
}

impl Checkpoint {
    /// Reads every tensor once, several at a time (rayon), 1 MiB of each in memory.
    pub fn fingerprint(&self) -> Result<String> {
        let names: Vec<&str> = self.names().collect();
        let digests: Vec<TensorDigest> = names.into_par_iter().map(|name| self.digest(name)).collect::<Result<_>>()?;
        let mut fingerprint = Fingerprint::new(self);
        digests.into_iter().try_for_each(|digest| fingerprint.add(digest))?;
        Ok(fingerprint.finish()?.whole)
    }

    /// [`read`](Self::read) and digest in one pass over the file.
    pub fn read_with_digest(&self, name: &str) -> Result<(HostTensor, TensorDigest)> {
        let (weight, digest) = self.read_weight_with_digest(name)?;
        Ok((weight.into_tensor(), digest))
    }

    /// [`read_weight`](Self::read_weight) and digest in one pass over the file.
    pub fn read_weight_with_digest(&self, name: &str) -> Result<(WeightSource, TensorDigest)> {
        match self.find(name)? {
            StoredTensor::Dense(file, info) => {
                let mut hasher = Sha256::new();
                let tensor = self.files[*file].read(name, info, |bytes| hasher.update(bytes))?;
                let digest = TensorDigest::new(name, info.dtype, &info.shape, hasher);
                Ok((WeightSource::Tensor(tensor), digest))
            }
            StoredTensor::Nf4(entry) => {
                let (matrix, digest) = entry.hashed(name, |seen| entry.read(name, &self.files, None, seen))?;
                Ok((WeightSource::Nf4(matrix), digest))
            }
        }
    }

    /// [`read`](Self::read) and digest in one pass over the file, in pieces of [`PIECE`] elements, of which the last
    /// may have fewer: `take` gets them in order, while a thread reads a few ahead. An error of it ends the reading.
    pub fn read_pieces_with_digest(
        &self,
        name: &str,
        take: &mut dyn FnMut(HostTensor) -> Result<()>,
    ) -> Result<TensorDigest> {
        let StoredTensor::Dense(file, info) = self.find(name)? else {
            let (tensor, digest) = self.read_with_digest(name)?;
            take(tensor)?;
            return Ok(digest);
        };
        let (file, len) = (&self.files[*file], info.shape.iter().product::<usize>());
        let (sender, pieces) = sync_channel(AHEAD);
        std::thread::scope(|scope| {
            let read = move || -> Result<TensorDigest> {
                let mut hasher = Sha256::new();
                for first in (0..len).step_by(PIECE) {
                    let range = first..len.min(first + PIECE);
                    let piece = file.read_range(name, info, range, |bytes| hasher.update(bytes))?;
                    // Nobody takes it where the piece before was refused.
                    if sender.send(piece).is_err() {
                        break;
                    }
                }
                Ok(TensorDigest::new(name, info.dtype, &info.shape, hasher))
            };
            let thread = std::thread::Builder::new().name("read-weights".to_owned());
            let reader = thread
                .spawn_scoped(scope, read)
                .context(|| "a thread that reads weights cannot be started".to_owned())?;
            pieces.into_iter().try_for_each(take)?;
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The digest of a weight that is stored in NF4, without keeping it. Refused: as reading it.
    pub fn check_weight_with_digest(&self, name: &str) -> Result<TensorDigest> {
        match self.find(name)? {
            StoredTensor::Dense(..) => self.digest(name),
            StoredTensor::Nf4(entry) => Ok(entry.hashed(name, |seen| entry.check(name, &self.files, seen))?.1),
        }
    }

    /// [`read_f32`](Self::read_f32) and digest (of the bytes as stored) in one pass over the file.
    pub fn read_f32_with_digest(&self, name: &str) -> Result<(Vec<f32>, TensorDigest)> {
        let StoredTensor::Dense(file, info) = self.find(name)? else {
            let (weight, digest) = self.read_weight_with_digest(name)?;
            return Ok((weight.into_tensor().into_f32(), digest));
        };
        let mut hasher = Sha256::new();
        let values = self.files[*file].read_f32(name, info, |bytes| hasher.update(bytes))?;
        Ok((values, TensorDigest::new(name, info.dtype, &info.shape, hasher)))
    }

    /// The digest of one tensor, without keeping it.
    pub fn digest(&self, name: &str) -> Result<TensorDigest> {
        digest_of(&self.files, name, self.find(name)?, &|| Ok(()))
    }
}

/// The digest of a tensor of these files, without keeping it. An error of `go_on`, which is asked after each piece,
/// ends the reading.
pub(super) fn digest_of(
    files: &[TensorFile],
    name: &str,
    entry: &StoredTensor,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<TensorDigest> {
    let scan = |name: &str, file: usize, info: &TensorInfo| -> Result<Sha256> {
        let mut hasher = Sha256::new();
        files[file].scan_while(name, info, |bytes| {
            hasher.update(bytes);
            go_on()
        })?;
        Ok(hasher)
    };
    match entry {
        StoredTensor::Dense(file, info) => {
            Ok(TensorDigest::new(name, info.dtype, &info.shape, scan(name, *file, info)?))
        }
        StoredTensor::Nf4(entry) => {
            let mut parts = Vec::with_capacity(entry.parts.len());
            for (&part, (file, info)) in &entry.parts {
                let hasher = scan(&format!("{name}{part}"), *file, info)?;
                parts.push((part, info.dtype, &info.shape[..], hasher));
            }
            Ok(TensorDigest::of_hashed_parts(name, &entry.shape, parts.into_iter()))
        }
    }
}

impl Nf4Entry {
    /// The result of `read`, and the digest of the bytes of each part that it passes on.
    fn hashed<T>(
        &self,
        name: &str,
        read: impl FnOnce(&mut dyn FnMut(&str, &[u8])) -> Result<T>,
    ) -> Result<(T, TensorDigest)> {
        let mut hashers: BTreeMap<&str, Sha256> = self.parts.keys().map(|&part| (part, Sha256::new())).collect();
        let found = read(&mut |part, bytes| hashers.get_mut(part).expect("a part of the entry").update(bytes))?;
        let parts = self.parts.iter().zip(hashers.into_values());
        let parts = parts.map(|((&part, (_, info)), hasher)| (part, info.dtype, &info.shape[..], hasher));
        Ok((found, TensorDigest::of_hashed_parts(name, &self.shape, parts)))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
