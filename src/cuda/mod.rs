//! The kernels of `cuda/` behind checked Rust functions: on a GPU (feature `cuda`), or the same kernels on the host
//! (feature `emulation`, for tests).
//!
//! [`sys`] is the C interface as generated; [`View`] and [`ViewMut`] are device memory with a length; the functions of
//! [`nf4`] check every shape, length and alignment and then make one call. No type of a CUDA library appears: a stream
//! is the C interface's pointer, so that another engine's context and streams serve.
//!
//! The only module of this crate with `unsafe` code.

#![allow(unsafe_code)]

pub mod adamw;
pub mod attention;
pub mod attention_cache;
pub mod cross_entropy;
pub mod cublaslt;
pub mod dispatch;
#[cfg(feature = "emulation")]
pub mod emulation;
mod error;
pub mod layer;
pub mod linear;
pub mod linear_backward;
pub mod logits;
pub mod lora_gradients;
#[cfg(feature = "cuda")]
pub mod measure;
mod memory;
pub mod nf4;
mod operand;
pub mod sys;
#[doc(hidden)]
pub mod test_kernels;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_adamw;
#[cfg(test)]
mod tests_layer;
#[cfg(feature = "cuda")]
mod transfer;
#[cfg(feature = "cuda")]
pub mod typed;

pub use error::{CudaError, Result, status_name};
pub use memory::ranges;
pub use memory::{Arena, Buffer, Capacity, Device, Element, Inbox, Marks, Outbox, Pinned, Stash, View, ViewMut};
pub use nf4::absmax_transpose;
#[cfg(feature = "cuda")]
pub use transfer::Transfer;

/// What nvcc compiled the kernels for, for example "80,90,120": code of each, and PTX of the first for what is newer.
#[cfg(feature = "cuda")]
pub const ARCHITECTURES: &str = env!("QLORA_KERNELS_ARCHS");

/// The stream that a call queues its work on. The emulation ignores it: its work is done when a call returns.
#[derive(Clone, Copy, Debug)]
pub struct Stream(sys::qk_stream);

impl Stream {
    /// The default stream of the current context.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    /// # Safety
    ///
    /// `stream` is a `CUstream` (`cudaStream_t`) of the context that is current wherever it is used, and lives that long.
    pub const unsafe fn from_raw(stream: sys::qk_stream) -> Self {
        Self(stream)
    }
}

/// The version of the linked C interface; equals [`sys::QK_ABI_VERSION`] unless another library's was linked.
pub fn abi_version() -> u32 {
    // SAFETY: takes nothing, returns a constant.
    unsafe { sys::qk_abi_version() }
}
