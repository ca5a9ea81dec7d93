//! The kernels of `tests/kernels`: one kernel per PTX instruction, and, in the emulated build, kernels with a seeded
//! bug each.

use qlora_kernels::device::{Stream, View, ViewMut};
use qlora_kernels::sys::{QK_OK, qk_stream};

unsafe extern "C" {
    fn twin_mma(a: *const u32, b: *const u32, c: *mut f32, stream: qk_stream) -> i32;
    fn twin_ldmatrix(transposed: i32, rows: *const u32, d: *mut u32, stream: qk_stream) -> i32;
    fn twin_cp_async(input: *const u32, valid: u32, bytes: u32, out: *mut u32, stream: qk_stream) -> i32;
    fn twin_pack(pairs: *const u32, packed: *mut u32, count: i32, stream: qk_stream) -> i32;
}

/// `c` `[32, 4]` += a · b of the fragments `a` `[32, 4]` and `b` `[32, 2]`, by one mma.m16n8k16.
pub fn mma(a: View<'_, u32>, b: View<'_, u32>, c: ViewMut<'_, f32>, stream: Stream) {
    assert_eq!((a.len(), b.len(), c.len()), (128, 64, 128));
    // SAFETY: the lengths that the kernel uses were checked.
    assert_eq!(unsafe { twin_mma(a.address(), b.address(), c.address(), stream.as_raw()) }, QK_OK);
}

/// `d` `[32, 4]`: the fragments of ldmatrix.x4 (`.trans` if `transposed`) of 32 `rows` of 8 16-bit elements.
pub fn ldmatrix(transposed: bool, rows: View<'_, u32>, d: ViewMut<'_, u32>, stream: Stream) {
    assert_eq!((rows.len(), d.len()), (128, 128));
    // SAFETY: the lengths that the kernel uses were checked.
    assert_eq!(unsafe { twin_ldmatrix(transposed.into(), rows.address(), d.address(), stream.as_raw()) }, QK_OK);
}

/// `out` `[2, 32, 4]` = `input`, in two cp.async groups; of lanes whose bit of `valid` is not set only the first
/// `bytes` (to 16), then zeros.
pub fn cp_async(input: View<'_, u32>, valid: u32, bytes: u32, out: ViewMut<'_, u32>, stream: Stream) {
    assert!(input.len() == 256 && out.len() == 256 && bytes <= 16);
    // SAFETY: the lengths that the kernel uses were checked; device memory is 16-byte aligned.
    let status = unsafe { twin_cp_async(input.address(), valid, bytes, out.address(), stream.as_raw()) };
    assert_eq!(status, QK_OK);
}

/// `packed[i]`: the f32 bits `pairs[2i]` and `pairs[2i + 1]` rounded to bf16, the first in the lower half.
pub fn pack(pairs: View<'_, u32>, packed: ViewMut<'_, u32>, stream: Stream) {
    assert_eq!(pairs.len(), 2 * packed.len());
    let count = i32::try_from(packed.len()).expect("few pairs");
    // SAFETY: the lengths that the kernel uses were checked.
    assert_eq!(unsafe { twin_pack(pairs.address(), packed.address(), count, stream.as_raw()) }, QK_OK);
}

#[cfg(kernels = "emulated")]
pub use seeded::*;

#[cfg(kernels = "emulated")]
mod seeded {
    unsafe extern "C" {
        fn seeded_run(which: i32, input: *const f32, out: *mut f32) -> i32;
        fn seeded_lanes(out: *mut u32) -> i32;
        fn seeded_count(counter: *mut u32) -> i32;
    }

    /// The kernels of seeded_faults.cu, in its order.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(i32)]
    pub enum Seeded {
        Reverse,
        ReverseNoBarrier,
        Twice,
        TwiceNoBarrier,
        WarpReverse,
        WarpReverseNoBarrier,
        Copy,
        CopyNoWait,
        Overrun,
        LdmatrixOverrun,
        ThreadLeaves,
        OtherBarrier,
        Poison,
        Rows,
        Columns,
        Apart,
        Matrix,
        MatrixSwizzled,
        Misaligned,
        MmaNoWait,
        MmaAtBarrier,
        MmaApart,
        Trees,
    }

    pub const THREADS: usize = 128;

    /// Alignment of device memory.
    #[repr(align(256))]
    struct Aligned([f32; 4 * THREADS]);

    /// Input i is i, outputs start as -1: the status and the outputs.
    pub fn run(which: Seeded) -> (i32, Vec<f32>) {
        let input = Aligned(std::array::from_fn(|i| i as f32));
        let mut out = Aligned([-1.0; 4 * THREADS]);
        // SAFETY: both have the 4 * 128 elements that the seeded kernels use.
        let status = unsafe { seeded_run(which as i32, input.0.as_ptr(), out.0.as_mut_ptr()) };
        (status, out.0.to_vec())
    }

    /// [32, 5]: ballot of odd lanes, shuffles from lane 7, xor 5, up 3, down 3.
    pub fn lanes() -> (i32, Vec<u32>) {
        let mut out = vec![0; 32 * 5];
        // SAFETY: 32 rows of 5.
        let status = unsafe { seeded_lanes(out.as_mut_ptr()) };
        (status, out)
    }

    /// The count of threads of a grid of 5 x 3 x 2 blocks of 64 x 2.
    pub fn count() -> (i32, u32) {
        let mut counter = 0;
        // SAFETY: one counter.
        let status = unsafe { seeded_count(&mut counter) };
        (status, counter)
    }
}
