//! GGUF, the single-file model format of llama.cpp: a reader, and the conversion of a Llama to a Hugging Face
//! directory.

mod convert;
mod ggml;
mod read;
#[cfg(test)]
mod tests;
mod tokenizer;

pub use convert::write_model_dir;
pub use ggml::GgmlType;
pub use read::{Gguf, Tensor, Value};

/// `ensure!(condition, …)`: refuses with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            $crate::refuse!($($message)*)
        }
    };
}
use ensure;
