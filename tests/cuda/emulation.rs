//! The emulation itself: seeded bugs, each of which must be seen under some schedule while the right kernel is right
//! under all.

use crate::test_kernels;
use crate::test_kernels::Seeded::{self, *};
use crate::test_kernels::{THREADS, count, lanes};
use qlora_kernels::device::emulation;
use qlora_kernels::sys;

const SEEDS: u64 = 64;

fn run(which: Seeded, seed: u64) -> (i32, Vec<f32>) {
    emulation::set_schedule(seed);
    test_kernels::run(which)
}

fn expected(which: Seeded) -> Vec<f32> {
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
    assert!(emulation::message().contains("seeded_faults.cu:"), "{}", emulation::message());
}

#[test]
fn divergent_barriers_are_errors_that_name_thread_and_place() {
    for seed in 0..SEEDS {
        let (status, _) = run(ThreadLeaves, seed);
        let message = emulation::message();
        assert_eq!(status, sys::QK_ERROR_EMULATION);
        assert!(message.contains("thread (5, 0, 0) has ended") && message.contains("seeded_faults.cu:"), "{message}");
        let (status, _) = run(OtherBarrier, seed);
        let message = emulation::message();
        assert_eq!(status, sys::QK_ERROR_EMULATION);
        assert!(
            message.contains("thread (32, 0, 0)") && message.matches("seeded_faults.cu:").count() == 2,
            "{message}"
        );
    }
    // A failed launch leaves nothing behind.
    assert_eq!(run(Reverse, 0), (sys::QK_OK, expected(Reverse)));
}

#[test]
fn products_that_nothing_waits_for_and_that_lanes_issue_apart_are_errors() {
    let cases =
        [(MmaNoWait, "never waited for"), (MmaAtBarrier, "never waited for"), (MmaApart, "other lanes issue another")];
    for seed in 0..SEEDS {
        for (which, said) in cases {
            let (status, _) = run(which, seed);
            let message = emulation::message();
            assert_eq!(status, sys::QK_ERROR_EMULATION, "{which:?}");
            assert!(message.contains(said) && message.contains("seeded_faults.cu:"), "{which:?}: {message}");
        }
    }
}

#[test]
fn shared_memory_is_poisoned() {
    let (status, out) = run(Poison, 3);
    assert_eq!(status, sys::QK_OK);
    assert!(out[..THREADS].iter().all(|x| x.is_nan()));
}

#[test]
fn blocks_threads_and_atomics_are_complete() {
    assert_eq!(count(), (sys::QK_OK, 5 * 3 * 2 * 64 * 2));
}

/// Lanes meet once for a tree, not at each of its shuffles.
#[test]
fn sums_over_lanes_have_the_bits_of_their_shuffles() {
    for seed in 0..SEEDS {
        let (status, out) = run(Trees, seed);
        assert_eq!(status, sys::QK_OK);
        for (thread, row) in out.chunks(4).enumerate() {
            let [over_32, shuffled_32, over_8, shuffled_8] = [0, 1, 2, 3].map(|i: usize| row[i].to_bits());
            assert_eq!((over_32, over_8), (shuffled_32, shuffled_8), "thread {thread}, seed {seed}");
        }
    }
}

#[test]
fn shuffles_and_ballot_follow_the_manual() {
    let (status, out) = lanes();
    assert_eq!(status, sys::QK_OK);
    for lane in 0..32u32 {
        let up = if lane < 3 { lane } else { lane - 3 };
        let down = if lane + 3 > 31 { lane } else { lane + 3 };
        assert_eq!(out[lane as usize * 5..][..5], [0xaaaa_aaaa, 7, lane ^ 5, up, down], "lane {lane}");
    }
}
