//! cuBLASLt, loaded at run time where it is installed: the baseline of the benches, and a row of the dispatch table
//! ([`super::dispatch`]). [`CublasLt::open`] says so, without a panic, where the library or a GPU is missing.

#[cfg(not(kernels = "cuda"))]
mod absent;
#[cfg(kernels = "cuda")]
mod layers;
#[cfg(kernels = "cuda")]
mod library;

#[cfg(not(kernels = "cuda"))]
pub use absent::CublasLt;
#[cfg(kernels = "cuda")]
pub use library::{CublasLt, Gemm};
