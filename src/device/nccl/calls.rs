//! The calls of NCCL that sums over ranks need.

use crate::error::Result;
use std::ffi::c_void;
use std::time::Duration;

/// Bytes of the name of a group, which one rank makes and all of them are given: `NCCL_UNIQUE_ID_BYTES`.
pub(super) const ID_BYTES: usize = 128;

/// The error's text where there is no library.
#[cfg(not(kernels = "absent"))]
pub(super) const MISSING: &str = "no NCCL: libnccl.so.2 is not where the loader looks (LD_LIBRARY_PATH may name its \
                                  directory; the packages libnccl2 and, of PyPI, nvidia-nccl-cu13 have it)";

/// A communicator: `ncclComm_t`.
pub(super) type Handle = *mut c_void;

/// The other ranks of a group, as a process hears of them by other ways than the GPU.
pub trait Others {
    /// An error ends every wait: a rank is gone.
    fn check(&mut self) -> Result<()>;
    /// Replaces the values by their sums over all ranks. Asked for in the emulation only, by all ranks alike.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;
    /// The time that the ranks have for what one of them has begun.
    fn patience(&self) -> Duration;
}

/// NCCL, as far as it is used. A communicator is a non-blocking one: what is asked of it may be on its way when a call
/// returns, and [`is_call_done`](Self::is_call_done) tells.
pub(super) trait Calls: Sized {
    /// An error where the library is missing, or lacks a call.
    fn load() -> Result<Self>;

    /// For example "2.27.3".
    fn version(&self) -> Result<String>;

    /// A name that no other group has.
    fn unique_id(&self) -> Result<[u8; ID_BYTES]>;

    /// Begins to join the group of `id`, for the device that is current in this thread.
    fn init_rank(&self, id: &[u8; ID_BYTES], rank: usize, world_size: usize) -> Result<Handle>;

    /// True if the last call has been carried out; an error if it could not be, or a queued sum failed.
    ///
    /// # Safety
    ///
    /// `init_rank` gave the communicator, which is neither aborted nor destroyed.
    unsafe fn is_call_done(&self, comm: Handle) -> Result<bool>;

    /// Queues the sums over all ranks of some arrays, each in place, as one group of calls.
    ///
    /// # Safety
    ///
    /// - The communicator is one that [`is_call_done`](Self::is_call_done) allows.
    /// - Each array is memory of the device with as many elements, which stays allocated, and is used by nothing else,
    ///   until the work on `stream`, a stream of the communicator's device, is done or aborted.
    unsafe fn all_reduce(&self, comm: Handle, arrays: &[(*mut f32, usize)], stream: *mut c_void) -> Result<()>;

    /// Does what is queued, where no GPU does it by itself. `waits`: the host waits for it.
    fn run(&self, _others: &mut dyn Others, _waits: bool) -> Result<()> {
        Ok(())
    }

    /// Ends the communicator with all that is queued on it.
    ///
    /// # Safety
    ///
    /// The communicator is one that [`is_call_done`](Self::is_call_done) allows, and is not used afterwards.
    unsafe fn abort(&self, comm: Handle);

    /// Ends a communicator on which nothing is queued.
    ///
    /// # Safety
    ///
    /// That of [`abort`](Self::abort).
    unsafe fn destroy(&self, comm: Handle);
}
