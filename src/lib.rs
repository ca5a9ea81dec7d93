//! NF4 double-quantised storage and fused QLoRA kernels.
//!
//! - [`nf4`]: the storage format, quantise and dequantise, in plain Rust;
//! - [`blockwise`]: 8-bit optimiser states and AdamW on them;
//! - [`mod@reference`]: naive, generic implementations of every operation of a Llama step, the oracle of every test;
//! - [`device`]: device memory, on a GPU (feature `cuda`) or on the host (feature `emulation`, for tests);
//! - [`ops`]: the GPU kernels behind checked functions, and [`sys`] their C interface as generated;
//! - [`weights`]: NF4 weights in device memory;
//! - [`philox`]: the random numbers of dropout and initialisation.

#![deny(unsafe_code)]

pub mod blockwise;
#[allow(unsafe_code)]
pub mod device;
mod error;
#[cfg(kernels = "cuda")]
#[allow(unsafe_code)]
pub mod interop;
pub mod nf4;
#[allow(unsafe_code)]
pub mod ops;
pub mod philox;
pub mod reference;
#[allow(rustdoc::broken_intra_doc_links, reason = "generated: an option of bindgen looks like a link")]
pub mod sys;
pub mod weights;

pub use error::{CudaError, Result};
