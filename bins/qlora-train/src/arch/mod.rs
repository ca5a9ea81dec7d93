//! Families of models as data. A family is one file that turns its config.json into an [`Arch`]; the model and the
//! backends read the `Arch` and never a config.

mod architecture;
mod config;
mod granite;
mod llama;
mod mistral;
mod multipliers;
mod names;
mod other_keys;
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

pub use architecture::{Activation, Arch, Family, LayerArch, Norm, NormPlace, NormWeight, QkNorm};
pub use multipliers::Multipliers;
pub use names::{LLAMA_NAMES, TensorNames};
pub use projection::{Input, Projection};
pub use registry::FAMILIES;
pub use rope::{Rope, RopeScaling};
