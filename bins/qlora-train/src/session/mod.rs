//! What train, infer and bench share: device, memory plan, inputs, where weights come from.

pub mod chat_template;
mod device;
pub mod disk;
pub mod inputs;
pub mod interruption;
pub mod plan;
pub mod weights;

pub use device::{Budget, Device, OnDevice};
pub use inputs::{Loaded, Workload};
pub use interruption::Interruption;
pub use weights::CheckpointSource;
