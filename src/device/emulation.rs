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
        fn qk_emulation_count(on: i32);
        fn qk_emulation_counted(index: u64) -> *const RawCounted;
    }

    /// `emulation::Counted` of cuda/emulation/counters.h.
    #[repr(C)]
    struct RawCounted {
        file: *const c_char,
        line: u32,
        kind: u32,
        bytes: u32,
        instructions: u64,
        taken: u64,
        least: u64,
    }

    /// What a warp's instruction does with the memory of a GPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Access {
        SharedLoad,
        SharedStore,
        GlobalLoad,
        GlobalStore,
        /// ldmatrix, from shared memory.
        Matrix,
        /// What cp.async reads, in global memory.
        CopySource,
        /// What cp.async writes, in shared memory.
        CopyTarget,
    }

    /// The accesses of one kind and size at one place of a kernel's source.
    #[derive(Clone, Debug)]
    pub struct AccessCount {
        /// `forward.cu:176`.
        pub place: String,
        pub access: Access,
        /// Bytes of a lane.
        pub bytes: u32,
        /// Instructions of warps.
        pub instructions: u64,
        /// Wavefronts of shared memory, or sectors of global memory (32 bytes), that they take.
        pub taken: u64,
        /// Number of those that the same bytes take where they lie well.
        pub least: u64,
    }

    /// What `launches` does, and the accesses of the launches that this OS thread makes in it.
    pub fn count<T>(launches: impl FnOnce() -> T) -> (T, Vec<AccessCount>) {
        // SAFETY: sets a flag of this OS thread.
        unsafe { qk_emulation_count(1) };
        let done = launches();
        // SAFETY: as above.
        unsafe { qk_emulation_count(0) };
        // SAFETY: the entries stay until counting begins anew.
        let all = (0..).map_while(|index| unsafe { qk_emulation_counted(index).as_ref() });
        (done, all.map(access_count).collect())
    }

    fn access_count(raw: &RawCounted) -> AccessCount {
        const KINDS: [Access; 7] = [
            Access::SharedLoad,
            Access::SharedStore,
            Access::GlobalLoad,
            Access::GlobalStore,
            Access::Matrix,
            Access::CopySource,
            Access::CopyTarget,
        ];
        // SAFETY: the name of a source file, a constant of the program.
        let file = unsafe { CStr::from_ptr(raw.file) }.to_string_lossy();
        let name = file.rsplit('/').next().unwrap_or_default();
        AccessCount {
            place: format!("{name}:{}", raw.line),
            access: KINDS[raw.kind as usize],
            bytes: raw.bytes,
            instructions: raw.instructions,
            taken: raw.taken,
            least: raw.least,
        }
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
pub use controls::{Access, AccessCount, blocks, count, launches, lose, message, sample};

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
