//! A check for tests of the C interface: every named error is reached and nothing is written on the way.

use crate::device::{Buffer, Device};

/// Tokens of the operands.
pub const M: i64 = 3;

/// One buffer for all operands, 16-byte aligned, whose elements are 1.
pub struct Memory {
    pub device: Device,
    pub buffer: Buffer<f32>,
}

impl Memory {
    pub fn new() -> Self {
        let device = Device::open().expect("a device to test on");
        let buffer = device.upload(&[1.0f32; 4096]).unwrap();
        Self { device, buffer }
    }

    /// The address of the operand at `index`, which has 512 bytes.
    pub fn at<T>(&mut self, index: usize) -> *mut T {
        self.buffer.view_mut().address().wrapping_add(128 * index).cast()
    }

    pub fn is_untouched(&self) -> bool {
        self.device.download(&self.buffer).unwrap().iter().all(|&x| x == 1.0)
    }
}

/// Calls `$function` with `$valid`, of which each line spoils a copy, and expects the line's error and untouched
/// memory.
macro_rules! refuses {
    ($memory:ident, $valid:ident, $call:expr, { $($spoil:expr => $error:ident,)* }) => {$({
        let mut args = $valid;
        let spoil: fn(&mut _) = $spoil;
        spoil(&mut args);
        // SAFETY: spoiled so that the call must refuse before it reads device memory.
        let status = unsafe { $call(&raw const args) };
        assert_eq!(status, crate::sys::$error, "{}", stringify!($spoil));
        assert!($memory.is_untouched(), "refused, and yet written: {}", stringify!($spoil));
    })*
        // SAFETY: null is refused.
        assert_eq!(unsafe { $call(std::ptr::null()) }, crate::sys::QK_ERROR_NULL_POINTER);
    };
}
