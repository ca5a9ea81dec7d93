//! The parts that train, infer and bench share: device, memory plan, base model, rows, weights.

mod adalora;
pub mod advice;
mod base_model;
mod cgroup;
pub mod chat_template;
mod device;
pub mod disk;
pub mod graphs;
pub mod host;
pub mod host_copy;
pub mod interruption;
mod linear;
pub mod lint_facts;
mod loading;
pub mod model_spec;
pub mod plan;
pub mod planner;
pub mod predicted;
pub mod quantized_cache;
pub mod scratch;
pub mod training_data;
mod transfer_bandwidth;
pub mod untrained_tokens;
pub mod weights;
mod wsl;

pub use base_model::{Loaded, description_alone, replace_adapter_by_base};
pub use device::{Budget, CUDA_BUILD, Device, DeviceJob};
pub use interruption::Interruption;
pub use linear::Linear;
pub use training_data::{TrainingData, columns};
pub use transfer_bandwidth::TransferBandwidth;
pub use weights::CheckpointSource;
