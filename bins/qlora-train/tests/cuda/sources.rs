//! Random models, and the same with every value moved by as much as rounding to bf16 may move it.

use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::rng::RngStream;
use qlora_train::arch::{
    Activation, Arch, GEMMA_NAMES, LayerArch, Multipliers, Norm, NormWeight, OLMO2_NAMES, PHI3_NAMES, Projection,
};
use qlora_train::arch::{QkNorm, Rope};
use qlora_train::backend::Quantization;
use qlora_train::backend::cuda::Cuda;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::{LoraSpec, LoraTerm, ParamId};
use qlora_train::model::{Activations, ModelSpec, Source};
use trainer_lab::model::Memory;

/// The largest relative error of rounding to bf16: half a unit in the last of 8 significant bits.
const BF16: f32 = 1.0 / 256.0;

/// Tokens of the longest batch of these tests.
pub const TOKENS: usize = 64;

/// Two layers, grouped queries, and widths that are no multiples of the kernels' tiles.
pub fn config() -> Arch {
    Arch {
        vocab_size: 211,
        hidden_size: 192,
        intermediate_size: 200,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        ..tiny_arch()
    }
}

/// With all four multipliers. Logits are divided by little, so that they differ: of nearly equal ones each gradient of
/// a target is 1 / vocabulary - 1, which rounds to the same side in every token, and that the moved models do not have.
pub fn with_multipliers(arch: Arch) -> Arch {
    let multipliers =
        Multipliers { embedding: 3.0, attention: Some(0.1), residual: 0.22, logits_scaling: 0.1, ..Multipliers::NONE };
    Arch { multipliers, ..arch }
}

/// Scores that are not divided by the root of the heads' width.
pub fn with_scores_of(scale: f32, arch: Arch) -> Arch {
    Arch { multipliers: Multipliers { attention: Some(scale), ..Multipliers::NONE }, ..arch }
}

/// The second layer's queries and keys are not rotated.
pub fn with_a_layer_not_rotated(arch: Arch) -> Arch {
    let layers = [Some(arch.rope()), None].map(|rope| LayerArch { window: None, rope });
    Arch { layers: layers.to_vec(), ..arch }
}

/// The second layer's rotation is a faster one.
pub fn with_two_ropes(arch: Arch) -> Arch {
    let fast = Rope { theta: 20.0, ..arch.rope() };
    let layers = [arch.rope(), fast].map(|rope| LayerArch { window: None, rope: Some(rope) });
    Arch { layers: layers.to_vec(), ..arch }
}

/// A model with norms on the outputs of branches, not on their inputs; queries and keys are normalized over their whole
/// width.
pub fn with_norms_after(arch: Arch) -> Arch {
    Arch { names: &OLMO2_NAMES, qk_norm: QkNorm::Width, ..arch }
}

/// Fused projections, and heads that are rotated in part.
pub fn with_fused_projections(arch: Arch) -> Arch {
    let layers = LayerArch::uniform(Rope { partial: 0.75, ..arch.rope() });
    Arch { names: &PHI3_NAMES, layers, ..arch }
}

/// Norms around both branches that multiply by 1 + w, gelu, and an embedding that is scaled.
pub fn with_norms_around(arch: Arch) -> Arch {
    let norm = Norm { weight: NormWeight::OnePlus, ..arch.norm };
    let multipliers = Multipliers { embedding: 13.3, embedding_is_rounded: true, ..arch.multipliers };
    let activation = Activation::GeluTanh;
    Arch { names: &GEMMA_NAMES, norm, multipliers, activation, qk_norm: QkNorm::Head, ..arch }
}

/// Scores and logits that are bounded, below what many of them would be.
pub fn with_soft_caps(arch: Arch) -> Arch {
    Arch { attention_soft_cap: Some(0.5), logits_soft_cap: Some(0.8), ..arch }
}

/// A smaller [`config`], for comparisons of bits, which depend on no size.
pub fn small_config() -> Arch {
    Arch { vocab_size: 67, hidden_size: 128, intermediate_size: 72, num_heads: 2, num_kv_heads: 1, ..config() }
}

pub fn spec(config: Arch) -> ModelSpec {
    let all: Vec<Projection> = config.names.all().collect();
    let mut lora = LoraSpec::uniform(&config, &all, 6, 4.2, 0.1);
    // Ranks differ within an operand, one pair is large enough for 8-bit states, and one segment has no term.
    if all.contains(&Projection::K) {
        lora.terms.insert(config.module(0, Projection::K), LoraTerm::lora(11, 3.3));
        lora.terms.insert(config.module(0, Projection::Gate), LoraTerm::lora(32, 9.6));
        lora.terms.remove(&config.module(1, Projection::Up));
    }
    let activations = vec![Activations::Recompute; config.num_layers];
    let spec = ModelSpec::new(lora, config, Quantization::NF4, TOKENS);
    ModelSpec { activations, trainable: true, positions: 50, seed: 11, ..spec }
}

/// Bytes on the device, more than any of these models takes.
pub const ROOM: u64 = 64 << 20;

pub fn on_device(spec: &ModelSpec) -> Cuda {
    Cuda::new(0, spec.run_shape(), &spec.arch, ROOM).unwrap()
}

pub fn memory(config: &Arch) -> Memory {
    Memory::new(Synthetic::new(config.clone(), 5))
}

/// A model, its frozen values in f32 and, with a seed, each multiplied by a factor within [`BF16`] of 1.
pub struct Moved<S = Memory> {
    source: S,
    quantization: Quantization,
    seed: Option<u64>,
    tensors: u64,
}

impl Moved {
    /// The model of [`memory`].
    pub fn new(spec: &ModelSpec, seed: Option<u64>) -> Self {
        Self::of(memory(&spec.arch), spec.quantization, seed)
    }
}

impl<S: Source> Moved<S> {
    pub fn of(source: S, quantization: Quantization, seed: Option<u64>) -> Self {
        Self { source, quantization, seed, tensors: 0 }
    }

    fn moved(&mut self, mut values: Vec<f32>) -> Vec<f32> {
        self.tensors += 1;
        if let Some(seed) = self.seed {
            let mut stream = RngStream::new(seed, self.tensors);
            values.iter_mut().for_each(|value| *value *= 1.0 + BF16 * (2.0 * stream.uniform() - 1.0));
        }
        values
    }
}

impl<S: Source> Source for Moved<S> {
    fn stored(&self, _name: &str) -> StoredType {
        StoredType::F32
    }

    fn resident_as(&self, _name: &str) -> Option<Quantization> {
        Some(Quantization::None)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        let tensor = self.source.read(name)?;
        let shape = tensor.shape.clone();
        let values = match self.quantization {
            Quantization::Nf4 { block_size, double_quant } if name.contains("_proj.weight") => {
                let options = Nf4Options { block_size, double_quant };
                Nf4Matrix::quantize(&tensor.to_f32(), shape[0], shape[1], &options).unwrap().dequantize()
            }
            _ => tensor.to_f32(),
        };
        Ok(HostTensor::from_f32(shape, self.moved(values), StoredType::F32))
    }

    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        let values = self.source.lora(id, len, columns)?;
        Ok(self.moved(values))
    }

    fn magnitude(&mut self, module: &str) -> Option<Vec<f32>> {
        let values = self.source.magnitude(module)?;
        Some(self.moved(values))
    }
}
