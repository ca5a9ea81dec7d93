//! Sums over several GPUs, each of a process of its own, by NCCL: the library is loaded at run time.
//!
//! [`Nccl::join`] meets the other ranks; [`Nccl::begin`] queues a sum beside the kernels, and [`Nccl::finish`] waits
//! for all of them. No call waits without end: the host looks again and again whether it is done, and asks [`Others`]
//! whether all ranks are there; if not, the communicator is aborted, which ends its kernels.
//!
//! A GPU's sums are the library's (feature `cuda`). In the emulation a stand-in takes its place, which lets the ranks
//! add up in the host's memory, so that everything around the calls is tested without a GPU.

mod calls;
mod group;
#[cfg(kernels = "cuda")]
mod library;
mod poll;
#[cfg(kernels = "emulated")]
mod stand_in;
#[cfg(kernels = "absent")]
mod stub;

/// The calls that this build makes.
#[cfg(kernels = "cuda")]
use library::Library as Api;
#[cfg(kernels = "emulated")]
use stand_in::StandIn as Api;
#[cfg(kernels = "absent")]
use stub::Stub as Api;

pub use calls::Others;
pub use group::Nccl;
