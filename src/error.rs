//! The errors of devices and kernels.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, CudaError>;

/// An error of a device, of its driver, or of a call to the kernels.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    /// Refused before anything was queued: an argument's length, shape or alignment.
    #[error("{operation} of {shape}: {problem}")]
    Argument { operation: &'static str, shape: String, problem: String },
    /// The call returned this status: positive a `cudaError_t`, negative a `qk_status`.
    #[error("{operation} of {shape} failed with {name} ({code}){detail}")]
    Status { operation: &'static str, shape: String, code: i32, name: String, detail: String },
    /// No device, or not enough of its memory.
    #[error("{0}")]
    Device(String),
    /// The driver's error, and what it was asked to do.
    #[error("{what}: {text} ({code})")]
    Driver { what: String, code: i32, text: String },
}

impl CudaError {
    /// The status code, if a call returned one.
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Status { code, .. } | Self::Driver { code, .. } => Some(*code),
            Self::Argument { .. } | Self::Device(_) => None,
        }
    }

    /// True if the GPU can do nothing more for this process: the runtime and the driver number such errors alike.
    pub fn is_lost(&self) -> bool {
        // Uncorrectable ECC and NVLink errors, a contained one; from an illegal address to a launch that failed; a lost
        // service or device; unknown.
        matches!(self.code(), Some(214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721 | 810 | 911 | 999))
    }

    #[cfg(kernels = "cuda")]
    pub(crate) fn driver(what: &str, code: i32, text: String) -> Self {
        Self::Driver { what: what.to_owned(), code, text }
    }
}
