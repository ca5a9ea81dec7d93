//! Device memory: opening a device, buffers and views of them, an arena with its allocator, copies beside the stream,
//! graphs of what is queued on it, and sums over several devices.
//!
//! [`Device`] is a GPU (feature `cuda`) or the emulation of one on the host (feature `emulation`, for tests). With
//! neither feature
//! [`Device::open`] is an error, and everything that needs no device works: [`Arena::planned`] and [`OffsetAllocator`]
//! count the bytes of a run that is never made.

mod alloc;
mod arena;
mod buffer;
mod driver;
mod element;
pub mod emulation;
mod event;
mod graph;
mod mapping;
mod nccl;
mod offload;
mod open;
mod pinned;
mod pinned_buffer;
mod round_trip;
mod shared;
mod side;
mod staging;
mod stream;
mod view;

#[cfg(kernels = "emulated")]
mod capture;
#[cfg(kernels = "cuda")]
mod cuda;
#[cfg(kernels = "emulated")]
mod emulated;
#[cfg(kernels = "emulated")]
mod queues;
#[cfg(kernels = "absent")]
mod stub;

/// The driver that this build calls.
#[cfg(kernels = "cuda")]
use cuda::Gpu as Implementation;
#[cfg(kernels = "emulated")]
use emulated::Emulated as Implementation;
#[cfg(kernels = "absent")]
use stub::Stub as Implementation;

pub use alloc::{MemoryEnd, OffsetAllocator, PeakUsage};
pub use arena::Arena;
pub use buffer::Buffer;
#[cfg(kernels = "cuda")]
pub use cuda::context;
pub use driver::{DeviceInfo, MemInfo};
pub use element::Element;
pub use event::EventTimer;
pub use graph::Graph;
pub use nccl::{Nccl, Others};
pub use offload::OffloadSlot;
pub use open::{ARCHITECTURES, Device, KERNELS, Kernels, cuda_version, driver_version};
pub use pinned::HostMemory;
pub use pinned_buffer::PinnedBuffer;
pub use round_trip::RoundTrip;
pub use shared::SharedPinned;
pub use side::SideStream;
pub use staging::{ReadbackStaging, UploadStaging};
pub use stream::Stream;
pub use view::{View, ViewMut};
