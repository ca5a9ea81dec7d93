//! The checks that every operation makes before its call, and the errors that name the operation and its shape.

use crate::error::{CudaError, Result};
use crate::sys;

/// The operation and shape that errors of one call name.
pub(super) struct Operation {
    pub name: &'static str,
    pub shape: String,
}

/// The `struct_size` of an argument block.
pub(super) fn struct_size<T>() -> u32 {
    size_of::<T>() as u32
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

    /// The product of the dimensions.
    pub fn size(&self, dimensions: &[usize]) -> Result<usize> {
        let product = dimensions.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension));
        product.ok_or_else(|| self.argument("too many elements".into()))
    }

    pub fn status(&self, code: i32) -> Result<()> {
        if code == sys::QK_OK {
            return Ok(());
        }
        let detail = match code {
            sys::QK_ERROR_EMULATION => emulation_message().map_or_else(String::new, |message| format!(": {message}")),
            sys::QK_ERROR_NOT_BUILT => ": this build has no CUDA support; rebuild with `--features cuda`".to_owned(),
            _ => String::new(),
        };
        Err(CudaError::Status {
            operation: self.name,
            shape: self.shape.clone(),
            code,
            name: status_name(code),
            detail,
        })
    }
}

/// The version of the linked C interface; equals [`sys::QK_ABI_VERSION`] unless another library's was linked. In a
/// build without kernels it is that of the header.
pub fn abi_version() -> u32 {
    #[cfg(not(kernels = "absent"))]
    // SAFETY: takes nothing, returns a constant.
    return unsafe { sys::qk_abi_version() };
    #[cfg(kernels = "absent")]
    sys::QK_ABI_VERSION
}

/// The name of a status, as the C interface gives it.
pub fn status_name(code: i32) -> String {
    macro_rules! name {
        ($($status:ident)*) => {
            match code {
                $(sys::$status => stringify!($status),)*
                1.. => "cudaError",
                _ => "unknown",
            }
        };
    }
    let name = name!(
        QK_OK QK_ERROR_STRUCT_SIZE QK_ERROR_NULL_POINTER QK_ERROR_SHAPE QK_ERROR_ALIGNMENT QK_ERROR_LAYOUT QK_ERROR_BLOCK_SIZE
        QK_ERROR_WORKSPACE QK_ERROR_NOT_BUILT QK_ERROR_EMULATION QK_ERROR_VALUE QK_ERROR_HEAD_DIM QK_ERROR_OVERLAP QK_ERROR_RESERVED
    );
    name.to_owned()
}

/// The fault of this OS thread's last launch, in the emulated build.
fn emulation_message() -> Option<String> {
    #[cfg(kernels = "emulated")]
    return Some(crate::device::emulation::message());
    #[cfg(not(kernels = "emulated"))]
    None
}
