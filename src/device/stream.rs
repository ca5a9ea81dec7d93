//! The stream of a call.

#[cfg(kernels = "emulated")]
use super::queues;
use crate::sys;

/// The stream that a call queues its work on. In the emulation its work is done when a call returns, unless it is that
/// of a device that is late ([`emulation`](super::emulation)).
#[derive(Clone, Copy, Debug)]
pub struct Stream(sys::qk_stream);

impl Stream {
    /// The default stream of the current context. A [`Device`](super::Device) has a stream of its own, which neither
    /// waits for this one nor is waited for by it.
    pub const DEFAULT: Self = Self(std::ptr::null_mut());

    /// # Safety
    ///
    /// `stream` is a `CUstream` (`cudaStream_t`) of the context that is current wherever it is used, and lives that
    /// long.
    pub const unsafe fn from_raw(stream: sys::qk_stream) -> Self {
        Self(stream)
    }

    /// The pointer that the C interface takes.
    pub fn as_raw(self) -> sys::qk_stream {
        self.0
    }

    /// Does `work` in the stream's order, as a kernel: what stands in for a library. A graph does it again and again.
    #[cfg(kernels = "emulated")]
    pub(crate) fn run(self, work: impl Fn() + 'static) {
        queues::put_on(self.0.cast(), work);
    }
}
