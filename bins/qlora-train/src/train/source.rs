//! The values of a model: the frozen base from a checkpoint, the low-rank terms from an adapter or freshly drawn.

use super::memory::stored_in;
use crate::adapter::LoraPair;
use crate::checkpoint::{Checkpoint, Fingerprint, Module, StoredType, Tensor16, TensorData};
use crate::error::Result;
use crate::model::{Factor, ParamName, Source};
use crate::refuse;
use qlora_kernels::philox::Stream;
use std::collections::BTreeMap;

/// Keeps the streams of initial values apart from those of shuffling.
const INIT_DOMAIN: u64 = 1 << 32;

pub struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    fingerprint: Fingerprint,
    adapter: BTreeMap<(usize, Module), LoraPair<'a>>,
    seed: u64,
}

impl<'a> CheckpointSource<'a> {
    /// Low-rank terms that `adapter` does not hold are drawn: A Kaiming-uniform with a = √5, B zero.
    pub fn new(checkpoint: &'a Checkpoint, adapter: BTreeMap<(usize, Module), LoraPair<'a>>, seed: u64) -> Self {
        Self { checkpoint, fingerprint: Fingerprint::new(checkpoint), adapter, seed }
    }

    /// The base's fingerprint, once the model has read every tensor.
    pub fn finish(self) -> Result<String> {
        self.fingerprint.finish()
    }
}

impl Source for CheckpointSource<'_> {
    fn stored(&self, name: &str) -> StoredType {
        stored_in(self.checkpoint)(name)
    }

    fn read(&mut self, name: &str) -> Result<Tensor16> {
        let (tensor, digest) = self.checkpoint.read_with_digest(name)?;
        self.fingerprint.add(digest)?;
        check_finite(self.checkpoint, name, &tensor)?;
        Ok(tensor)
    }

    fn lora(&mut self, name: ParamName, len: usize, columns: usize) -> Result<Vec<f32>> {
        if let Some(pair) = self.adapter.get(&(name.layer, name.module)) {
            return Ok(match name.factor {
                Factor::A => pair.a.to_vec(),
                Factor::B => pair.b.to_vec(),
            });
        }
        if name.factor == Factor::B {
            return Ok(vec![0.0; len]);
        }
        // Kaiming-uniform with a = √5: the bound √(6 / ((1 + a²)·fan_in)) is 1/√fan_in.
        let bound = 1.0 / (columns as f32).sqrt();
        let mut stream = Stream::new(self.seed, INIT_DOMAIN + (name.layer * 16 + name.module as usize) as u64);
        Ok((0..len).map(|_| bound * (2.0 * stream.uniform() - 1.0)).collect())
    }
}

/// A NaN or infinity in the base would spread to everything that is trained on it.
fn check_finite(checkpoint: &Checkpoint, name: &str, tensor: &Tensor16) -> Result<()> {
    let found = match &tensor.data {
        TensorData::Bf16(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i].to_f32())),
        TensorData::F16(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i].to_f32())),
        TensorData::F32(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i])),
    };
    let Some((index, value)) = found else { return Ok(()) };
    let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
    refuse!(
        "{}: tensor `{name}`: found {value} at row {}, column {}, expected finite numbers: the file is damaged or the \
         model diverged when it was made; get it again",
        checkpoint.file_of(name).unwrap_or(checkpoint.dir()).display(),
        index / columns,
        index % columns
    )
}
