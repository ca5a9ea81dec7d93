//! Inference: models that are only read, evaluation, generation.

pub mod evaluate;
pub mod generate;
mod model;

pub use model::{ReadOnly, Reading};
