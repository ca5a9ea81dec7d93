//! A model of random values in any shape, for measuring. No file is read.

use crate::arch::Arch;
use crate::backend::Quantization;
use crate::error::{Error, Result};
use crate::files::random::{RandomNf4, repeated};
use crate::files::tensor::{HostTensor, StoredType, TensorData, WeightSource};
use crate::lora::ParamId;
use crate::model::Source;
use crate::session::weights::initial_lora;
use half::bf16;
use qlora_kernels::nf4::{Absmax, NESTED_BLOCK_SIZE, dynamic_map_signed};
use qlora_kernels::rng::RngStream;
use std::collections::HashMap;
use std::sync::Arc;

/// Random bytes and values that are drawn once; tensors repeat them, each from another place.
const DRAWN: usize = 1 << 20;

/// Linear weights of a standard deviation of about 0.02, norms of 1. Every tensor is made when it is asked for.
pub struct RandomSource {
    arch: Arch,
    shapes: HashMap<String, Vec<usize>>,
    quantization: Quantization,
    seed: u64,
    bytes: Arc<[u8]>,
    values: Vec<bf16>,
    tensors: usize,
}

impl RandomSource {
    pub fn new(arch: &Arch, quantization: Quantization, seed: u64) -> Self {
        let mut stream = RngStream::new(seed, 0);
        let bytes = (0..DRAWN / 4).flat_map(|_| stream.next_u32().to_le_bytes()).collect();
        let spread = 0.02 * 3f32.sqrt();
        let values = (0..DRAWN).map(|_| bf16::from_f32(spread * (2.0 * stream.uniform() - 1.0))).collect();
        let shapes = arch.tensors().into_iter().collect();
        Self { arch: arch.clone(), shapes, quantization, seed, bytes, values, tensors: 0 }
    }

    /// Index in the random values at which the next tensor begins. It advances by a prime, so that it repeats only
    /// after many tensors.
    fn next_first(&mut self) -> usize {
        self.tensors += 1;
        self.tensors * 7919 % DRAWN
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.shapes.get(name).cloned().ok_or_else(|| Error::Failed(format!("a model of this shape has no {name}")))
    }
}

impl Source for RandomSource {
    fn stored(&self, _name: &str) -> StoredType {
        StoredType::Bf16
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let shape = self.shape(name)?;
        let len = shape.iter().product();
        let first = self.next_first();
        if name.contains("norm") {
            return Ok(HostTensor::from_f32(shape, vec![1.0; len], StoredType::Bf16));
        }
        Ok(HostTensor { shape, data: TensorData::Bf16(repeated(&self.values, first, len)) })
    }

    /// NF4 as it would be after quantization, without quantizing; the backend that holds it makes the codes.
    fn read_weight(&mut self, name: &str) -> Result<WeightSource> {
        let Quantization::Nf4 { block_size, double_quant } = self.quantization else {
            return self.read(name).map(WeightSource::Tensor);
        };
        let shape = self.shape(name)?;
        let first = self.next_first();
        let (rows, cols) = (shape[0], shape[1]);
        let blocks = (rows * cols).div_ceil(block_size);
        // The 16 values have a root mean square of 0.6.
        let absmax = match double_quant {
            true => Absmax::DoubleQuantized {
                codes: repeated(&self.bytes, (first + 1) % DRAWN, blocks),
                nested_absmax: vec![0.01; blocks.div_ceil(NESTED_BLOCK_SIZE)],
                nested_block_size: NESTED_BLOCK_SIZE,
                nested_map: Box::new(*dynamic_map_signed()),
                offset: 0.035,
            },
            false => Absmax::F32(vec![0.035; blocks]),
        };
        let bytes = self.bytes.clone();
        Ok(WeightSource::Random(RandomNf4 { rows, cols, block_size, absmax, bytes, first }))
    }

    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        Ok(initial_lora(&self.arch, self.seed, id, len, columns))
    }
}

#[cfg(test)]
mod tests;
