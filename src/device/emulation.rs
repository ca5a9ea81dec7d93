//! Controls of the emulation, which runs the kernels on the host.

#[cfg(kernels = "emulated")]
mod controls {
    use std::cell::Cell;
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
        fn qk_emulation_counted_launch(index: u64) -> *const LaunchCount;
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

    /// An access of a warp's instruction to the memory of a GPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Access {
        SharedLoad,
        SharedStore,
        GlobalLoad,
        GlobalStore,
        /// ldmatrix, from shared memory.
        Matrix,
        /// The read of cp.async, in global memory.
        CopySource,
        /// The write of cp.async, in shared memory.
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

    /// Kinds of [`Access`], and the most bytes of a lane.
    const KINDS: usize = Access::CopyTarget as usize + 1;
    const MOST_BYTES: usize = 16;

    /// The instructions of one launch, of all its blocks that ran together: `emulation::CountedLaunch` of
    /// cuda/emulation/counters.h. Loads and stores are those through `load_as`, `store_as`, ldmatrix and cp.async.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct LaunchCount {
        /// Blocks of the grid.
        pub grid: u64,
        /// Blocks that ran.
        pub blocks: u64,
        /// Threads of a block.
        pub threads: u64,
        /// Dynamic shared memory of a block, which has no other.
        pub shared_bytes: u64,
        /// `__syncthreads` of blocks.
        pub barriers: u64,
        /// mma.m16n8k16 of warps.
        pub products: u64,
        /// Groups of cp.async that are in flight at each of those, added up.
        pub groups_in_products: u64,
        /// The most groups of a thread that are in flight at once.
        pub most_groups: u64,
        /// The most bytes that each thread of a block has in flight, added up over the block.
        pub most_copied_bytes: u64,
        instructions: [[u64; MOST_BYTES + 1]; KINDS],
        lanes: [[u64; MOST_BYTES + 1]; KINDS],
    }

    impl LaunchCount {
        /// Instructions of warps in which a lane accesses `bytes` bytes.
        pub fn instructions(&self, access: Access, bytes: usize) -> u64 {
            self.instructions[access as usize][bytes]
        }

        /// Bytes of one kind of access, of all widths.
        pub fn bytes(&self, access: Access) -> u64 {
            (0..).zip(&self.lanes[access as usize]).map(|(bytes, lanes): (u64, &u64)| bytes * lanes).sum()
        }
    }

    fn counted<T>(launches: impl FnOnce() -> T) -> T {
        // SAFETY: sets a flag of this OS thread.
        unsafe { qk_emulation_count(1) };
        let done = launches();
        // SAFETY: as above.
        unsafe { qk_emulation_count(0) };
        done
    }

    /// The result of `launches`, and the instructions of each launch that this OS thread makes in it, in their order.
    pub fn count_launches<T>(launches: impl FnOnce() -> T) -> (T, Vec<LaunchCount>) {
        let done = counted(launches);
        // SAFETY: the entries stay until counting begins anew.
        let all = (0..).map_while(|index| unsafe { qk_emulation_counted_launch(index).as_ref() });
        (done, all.copied().collect())
    }

    /// The result of `launches`, and the accesses of the launches that this OS thread makes in it.
    pub fn count<T>(launches: impl FnOnce() -> T) -> (T, Vec<AccessCount>) {
        let done = counted(launches);
        // SAFETY: the entries stay until counting begins anew.
        let all = (0..).map_while(|index| unsafe { qk_emulation_counted(index).as_ref() });
        (done, all.map(access_count).collect())
    }

    fn access_count(raw: &RawCounted) -> AccessCount {
        const ACCESSES: [Access; KINDS] = [
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
            access: ACCESSES[raw.kind as usize],
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

    thread_local! {
        static LATE: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes devices that this OS thread opens from now on late: they do the work of their stream only when something
    /// waits for it, and copies beside it after what they wait for, as a GPU may. Work that the host, or another
    /// stream, fails to wait for then shows. Kernels are over, and their faults reported, once they were waited for.
    /// The variable `QLORA_EMULATION_STREAM`, as `late`, does it for a whole program.
    pub fn run_late(is_late: bool) {
        LATE.set(is_late);
    }

    /// True if devices that this OS thread opens now are late ([`run_late`]).
    pub fn is_late() -> bool {
        LATE.get()
    }

    thread_local! {
        static PINNED: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// Limits the host memory that each device which this OS thread opens from now on can pin, as a system may: more is
    /// an error. The variable `QLORA_EMULATION_PINNED` does it for a whole program.
    pub fn pin_at_most(bytes: u64) {
        PINNED.set(bytes);
    }

    /// Bytes that devices which this OS thread opens now can pin ([`pin_at_most`]); `u64::MAX`: no limit.
    pub fn pinned_limit() -> u64 {
        PINNED.get()
    }

    /// Waits between streams that a program may lack.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Forgotten {
        /// A device's stream waits for no copy beside it.
        OfCompute,
        /// Copies wait for nothing on a device's stream.
        OfCopies,
    }

    thread_local! {
        static FORGOTTEN: Cell<Option<Forgotten>> = const { Cell::new(None) };
    }

    /// Leaves out such waits, of this OS thread, from now on: a test of what they keep apart has to fail then.
    pub fn forget(waits: Option<Forgotten>) {
        FORGOTTEN.set(waits);
    }

    /// True if these waits are left out on this OS thread ([`forget`]).
    pub fn is_forgotten(waits: Forgotten) -> bool {
        FORGOTTEN.get() == Some(waits)
    }
}

#[cfg(kernels = "emulated")]
pub use controls::{
    Access, AccessCount, Forgotten, LaunchCount, blocks, count, count_launches, forget, launches, lose, message,
    pin_at_most, run_late, sample,
};

#[cfg(kernels = "emulated")]
pub(super) use controls::{is_forgotten, is_late, pinned_limit};

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
