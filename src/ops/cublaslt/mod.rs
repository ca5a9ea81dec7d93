//! cuBLASLt, loaded at run time where it is installed: the baseline of the benches, and a row of the dispatch table
//! ([`super::dispatch`]). [`CublasLt::open`] says so, without a panic, where the library or a GPU is missing. In the
//! emulation a product on the host stands in its place.

#[cfg(not(kernels = "absent"))]
mod gemm;
#[cfg(kernels = "emulated")]
mod host;
#[cfg(not(kernels = "absent"))]
mod layers;
#[cfg(kernels = "cuda")]
mod library;
#[cfg(kernels = "absent")]
mod stub;

#[cfg(not(kernels = "absent"))]
pub use gemm::Gemm;
#[cfg(kernels = "emulated")]
pub use host::CublasLt;
#[cfg(kernels = "cuda")]
pub use library::CublasLt;
#[cfg(kernels = "absent")]
pub use stub::CublasLt;

/// Bytes of a workspace of the library's own, as NVIDIA recommends for Hopper.
pub const WORKSPACE_BYTES: usize = 32 << 20;
