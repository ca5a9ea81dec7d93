//! Families of models as data. A family is one file that turns its config.json into an [`Arch`]; the model and the
//! backends read the `Arch` and never a config.

mod architecture;
mod config;
mod gemma2;
mod gemma3;
mod granite;
mod granite4;
mod hunyuan;
mod llama;
mod ministral3;
mod mistral;
mod multipliers;
mod names;
mod olmo2;
mod olmo3;
mod other_keys;
mod phi3;
mod projection;
mod qwen2;
mod qwen3;
mod registry;
mod rope;
mod seed_oss;
pub mod shapes;
mod smollm3;
mod tensors;
mod untrained;
mod wrapper;

pub use architecture::{Arch, Family, LayerArch, LayerKeys, Norm, NormWeight, QkNorm};
pub use multipliers::Multipliers;
pub use names::{
    BranchNorms, GEMMA_NAMES, GRANITE4_NAMES, HUNYUAN_NAMES, LLAMA_NAMES, OLMO2_NAMES, PHI3_NAMES, TensorNames,
};
pub use projection::{Input, Projection};
pub use qlora_kernels::shape::GateActivation as Activation;
pub use registry::FAMILIES;
pub use rope::{Rope, RopeScaling};
pub use wrapper::Wrapper;
pub(crate) use wrapper::text_config;
