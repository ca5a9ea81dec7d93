//! Inference: models that are only read, evaluation, generation.

pub mod evaluate;
mod model;

pub use model::{InferenceJob, InferenceModel};
