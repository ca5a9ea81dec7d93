//! The kernels of `cuda/` behind checked Rust functions: a file for each C function (with the query of its workspace,
//! its path and its variant for dense weights), with the names of the header.
//!
//! A function checks every shape, length and alignment and then makes one call. No type of a CUDA library appears: a
//! stream is the C interface's pointer, so that another engine's context and streams serve. In a build without kernels
//! everything is checked too, and the call then returns `QK_ERROR_NOT_BUILT`; sizes of workspaces and paths are
//! computed here, from the shapes alone, in every build.

/// `call!(qk_function(arguments))`: a call of the C interface. In a build without kernels its status is
/// `QK_ERROR_NOT_BUILT`.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        #[cfg(not(kernels = "absent"))]
        let status = $crate::sys::$function($($argument),*);
        #[cfg(kernels = "absent")]
        let status = {
            // Never called, so that the function need not exist; but its arguments are checked in every build.
            let _ = || $crate::sys::$function($($argument),*);
            $crate::sys::QK_ERROR_NOT_BUILT
        };
        status
    }};
}

#[cfg(all(test, not(kernels = "absent")))]
#[macro_use]
mod refusals;

pub mod absmax_transpose;
pub mod adamw;
mod adamw_table;
mod adamw_update;
pub mod attention;
pub mod attention_backward;
pub mod attention_cache;
pub mod attention_cache_append;
mod check;
pub mod cross_entropy;
pub mod cublaslt;
pub mod dispatch;
pub mod embedding;
pub mod embedding_backward;
mod gradient_norm;
pub mod head_norm;
pub mod linear;
pub mod linear_backward;
pub mod linear_dx;
pub mod linear_dx_product;
pub mod linear_forward;
pub mod linear_product;
pub mod logits;
pub mod lora_down;
pub mod lora_dy_b;
pub mod lora_gradients;
pub mod magnitude;
pub mod magnitude_backward;
pub mod magnitude_norms;
pub mod nf4;
pub mod nf4_dequantize;
pub mod nf4_quantize;
pub mod norm_gradient;
mod operand;
mod product;
pub mod replace_rows;
pub mod rms_norm;
pub mod rms_norm_backward;
pub mod rope;
pub mod row_squares;
mod rows;
pub mod swiglu;
pub mod swiglu_backward;
#[cfg(all(test, not(kernels = "absent")))]
mod tests;
#[cfg(all(test, not(kernels = "absent")))]
mod tests_adamw;
#[cfg(all(test, not(kernels = "absent")))]
mod tests_layer;

pub use absmax_transpose::absmax_transpose;
pub use attention::attention;
pub use attention_backward::attention_backward;
pub use attention_cache::attention_cache;
pub use attention_cache_append::attention_cache_append;
pub use check::{abi_version, status_name};
pub use cross_entropy::cross_entropy;
pub use embedding::embedding;
pub use embedding_backward::{embedding_backward, embedding_backward_of_rows};
pub use head_norm::{HeadNorm, HeadRotation, head_norm, head_norm_backward};
pub use linear_dx::linear_dx;
pub use linear_dx_product::linear_dx_product;
pub use linear_forward::linear_forward;
pub use linear_product::linear_product;
pub use logits::logits;
pub use lora_down::lora_down;
pub use lora_dy_b::lora_dy_b;
pub use lora_gradients::lora_gradients;
pub use magnitude::{Magnitude, magnitude};
pub use magnitude_backward::{OutputGradient, magnitude_backward};
pub use magnitude_norms::{RowSquares, magnitude_norms};
pub use nf4_dequantize::nf4_dequantize;
pub use nf4_quantize::nf4_quantize;
pub use norm_gradient::{NormGradient, norm_gradient};
pub use replace_rows::replace_rows;
pub use rms_norm::{Residual, rms_norm};
pub use rms_norm_backward::rms_norm_backward;
pub use rope::{RopeTable, rope};
pub use row_squares::row_squares;
pub use rows::{Rows, RowsMut};
pub use swiglu::swiglu;
pub use swiglu_backward::swiglu_backward;
