//! What a kernel call can fail with.

use super::sys;
use std::ffi::CStr;

pub type Result<T> = std::result::Result<T, CudaError>;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    /// Refused before anything was queued: an argument's length, shape or alignment.
    #[error("{operation} of {shape}: {problem}")]
    Argument { operation: &'static str, shape: String, problem: String },
    /// The call returned this status: positive a `cudaError_t`, negative a `qk_status`.
    #[error("{operation} of {shape} failed with {name} ({code}){detail}")]
    Status { operation: &'static str, shape: String, code: i32, name: String, detail: String },
    /// No device, or its memory.
    #[error("{0}")]
    Device(String),
    /// The driver said this while doing that.
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

    /// Whether the GPU can do nothing more for this process: the runtime and the driver number such errors alike.
    pub fn is_lost(&self) -> bool {
        // Uncorrectable ECC and NVLink errors, a contained one; from an illegal address to a launch that failed; a lost service or device;
        // unknown.
        matches!(self.code(), Some(214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721 | 810 | 911 | 999))
    }

    #[cfg(not(feature = "emulation"))]
    pub(super) fn driver(what: &str, code: i32, text: String) -> Self {
        Self::Driver { what: what.to_owned(), code, text }
    }
}

/// The name of a status, as the C interface gives it.
pub fn status_name(code: i32) -> String {
    // SAFETY: returns a static, NUL-terminated string for every argument.
    unsafe { CStr::from_ptr(sys::qk_status_name(code)) }.to_string_lossy().into_owned()
}

/// The operation and shape that errors of one call name.
pub(super) struct Operation {
    pub name: &'static str,
    pub shape: String,
}

impl Operation {
    pub fn check(&self, holds: bool, problem: impl FnOnce() -> String) -> Result<()> {
        if holds { Ok(()) } else { Err(self.argument(problem())) }
    }

    pub fn argument(&self, problem: String) -> CudaError {
        CudaError::Argument { operation: self.name, shape: self.shape.clone(), problem }
    }

    pub fn length(&self, what: &str, found: usize, expected: usize) -> Result<()> {
        self.check(found == expected, || format!("{what} has {found} elements, expected {expected}"))
    }

    /// A dimension or stride as the C interface takes it.
    pub fn dimension(&self, what: &str, value: usize) -> Result<i64> {
        i64::try_from(value).map_err(|_| self.argument(format!("{what} is {value}, which is too large")))
    }

    pub fn status(&self, code: i32) -> Result<()> {
        if code == sys::QK_OK {
            return Ok(());
        }
        let detail = if code == sys::QK_ERROR_EMULATION { detail() } else { String::new() };
        Err(CudaError::Status {
            operation: self.name,
            shape: self.shape.clone(),
            code,
            name: status_name(code),
            detail,
        })
    }
}

#[cfg(feature = "emulation")]
fn detail() -> String {
    format!(": {}", super::emulation::message())
}

#[cfg(not(feature = "emulation"))]
fn detail() -> String {
    String::new()
}
