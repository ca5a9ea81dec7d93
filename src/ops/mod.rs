//! The kernels of `cuda/` behind checked Rust functions, one file for each C function or
//! family of them, with the names of the header.
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

pub mod adamw;
pub mod attention;
pub mod attention_cache;
mod check;
pub mod cross_entropy;
pub mod cublaslt;
pub mod dispatch;
pub mod embedding;
pub mod head_norm;
pub mod linear;
pub mod linear_backward;
pub mod logits;
pub mod lora_gradients;
#[cfg(kernels = "cuda")]
pub mod measure;
pub mod nf4;
mod operand;
pub mod rms_norm;
pub mod rms_norm_backward;
pub mod rope;
pub mod swiglu;
pub mod swiglu_backward;
#[cfg(not(kernels = "absent"))]
#[doc(hidden)]
pub mod test_kernels;
#[cfg(all(test, not(kernels = "absent")))]
mod tests;
#[cfg(all(test, not(kernels = "absent")))]
mod tests_adamw;
#[cfg(all(test, not(kernels = "absent")))]
mod tests_layer;

pub use check::{abi_version, status_name};
pub use embedding::embedding;
pub use head_norm::{HeadNorm, head_norm, head_norm_backward};
pub use rms_norm::{Residual, rms_norm};
pub use rms_norm_backward::rms_norm_backward;
pub use rope::{RopeTable, rope};
pub use swiglu::swiglu;
pub use swiglu_backward::swiglu_backward;
