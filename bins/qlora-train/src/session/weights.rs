//! The values of a model: the frozen base from a checkpoint, the low-rank terms from an adapter or freshly drawn.

use super::plan::stored_in;
use crate::adapter::LoraPair;
use crate::arch::Module;
use crate::backend::Quantization;
use crate::base::{Checkpoint, Fingerprint};
use crate::error::Result;
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use crate::model::{Factor, ParamName, Source};
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
        stored_in(self.checkpoint)(name).dtype
    }

    fn read(&mut self, name: &str) -> Result<Tensor16> {
        let (tensor, digest) = self.checkpoint.read_with_digest(name)?;
        self.fingerprint.add(digest)?;
        self.checkpoint.check_finite(name, &tensor)?;
        Ok(tensor)
    }

    fn held(&self, name: &str) -> Option<Quantization> {
        stored_in(self.checkpoint)(name).held
    }

    fn read_weight(&mut self, name: &str) -> Result<StoredWeight> {
        let (weight, digest) = self.checkpoint.read_weight_with_digest(name)?;
        self.fingerprint.add(digest)?;
        // The scales of NF4 were checked when its parts were put together.
        if let StoredWeight::Tensor(tensor) = &weight {
            self.checkpoint.check_finite(name, tensor)?;
        }
        Ok(weight)
    }

    fn lora(&mut self, name: ParamName, len: usize, columns: usize) -> Result<Vec<f32>> {
        if let Some(pair) = self.adapter.get(&(name.layer, name.module)) {
            return Ok(match name.factor {
                Factor::A => pair.a.to_vec(),
                Factor::B => pair.b.to_vec(),
            });
        }
        Ok(initial_lora(self.seed, name, len, columns))
    }
}

/// Values of a tensor of a new adapter whose rows have `columns` values: B is zero, A Kaiming-uniform with a = √5, whose bound
/// √(6 / ((1 + a²)·fan_in)) is 1/√fan_in.
pub(crate) fn initial_lora(seed: u64, name: ParamName, len: usize, columns: usize) -> Vec<f32> {
    if name.factor == Factor::B {
        return vec![0.0; len];
    }
    let bound = 1.0 / (columns as f32).sqrt();
    let mut stream = Stream::new(seed, INIT_DOMAIN + (name.layer * 16 + name.module as usize) as u64);
    (0..len).map(|_| bound * (2.0 * stream.uniform() - 1.0)).collect()
}
