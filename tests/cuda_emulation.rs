//! The emulation itself: fragment layouts against tables written from the PTX manual's formulas, and planted bugs, each of
//! which must be seen under some schedule while the right kernel is right under all.

#![allow(unsafe_code)]
#![cfg(feature = "emulation")]

use half::bf16;
use proptest::prelude::*;
use qlora_kernels::cuda::{emulation, sys};

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(i32)]
enum Planted {
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
}
use Planted::*;

const THREADS: usize = 128;
const SEEDS: u64 = 64;

unsafe extern "C" {
    fn planted_run(which: i32, input: *const f32, out: *mut f32) -> i32;
    fn planted_mma(a: *const u32, b: *const u32, c: *mut f32) -> i32;
    fn planted_ldmatrix(transposed: i32, rows: *const u32, d: *mut u32) -> i32;
    fn planted_lanes(out: *mut u32) -> i32;
    fn planted_count(counter: *mut u32) -> i32;
}

fn run(which: Planted, seed: u64) -> (i32, Vec<f32>) {
    let input = aligned();
    let input: &[f32] = &input.0;
    let mut out = vec![-1.0; 4 * THREADS];
    emulation::set_schedule(seed);
    // SAFETY: both have the 4 * 128 elements that the planted kernels use.
    let status = unsafe { planted_run(which as i32, input.as_ptr(), out.as_mut_ptr()) };
    (status, out)
}

/// cp.async needs 16-byte alignment.
#[repr(align(16))]
struct Aligned([f32; 4 * THREADS]);

fn aligned() -> Box<Aligned> {
    Box::new(Aligned(std::array::from_fn(|i| i as f32)))
}

fn expected(which: Planted) -> Vec<f32> {
    let mut out = vec![-1.0; 4 * THREADS];
    for i in 0..THREADS {
        out[i] = match which {
            Reverse | ReverseNoBarrier => (THREADS - 1 - i) as f32,
            Twice | TwiceNoBarrier => (2 * (THREADS - 1 - i) + 1) as f32,
            WarpReverse | WarpReverseNoBarrier => (i ^ 31) as f32,
            Copy | CopyNoWait => i as f32,
            _ => unreachable!("has no right answer"),
        };
    }
    if matches!(which, Copy | CopyNoWait) {
        out = (0..4 * THREADS).map(|i| i as f32).collect();
    }
    out
}

#[test]
fn right_kernels_are_right_under_every_schedule() {
    for which in [Reverse, Twice, WarpReverse, Copy] {
        for seed in 0..SEEDS {
            assert_eq!(run(which, seed), (sys::QK_OK, expected(which)), "{which:?}, seed {seed}");
        }
    }
    println!("4 kernels, {SEEDS} schedules each");
}

/// A removed barrier or wait is seen by most schedules, not by luck of one.
#[test]
fn removed_barriers_and_waits_are_seen() {
    for which in [ReverseNoBarrier, TwiceNoBarrier, WarpReverseNoBarrier, CopyNoWait] {
        let wrong = (0..SEEDS).filter(|&seed| run(which, seed).1 != expected(which)).count() as u64;
        println!("{which:?}: {wrong} of {SEEDS} schedules go wrong");
        assert!(wrong * 2 > SEEDS, "{which:?}: only {wrong} of {SEEDS} schedules see it");
    }
}

/// Under AddressSanitizer this write ends the process, which is the point of it; the guards are for the other build.
#[test]
#[cfg_attr(sanitize_address, ignore = "AddressSanitizer ends the process at this write")]
fn a_write_past_shared_memory_is_an_error() {
    let (status, _) = run(Overrun, 1);
    assert_eq!(status, sys::QK_ERROR_EMULATION);
    assert!(emulation::message().contains("past its end"), "{}", emulation::message());
}

#[test]
fn an_ldmatrix_past_shared_memory_is_an_error() {
    let (status, _) = run(LdmatrixOverrun, 1);
    assert_eq!(status, sys::QK_ERROR_EMULATION);
    assert!(emulation::message().contains("out of bounds of shared memory"), "{}", emulation::message());
    assert!(emulation::message().contains("planted.cu:"), "{}", emulation::message());
}

#[test]
fn divergent_barriers_are_errors_that_name_thread_and_place() {
    for seed in 0..SEEDS {
        let (status, _) = run(ThreadLeaves, seed);
        let message = emulation::message();
        assert_eq!(status, sys::QK_ERROR_EMULATION);
        assert!(message.contains("thread (5, 0, 0) has ended") && message.contains("planted.cu:"), "{message}");
        let (status, _) = run(OtherBarrier, seed);
        let message = emulation::message();
        assert_eq!(status, sys::QK_ERROR_EMULATION);
        assert!(message.contains("thread (32, 0, 0)") && message.matches("planted.cu:").count() == 2, "{message}");
    }
    // A failed launch leaves nothing behind.
    assert_eq!(run(Reverse, 0), (sys::QK_OK, expected(Reverse)));
}

#[test]
fn shared_memory_is_poisoned() {
    let (status, out) = run(Poison, 3);
    assert_eq!(status, sys::QK_OK);
    assert!(out[..THREADS].iter().all(|x| x.is_nan()));
}

#[test]
fn blocks_threads_and_atomics_are_complete() {
    let mut counter = 0;
    // SAFETY: one counter.
    assert_eq!(unsafe { planted_count(&mut counter) }, sys::QK_OK);
    assert_eq!(counter, 5 * 3 * 2 * 64 * 2);
}

#[test]
fn shuffles_and_ballot_follow_the_manual() {
    let mut out = vec![0; 32 * 5];
    // SAFETY: 32 rows of 5.
    assert_eq!(unsafe { planted_lanes(out.as_mut_ptr()) }, sys::QK_OK);
    for lane in 0..32u32 {
        let up = if lane < 3 { lane } else { lane - 3 };
        let down = if lane + 3 > 31 { lane } else { lane + 3 };
        assert_eq!(out[lane as usize * 5..][..5], [0xaaaa_aaaa, 7, lane ^ 5, up, down], "lane {lane}");
    }
}

/// PTX ISA, mma.m16n8k16 with .bf16: row and column of element i of A, B and C in lane `lane`, as the manual writes them.
mod manual {
    pub fn a(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
        let column = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
        (row, column)
    }

    pub fn b(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        let row = if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
        (row, group)
    }

    pub fn c(lane: usize, i: usize) -> (usize, usize) {
        let (group, thread) = (lane >> 2, lane % 4);
        (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Integers, so that no partial sum rounds: bitwise equality with a plain product.
    #[test]
    fn mma_is_a_matrix_product_in_the_manuals_layout(
        a in prop::collection::vec(-64i32..=64, 16 * 16),
        b in prop::collection::vec(-64i32..=64, 16 * 8),
        c in prop::collection::vec(-1000i32..=1000, 16 * 8),
        seed: u64,
    ) {
        let bits = |x: i32| u32::from(bf16::from_f32(x as f32).to_bits());
        let mut fragment_a = vec![0u32; 32 * 4];
        let mut fragment_b = vec![0u32; 32 * 2];
        let mut fragment_c = vec![0f32; 32 * 4];
        for lane in 0..32 {
            for i in 0..8 {
                let (row, column) = manual::a(lane, i);
                fragment_a[lane * 4 + i / 2] |= bits(a[row * 16 + column]) << (16 * (i % 2));
            }
            for i in 0..4 {
                let (row, column) = manual::b(lane, i);
                fragment_b[lane * 2 + i / 2] |= bits(b[row * 8 + column]) << (16 * (i % 2));
                let (row, column) = manual::c(lane, i);
                fragment_c[lane * 4 + i] = c[row * 8 + column] as f32;
            }
        }
        emulation::set_schedule(seed);
        // SAFETY: 32 lanes of 4, 2 and 4 elements.
        let status = unsafe { planted_mma(fragment_a.as_ptr(), fragment_b.as_ptr(), fragment_c.as_mut_ptr()) };
        prop_assert_eq!(status, sys::QK_OK);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = manual::c(lane, i);
                let product: i32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                prop_assert_eq!(fragment_c[lane * 4 + i], (c[row * 8 + column] + product) as f32);
            }
        }
    }

    /// PTX ISA, ldmatrix: lane l gets elements 2 (l % 4) and the next of row l / 4 of each matrix; with .trans of column l / 4.
    #[test]
    fn ldmatrix_follows_the_manual(rows in prop::collection::vec(any::<u16>(), 32 * 8), transposed: bool, seed: u64) {
        let packed: Vec<u32> = rows.chunks(2).map(|pair| u32::from(pair[1]) << 16 | u32::from(pair[0])).collect();
        let mut d = vec![0u32; 32 * 4];
        emulation::set_schedule(seed);
        // SAFETY: 32 rows of 4 words in, 32 lanes of 4 words out.
        let status = unsafe { planted_ldmatrix(i32::from(transposed), packed.as_ptr(), d.as_mut_ptr()) };
        prop_assert_eq!(status, sys::QK_OK);
        for lane in 0..32 {
            for matrix in 0..4 {
                for half in 0..2 {
                    let (long, short) = (lane / 4, lane % 4 * 2 + half);
                    let (row, column) = if transposed { (short, long) } else { (long, short) };
                    let found = (d[lane * 4 + matrix] >> (16 * half)) as u16;
                    prop_assert_eq!(found, rows[(matrix * 8 + row) * 8 + column]);
                }
            }
        }
    }
}
