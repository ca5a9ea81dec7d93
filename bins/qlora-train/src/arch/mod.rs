//! Families of models as data: shapes, projections, rotation, names of tensors.

mod llama;
mod projection;
mod rope;
pub mod shapes;

pub use llama::LlamaConfig;
pub use projection::{Module, expected_tensors};
pub use rope::{Rope, RopeScaling};
