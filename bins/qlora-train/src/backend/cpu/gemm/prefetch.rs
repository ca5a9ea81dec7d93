//! Memory that is read soon.

#![allow(unsafe_code)]

/// Brings the lines of `values` into the caches.
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let (first, bytes) = (values.as_ptr().cast::<i8>(), size_of_val(values));
        for at in (0..bytes).step_by(64).chain(bytes.checked_sub(1)) {
            // SAFETY: reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(at)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
