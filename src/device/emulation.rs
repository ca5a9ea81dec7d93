//! Controls of the emulation, which runs the kernels on the host.

#[cfg(kernels = "emulated")]
mod controls {
    use std::ffi::{CStr, c_char};

    unsafe extern "C" {
        pub(super) fn qk_emulation_set_seed(seed: u64);
        fn qk_emulation_message() -> *const c_char;
        fn qk_emulation_launches() -> u64;
        fn qk_emulation_lose(launch: u64, code: i32);
        fn qk_emulation_sample(launch: u64, blocks: u64);
        fn qk_emulation_blocks() -> u64;
    }

    /// The fault of this OS thread's last launch that ended with `QK_ERROR_EMULATION`, and where it was.
    pub fn message() -> String {
        // SAFETY: a NUL-terminated string that stays until this thread's next launch; it is copied at once.
        unsafe { CStr::from_ptr(qk_emulation_message()) }.to_string_lossy().into_owned()
    }

    /// Launches of this OS thread so far.
    pub fn launches() -> u64 {
        // SAFETY: reads a number of this OS thread.
        unsafe { qk_emulation_launches() }
    }

    /// From launch number `launch` (1 is the first) of this OS thread on, only `blocks` of a grid run: the first, the
    /// last, and others by chance. A kernel can so be looked at on a grid of real size.
    pub fn sample(launch: u64, blocks: u64) {
        // SAFETY: sets two numbers of this OS thread.
        unsafe { qk_emulation_sample(launch, blocks) }
    }

    /// Blocks that this OS thread has run so far.
    pub fn blocks() -> u64 {
        // SAFETY: reads a number of this OS thread.
        unsafe { qk_emulation_blocks() }
    }

    /// Launch number `launch` (1 is the first) of this OS thread and all later ones do nothing and return `code`, a
    /// `cudaError_t`: a GPU that is lost on the way. The variable `QLORA_EMULATION_LOST`, as `LAUNCH:CODE`, does it for
    /// a whole program.
    pub fn lose(launch: u64, code: i32) {
        // SAFETY: sets two numbers of this OS thread.
        unsafe { qk_emulation_lose(launch, code) }
    }
}

#[cfg(kernels = "emulated")]
pub use controls::{blocks, launches, lose, message, sample};

/// Chooses the schedule of warps, lanes and blocks of the launches that this OS thread makes from now on. A GPU has its
/// own, which this leaves alone.
pub fn set_schedule(seed: u64) {
    #[cfg(kernels = "emulated")]
    // SAFETY: sets a number of this OS thread.
    unsafe {
        controls::qk_emulation_set_seed(seed);
    }
    #[cfg(not(kernels = "emulated"))]
    let _ = seed;
}
