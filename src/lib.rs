//! NF4 double-quantised storage and fused QLoRA kernels.
//!
//! - [`nf4`]: the storage format, quantise and dequantise, in plain Rust;
//! - [`blockwise`]: 8-bit optimiser states and AdamW on them;
//! - [`mod@reference`]: naive, generic implementations of every operation of a Llama step, the oracle of every test;
//! - `cuda` (features `cuda`, `emulation`): the GPU kernels and their C interface;
//! - [`philox`]: the random numbers of dropout and initialisation.

#![deny(unsafe_code)]

pub mod blockwise;
#[cfg(any(feature = "cuda", feature = "emulation"))]
pub mod cuda;
pub mod nf4;
pub mod philox;
pub mod reference;
