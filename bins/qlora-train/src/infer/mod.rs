//! Inference: models that are only read, evaluation, generation.

mod adapters;
pub mod answers;
pub mod by_row;
pub mod evaluate;
mod model;
pub mod prompt;
pub mod questions;
pub mod stop;

pub use adapters::{Adapters, Together};
pub use model::{InferenceJob, InferenceModel};
