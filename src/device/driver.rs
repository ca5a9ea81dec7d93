//! The calls under device memory: made by the CUDA driver, by the emulation on the host, or by nobody.

use crate::error::Result;
use std::ffi::c_void;

/// Bytes of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemInfo {
    /// Bytes that neither this process, its context included, nor another one has taken.
    pub free: u64,
    /// Bytes of the whole device.
    pub total: u64,
}

/// The properties of a device that kernels and measurements depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Name of the GPU.
    pub gpu: String,
    /// The CUDA version that the driver supports, for example "13.0".
    pub cuda: String,
    /// (9, 0) for sm_90
    pub compute_capability: (usize, usize),
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of the L2 cache.
    pub l2_bytes: usize,
    /// Bytes of device memory.
    pub memory_bytes: usize,
}

/// A queue of work, each in order. None waits for another unless a call makes it, nor for the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// The stream on which kernels run.
    Compute,
    /// Kernels beside those.
    Side,
    /// Copies to the device, beside the kernels.
    ToDevice,
    /// Copies to the host, beside the kernels.
    ToHost,
    /// Sums over several devices, beside the kernels.
    Sums,
}

/// One device. Addresses are of the device's memory, or of host memory where that is said; lengths are bytes.
///
/// Addresses of the device's memory that are handed to an `unsafe` function were given by this driver; all have at
/// least as many bytes from there on, and stay allocated until the work on them is done.
pub(super) trait Driver: Sized {
    /// A point in a queue.
    type Event;
    /// One range of memory of which an arena gives parts.
    type Slab;
    /// Work that was recorded.
    type Graph;

    /// An error, not a panic, where there is no driver or no such device.
    fn open(ordinal: usize) -> Result<Self>;

    /// The CUDA version that the driver supports. An error where there is none, or one that is too old for this build.
    fn cuda_version() -> Result<String>;

    fn name(&self) -> String;

    /// A text that no other device has, of this machine or another.
    fn identity(&self) -> Result<String>;

    fn info(&self) -> Result<DeviceInfo>;

    fn mem_info(&self) -> Result<MemInfo>;

    /// Makes the device that of this thread.
    fn bind(&self) -> Result<()>;

    /// Waits for the work of [`Queue::Compute`].
    fn synchronize(&self) -> Result<()>;

    /// Memory of any bits, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<*mut u8>;

    /// # Safety
    ///
    /// `alloc` gave it for as many bytes. It is freed once, and after work on it of other queues than
    /// [`Queue::Compute`], whose work is waited for.
    unsafe fn free(&self, address: *mut u8, bytes: usize);

    /// `fixed`: a part's address is that of the slab and its offset, in the emulation too, where parts have memory of
    /// their own otherwise.
    fn slab(&self, bytes: u64, fixed: bool) -> Result<Self::Slab>;

    /// Memory of any bits: a part of the slab, which nobody else has.
    fn part(&self, slab: &Self::Slab, offset: u64, bytes: usize) -> Result<*mut u8>;

    /// # Safety
    ///
    /// `part` gave it of this slab for as many bytes. It is freed once, and before its slab. Whoever gets the memory
    /// next uses it in the order of [`Queue::Compute`], which follows the work on it of other queues.
    unsafe fn free_part(&self, slab: &Self::Slab, address: *mut u8, bytes: usize);

    /// Pinned host memory of zeros, aligned to 256 bytes, which the device sees at this address.
    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8>;

    /// # Safety
    ///
    /// `alloc_pinned` gave it for as many bytes. It is freed once, after the work on it.
    unsafe fn free_pinned(&self, address: *mut u8, bytes: usize);

    /// True if memory that this process may only read can be pinned.
    fn pins_read_only(&self) -> Result<bool>;

    /// Pins memory of the host that somebody else allocated: the device sees it at this address. `read_only`: neither
    /// the device nor this process writes it.
    ///
    /// # Safety
    ///
    /// `bytes` are mapped there, and stay so until `unpin`.
    unsafe fn pin(&self, address: *mut u8, bytes: usize, read_only: bool) -> Result<()>;

    /// # Safety
    ///
    /// `pin` had it. It is unpinned once, and no copy from it is under way.
    unsafe fn unpin(&self, address: *mut u8);

    /// Zero bits, in the order of [`Queue::Compute`].
    ///
    /// # Safety
    ///
    /// The address is one that the trait allows.
    unsafe fn clear(&self, address: *mut u8, bytes: usize) -> Result<()>;

    /// Copies to the device in the order of [`Queue::Compute`], and waits for the copy: `from` need not be pinned.
    ///
    /// # Safety
    ///
    /// `to` is an address that the trait allows.
    unsafe fn write(&self, to: *mut u8, from: &[u8]) -> Result<()>;

    /// Copies to the host in the order of [`Queue::Compute`], and waits for the copy.
    ///
    /// # Safety
    ///
    /// `from` is an address that the trait allows; `to` has room for `bytes`.
    unsafe fn read(&self, to: *mut u8, from: *const u8, bytes: usize) -> Result<()>;

    /// Queues a copy. [`Queue::Compute`]: on the device. [`Queue::ToDevice`]: from host memory. [`Queue::ToHost`]: to
    /// host memory. Where that is not pinned, the host may wait for the copy and for the work before it.
    ///
    /// # Safety
    ///
    /// Both are addresses that the trait allows and do not overlap; nothing else uses `to`, or writes `from`, before
    /// the copy is done.
    unsafe fn copy(&self, queue: Queue, to: *mut u8, from: *const u8, bytes: usize) -> Result<()>;

    /// The queue as kernels and other libraries take it: a `CUstream`.
    fn raw(&self, queue: Queue) -> *mut c_void;

    /// `timed` costs something.
    fn event(&self, timed: bool) -> Result<Self::Event>;

    /// The event is done when the work that `queue` has so far is done.
    fn record(&self, event: &mut Self::Event, queue: Queue) -> Result<()>;

    /// Work that is put on `queue` from now on comes after the event.
    fn queue_waits(&self, queue: Queue, event: &Self::Event) -> Result<()>;

    /// True if the event is done. One that was never recorded is.
    fn is_done(&self, event: &Self::Event) -> Result<bool>;

    /// The host waits. An event that was never recorded is done.
    fn host_waits(&self, event: &Self::Event) -> Result<()>;

    /// Seconds between two timed events that are done.
    fn elapsed(&self, start: &Self::Event, end: &Self::Event) -> Result<f64>;

    /// Records the work of [`Queue::Compute`], and of queues that wait for it, from now on instead of doing it.
    fn begin_capture(&self) -> Result<()>;

    /// The recorded work and how many parts it has; an error ends the recording too.
    fn end_capture(&self) -> Result<(Self::Graph, usize)>;

    /// Queues recorded work on [`Queue::Compute`].
    ///
    /// # Safety
    ///
    /// The addresses that were handed over while it was recorded are as the trait says, now.
    unsafe fn launch(&self, graph: &Self::Graph) -> Result<()>;
}

#[cfg(test)]
mod tests {
    /// Calls without a stream are in the order of the default one, which no queue waits for.
    #[test]
    fn no_call_of_the_cuda_driver_is_in_the_order_of_the_default_stream() {
        let source = include_str!("cuda.rs");
        for call in ["memcpy_htod_sync", "memcpy_dtoh_sync", "memcpy_dtod_sync", "memset_d8_sync", "null_mut"] {
            assert!(!source.contains(call), "{call}");
        }
        assert!(source.contains("Queue::Compute => self.compute") && source.contains("StreamKind::NonBlocking"));
    }
}
