//! Types of device memory.

use crate::sys;

mod sealed {
    pub trait Sealed {}
}

/// Types that kernels read and write: any bits are a value, and there is no padding.
pub trait Element: Copy + sealed::Sealed + 'static {}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i32, u32, u64, f32, half::bf16, sys::qk_adamw_rate, sys::qk_gradient_state, sys::qk_loss_state);

/// The bytes of an array.
pub(super) fn bytes_of<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: an `Element` has no padding, so every byte is initialized.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) }
}
