//! The parts that train, infer and bench share: device, memory plan, base model, rows, weights.

mod adalora;
pub mod advice;
mod base_model;
mod cgroup;
pub mod chat_template;
mod device;
pub mod disk;
pub mod host;
pub mod host_copy;
pub mod interruption;
mod linear;
pub mod lint_facts;
pub mod model_spec;
pub mod plan;
pub mod planner;
pub mod predicted;
pub mod training_data;
pub mod untrained_tokens;
pub mod weights;

pub use base_model::{Loaded, description_alone, replace_adapter_by_base};
pub use device::{Budget, CUDA_BUILD, Device, DeviceJob};
pub use interruption::Interruption;
pub use linear::Linear;
pub use training_data::{TrainingData, columns};
pub use weights::CheckpointSource;
