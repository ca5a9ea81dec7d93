//! GGUF, the single-file model format of llama.cpp: a reader, a writer, and the conversion of a Llama to a Hugging Face
//! directory.

mod convert;
mod ggml;
mod k_quants;
mod quantize;
mod read;
#[cfg(test)]
mod tests;
mod tokenizer;
mod write;

pub use convert::write_model_dir;
pub use ggml::{GgmlType, interleaved_row};
pub use quantize::encode;
pub use read::{Gguf, Tensor, Value};
pub use write::{Entries, Entry, Header, TensorInfo, padding};

/// `ensure!(condition, …)`: refuses with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            $crate::bail_usage!($($message)*)
        }
    };
}
use ensure;
