//! NF4 double-quantized storage and fused QLoRA kernels.
//!
//! - [`nf4`]: the storage format, quantize and dequantize, in plain Rust;
//! - [`optim`]: AdamW, and [`optim8bit`], its states in 8 bits;
//! - [`shape`] and [`rope`]: the shapes of attention and the angles of the rotary embedding;
//! - [`mod@reference`]: naive, generic implementations of every operation of a Llama step, the oracle of every test;
//! - [`device`]: device memory, on a GPU (feature `cuda`) or on the host (feature `emulation`, for tests);
//! - [`ops`]: the GPU kernels behind checked functions, and [`sys`] their C interface as generated;
//! - [`weights`]: NF4 weights in device memory;
//! - [`rng`]: the random numbers of dropout and initialization.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod device;
mod error;
#[cfg(kernels = "cuda")]
#[allow(unsafe_code)]
pub mod interop;
pub mod nf4;
#[allow(unsafe_code)]
pub mod ops;
pub mod optim;
pub mod optim8bit;
pub mod real;
pub mod reference;
pub mod rng;
pub mod rope;
pub mod shape;
#[allow(rustdoc::broken_intra_doc_links, reason = "generated: an option of bindgen looks like a link")]
pub mod sys;
pub mod weights;

pub use error::{CudaError, Result};
