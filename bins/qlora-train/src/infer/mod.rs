//! Inference: models that are only read, evaluation, generation.

pub mod answers;
pub mod evaluate;
mod model;
pub mod prompt;
pub mod questions;
pub mod stop;

pub use model::{InferenceJob, InferenceModel};
