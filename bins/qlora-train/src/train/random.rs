//! A model of random values in any shape, for measuring: nothing is read.

use super::source::initial_lora;
use crate::backend::Quantization;
use crate::checkpoint::{LlamaConfig, StoredType, StoredWeight, Tensor16, TensorData, expected_tensors};
use crate::error::{Error, Result};
use crate::model::{ParamName, Source};
use half::bf16;
use qlora_kernels::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix, dynamic_map_signed};
use qlora_kernels::philox::Stream;
use std::collections::HashMap;

/// Random bytes and values that are drawn once; tensors repeat them, each from another place.
const DRAWN: usize = 1 << 20;

/// Linear weights of a standard deviation of about 0.02, norms of 1. Every tensor is made when it is asked for.
pub struct RandomSource {
    shapes: HashMap<String, Vec<usize>>,
    quantization: Quantization,
    seed: u64,
    bytes: Vec<u8>,
    values: Vec<bf16>,
    tensors: usize,
}

impl RandomSource {
    pub fn new(config: &LlamaConfig, quantization: Quantization, seed: u64) -> Self {
        let mut stream = Stream::new(seed, 0);
        let bytes = (0..DRAWN / 4).flat_map(|_| stream.next_u32().to_le_bytes()).collect();
        let spread = 0.02 * 3f32.sqrt();
        let values = (0..DRAWN).map(|_| bf16::from_f32(spread * (2.0 * stream.uniform() - 1.0))).collect();
        let shapes = expected_tensors(config).into_iter().collect();
        Self { shapes, quantization, seed, bytes, values, tensors: 0 }
    }

    /// `len` of what was drawn, from another place for every tensor.
    fn repeated<T: Copy>(drawn: &[T], tensors: usize, len: usize) -> Vec<T> {
        // A prime, so that places come round late.
        let from = tensors * 7919 % drawn.len();
        let mut values = Vec::with_capacity(len);
        values.extend_from_slice(&drawn[from..][..len.min(drawn.len() - from)]);
        while values.len() < len {
            let rest = len - values.len();
            values.extend_from_slice(&drawn[..rest.min(drawn.len())]);
        }
        values
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.shapes.get(name).cloned().ok_or_else(|| Error::Failed(format!("a Llama of this shape has no {name}")))
    }
}

impl Source for RandomSource {
    fn stored(&self, _name: &str) -> StoredType {
        StoredType::Bf16
    }

    fn read(&mut self, name: &str) -> Result<Tensor16> {
        let shape = self.shape(name)?;
        let len = shape.iter().product();
        self.tensors += 1;
        if name.contains("norm") {
            return Ok(Tensor16::from_f32(shape, vec![1.0; len], StoredType::Bf16));
        }
        Ok(Tensor16 { shape, data: TensorData::Bf16(Self::repeated(&self.values, self.tensors, len)) })
    }

    /// NF4 as it would be after quantisation, without quantising.
    fn read_weight(&mut self, name: &str) -> Result<StoredWeight> {
        let Quantization::Nf4 { block_size, double_quant } = self.quantization else {
            return self.read(name).map(StoredWeight::Tensor);
        };
        let shape = self.shape(name)?;
        self.tensors += 1;
        let (n, k) = (shape[0], shape[1]);
        let blocks = (n * k).div_ceil(block_size);
        // The 16 values have a root mean square of 0.6.
        let absmax = match double_quant {
            true => Absmax::DoubleQuantised {
                codes: Self::repeated(&self.bytes, self.tensors + 1, blocks),
                nested_absmax: vec![0.01; blocks.div_ceil(NESTED_BLOCK_SIZE)],
                nested_block_size: NESTED_BLOCK_SIZE,
                nested_code: Box::new(*dynamic_map_signed()),
                offset: 0.035,
            },
            false => Absmax::F32(vec![0.035; blocks]),
        };
        let codes = Self::repeated(&self.bytes, self.tensors, (n * k).div_ceil(2));
        let matrix = Nf4Matrix::from_parts(n, k, block_size, CODE, codes, absmax);
        Ok(StoredWeight::Nf4(matrix.map_err(|error| Error::Failed(format!("{name}: {error}")))?))
    }

    fn lora(&mut self, name: ParamName, len: usize, columns: usize) -> Result<Vec<f32>> {
        Ok(initial_lora(self.seed, name, len, columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::synthetic::tiny_config;

    #[test]
    fn every_tensor_of_the_shape_has_plausible_values() {
        let config = LlamaConfig { hidden_size: 128, intermediate_size: 256, ..tiny_config() };
        let rms = |values: &[f32]| (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
        for double_quant in [true, false] {
            let quantization = Quantization::Nf4 { block_size: 64, double_quant };
            let mut source = RandomSource::new(&config, quantization, 3);
            let mut last = Vec::new();
            for (name, shape) in expected_tensors(&config) {
                let values = match name.contains("_proj") {
                    true => match source.read_weight(&name).unwrap() {
                        StoredWeight::Nf4(matrix) => matrix.dequantize(),
                        StoredWeight::Tensor(_) => panic!("{name} is to be in NF4"),
                    },
                    false => source.read(&name).unwrap().to_f32(),
                };
                assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
                let expected = if name.contains("norm") { 1.0 } else { 0.02 };
                assert!((rms(&values) / expected - 1.0).abs() < 0.25, "{name}: {}", rms(&values));
                assert!(name.contains("norm") || values != last, "{name} repeats the tensor before it");
                last = values;
            }
            assert!(source.read("model.layers.9.mlp.up_proj.weight").is_err());
        }
        let long = RandomSource::repeated(&[1, 2, 3], 1, 10);
        assert_eq!(long, [3, 1, 2, 3, 1, 2, 3, 1, 2, 3]);
    }
}
