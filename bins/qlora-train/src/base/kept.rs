//! A model whose weights are read from a copy in NF4 that is kept elsewhere, and a key for a model's files that needs
//! few of its values.

use super::{Checkpoint, StoredTensor};
use crate::bail_usage;
use crate::error::Result;
use crate::files::hash::hex;
use sha2::{Digest, Sha256};
use std::time::SystemTime;

/// Values of each tensor that are part of a key. They tell models apart whose files have one state: file systems of
/// images may give all files one time, and network file systems may give out their inodes anew.
const SAMPLED: usize = 256;

impl Checkpoint {
    /// A key (64 hex digits) of the files as they are now, of the tensors that are used of them and of a few values of
    /// each; and whether a change of a file from `now` on is sure to change it.
    pub fn files_key(&self, now: SystemTime) -> Result<(String, bool)> {
        let (mut hash, mut is_settled) = (Sha256::new(), true);
        for file in self.files.iter() {
            let state = file.state()?;
            hash.update(state.key() + "\n");
            is_settled &= state.is_settled(now);
        }
        for (name, entry) in &self.tensors {
            let StoredTensor::Dense(file, info) = entry else { continue };
            hash.update(format!("{name} {file} {:?} {:?} {:?}\n", info.dtype, info.shape, info.data_offsets));
        }
        self.sample(&mut hash)?;
        Ok((hex(hash.finalize()), is_settled))
    }

    /// Hashes the values in the middle of each tensor in 16 or 32 bits.
    fn sample(&self, hash: &mut Sha256) -> Result<()> {
        for (name, entry) in &self.tensors {
            let StoredTensor::Dense(file, info) = entry else { continue };
            let (file, len) = (&self.files[*file], info.shape.iter().product::<usize>());
            let part = file.part(name, info, len / 2..len.min(len / 2 + SAMPLED))?;
            file.scan(name, &part, |bytes| hash.update(bytes))?;
        }
        Ok(())
    }

    /// Takes the weights of `copy`, a copy of this model in NF4, in place of its own. Name, directory and all that is
    /// not a weight stay. Refused: a copy of another model.
    pub fn take_weights_of(&mut self, copy: Checkpoint) -> Result<()> {
        let is_alike = self.names().eq(copy.names()) && self.names().all(|name| self.shape(name) == copy.shape(name));
        if !is_alike {
            bail_usage!("{}: found tensors of another model than {}", copy.dir.display(), self.dir.display());
        }
        let Checkpoint { dir, files, tensors, quantization, original, .. } = copy;
        (self.files, self.tensors, self.weights_dir) = (files, tensors, Some(dir));
        (self.quantization, self.original) = (quantization, original);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
