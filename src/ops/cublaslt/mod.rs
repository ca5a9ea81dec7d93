//! cuBLASLt, loaded at run time where it is installed: the baseline of the benches, and a row of the dispatch table
//! ([`super::dispatch`]). [`CublasLt::open`] says so, without a panic, where the library or a GPU is missing.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod layers;
#[cfg(feature = "cuda")]
mod library;

#[cfg(not(feature = "cuda"))]
pub use absent::CublasLt;
#[cfg(feature = "cuda")]
pub use library::{CublasLt, Gemm};
