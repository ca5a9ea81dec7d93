//! The stream of a call.

use crate::sys;

/// The stream that a call queues its work on. The emulation ignores it: its work is done when a call returns.
#[derive(Clone, Copy, Debug)]
pub struct Stream(sys::qk_stream);

impl Stream {
    /// The default stream of the current context.
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
}
