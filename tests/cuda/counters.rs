//! Wavefronts of shared memory and sectors of global memory, counted from the addresses of every warp: what the headers
//! of the kernels claim about conflicts and coalescing holds exactly, and what they name as an exception is one.

use crate::test_kernels::{self, Seeded};
use half::bf16;
use lab::attention::AttentionOperation;
use lab::attention_cache::CacheOperation;
use lab::device::{device, set_schedule};
use lab::linear::{Linear, Part};
use lab::linear_dx::LinearDx;
use lab::low_rank::{LowRank, LowRankPart};
use lab::magnitudes::{Direction, Magnitudes};
use lab::operation::Operation;
use lab::vector_gradients::NormGradients;
use qlora_kernels::device::emulation::{self, Access, AccessCount};
use qlora_kernels::ops::dispatch::Workspace;
use qlora_kernels::ops::linear::Input;
use qlora_kernels::ops::{Residual, RowsMut, linear_product, lora_down, rms_norm, swiglu_backward};
use qlora_kernels::shape::{AttentionShape, GateActivation};
use qlora_kernels::sys;

/// Blocks of a launch that run.
const BLOCKS: u64 = 3;

/// The accesses of one launch of an operation, in some of its blocks.
fn counted<O: Operation>(operation: &O) -> Vec<AccessCount> {
    counted_in(operation, BLOCKS)
}

fn counted_in<O: Operation>(operation: &O, blocks: u64) -> Vec<AccessCount> {
    let device = device();
    let inputs = operation.inputs();
    let mut buffers = operation.upload(&device, &inputs).unwrap();
    set_schedule(1);
    emulation::sample(emulation::launches() + 1, blocks);
    let (done, counts) = emulation::count(|| operation.launch(&mut buffers, device.stream()));
    emulation::sample(u64::MAX, 0);
    done.unwrap();
    assert!(!counts.is_empty(), "nothing was counted");
    counts
}

/// Accesses that take more than their bytes need: the file, the kind, bytes of a lane, and the ratio to the least.
type Exception = (&'static str, Access, u32, f64);

/// 16 features of a lane are two loads, 16 bytes each of the same sectors: the second finds them in the L1 cache.
const DOWN: Exception = ("skinny.cuh", Access::GlobalLoad, 16, 2.0);
const DY_B: Exception = ("dy_b.cu", Access::GlobalLoad, 16, 2.0);
/// S and B are laid out for ldmatrix; their copies, of 16 ranks once and not of every 64 features, meet in banks.
const RANKS_OF_S: Exception = ("forward.cu", Access::CopyTarget, 16, 2.0);
const RANKS_OF_B: Exception = ("forward.cu", Access::CopyTarget, 16, 8.0);
/// Four lanes store half a sector of each row; the other half follows at once, and meets it in the L2 cache.
const ATTENTION_STORE: Exception = ("forward.cu", Access::GlobalStore, 4, 2.0);
const ATTENTION_BACKWARD_STORE: Exception = ("backward.cu", Access::GlobalStore, 4, 2.0);

/// Codes look up a table of 256 floats: which banks meet is the data's.
const OF_THE_DATA: f64 = f64::INFINITY;

#[track_caller]
fn assert_counts(what: &str, counts: &[AccessCount], exceptions: &[Exception]) {
    let mut met = vec![false; exceptions.len()];
    for count in counts {
        let AccessCount { place, access, bytes, instructions, taken, least } = count;
        assert!(taken >= least && instructions > &0, "{what}: {count:?}");
        let times = *taken as f64 / *least as f64;
        println!("{what}: {place:<20}{access:?} of {bytes}: {instructions} instructions, {times:.3} times the least");
        let file = place.split(':').next().unwrap();
        let is_known = |known: &Exception| {
            (known.0, known.1, known.2) == (file, *access, *bytes)
                && (known.3 == times || known.3 == OF_THE_DATA && times > 1.0)
        };
        match exceptions.iter().position(is_known) {
            Some(known) => met[known] = true,
            None => assert_eq!(taken, least, "{what}: {count:?}"),
        }
    }
    for (known, met) in exceptions.iter().zip(met) {
        assert!(met, "{what}: {known:?} is not met any more");
    }
}

/// Rows and columns of enough blocks that large tiles are chosen, or of few.
pub fn linear(large: bool, dense: bool) -> Linear {
    let (m, n) = if large { (1536, 2048) } else { (128, 256) };
    let part = Part { n, r: 16, bias: false, pad: 0 };
    Linear { dense, given_s: true, seed: 1, ..Linear::new(m, 256, vec![part]) }
}

#[test]
fn tiles_of_the_forward_pass_are_read_without_conflicts() {
    for large in [false, true] {
        // Decoding an absmax looks up 256 floats, once for 64 weights.
        let absmax = ("forward.cu", Access::SharedLoad, 4, OF_THE_DATA);
        assert_counts("nf4", &counted(&linear(large, false)), &[absmax, DOWN, RANKS_OF_S, RANKS_OF_B]);
        // 256 features of W, at twice the least, and 16 ranks of B.
        let small: &[Exception] =
            &[("forward.cu", Access::Matrix, 16, (2.0 * 256.0 + 16.0) / (256.0 + 16.0)), DOWN, RANKS_OF_S, RANKS_OF_B];
        assert_counts("bf16", &counted(&linear(large, true)), if large { &small[1..] } else { small });
    }
}

/// dX of enough columns that large tiles are chosen, or of few.
pub fn dx(large: bool, dense: bool) -> LinearDx {
    let parts = vec![Part { n: 256, r: 16, bias: false, pad: 0 }];
    let linear = Linear { k: if large { 2048 } else { 256 }, parts, ..linear(large, dense) };
    LinearDx { linear, accumulate: false, dropout: None }
}

#[test]
fn tiles_of_dx_are_read_without_conflicts() {
    for large in [false, true] {
        for dense in [false, true] {
            assert_counts(&format!("dx, {large} {dense}"), &counted(&dx(large, dense)), &[DY_B]);
        }
    }
}

#[test]
fn tiles_of_attention_are_read_without_conflicts() {
    for head_dim in [64, 128] {
        for (backward, store) in [(false, ATTENTION_STORE), (true, ATTENTION_BACKWARD_STORE)] {
            let shape = AttentionShape { heads: 4, kv_heads: 1, head_dim, soft_cap: None };
            let documents = vec![300];
            let case = AttentionOperation { shape, documents, window: None, backward, size: 1.0, seed: 1 };
            assert_counts(&format!("attention, {head_dim} {backward}"), &counted(&case), &[store]);
        }
    }
}

/// In 1,024 tokens a window of 64 has 31 of the 136 tiles of 64 × 64 scores that all keys have, and 23 of the 72 of
/// 128 × 64, and one query over a cache 2 of 16 chunks: the kernels read no more than that, and what every
/// tile of queries reads of its own.
#[test]
fn tiles_outside_of_a_window_are_not_read() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 64, soft_cap: None };
    for backward in [false, true] {
        let reads = |window| {
            let documents = vec![1024];
            let case = AttentionOperation { shape, documents, window, backward, size: 1.0, seed: 1 };
            sum(&counted_in(&case, u64::MAX), Access::Matrix).0 as f64
        };
        let share = reads(Some(64)) / reads(None);
        println!("window, backward {backward}: {share:.3} of the reads");
        assert!(share < 0.45, "backward {backward}: {share}");
    }
    let reads = |window| {
        let documents = vec![(1023, 1)];
        let case = CacheOperation { shape, documents, window, gap: 0, room: 0, size: 1.0, seed: 1 };
        sum(&counted_in(&case, u64::MAX), Access::Matrix).0 as f64
    };
    let share = reads(Some(64)) / reads(None);
    println!("window over a cache: {share:.3} of the reads");
    assert!(share < 0.2, "{share}");
}

#[test]
fn tiles_of_the_gradients_of_lora_are_read_without_conflicts() {
    let parts = vec![LowRankPart { n: 256, r: 16, pad: 0 }];
    let case =
        LowRank { m: 128, k: 512, pad_x: 0, parts, adapters: 0, dropout: 0.0, exact: false, given_t: true, seed: 1 };
    assert_counts("lora", &counted(&case), &[DOWN, DY_B]);
}

/// Beside the 2 groups of 8 rows of X stand 2 of A for 16 ranks, 4 for those of gate and up, and 6 for those of q, k
/// and v: X is read once for all of them.
#[test]
fn x_is_read_once_for_the_ranks_of_a_group() {
    let device = device();
    let loads = |segments: usize| {
        let parts = vec![LowRankPart { n: 8, r: 16, pad: 0 }; segments];
        let (m, k) = (2048, 512);
        let case = LowRank { m, k, pad_x: 0, parts, adapters: 0, dropout: 0.0, exact: false, given_t: true, seed: 1 };
        let mut buffers = case.upload(&device, &case.inputs()).unwrap();
        set_schedule(1);
        let (done, counts) = emulation::count(|| {
            case.with(&mut buffers, |_, _, input, segments, _, (s, _)| {
                lora_down(input, segments, s.view_mut(), device.stream())
            })
        });
        done.unwrap();
        sum(&counts, Access::GlobalLoad).0
    };
    let group = loads(1) / 4;
    assert!(group > 0);
    assert_eq!([1, 2, 3].map(loads), [4 * group, 6 * group, 8 * group]);
}

/// An input with room for S is left where it is: of each of its sectors one load and one store less.
#[test]
fn an_input_with_room_is_not_copied() {
    let device = device();
    let case = Linear { pad_x: 64, ..linear(false, false) };
    let sectors = |has_room: bool| {
        let mut buffers = case.upload(&device, &case.inputs()).unwrap();
        set_schedule(1);
        let counts = case.with(&mut buffers, |input, segments, s, _| {
            lora_down(&input, segments, s.view_mut(), device.stream())?;
            let input = Input { s: Some(s.view().into()), ..input };
            let mut scratch = device.upload(&vec![bf16::ZERO; linear_product::workspace_len(&input, segments)])?;
            let scratch = scratch.view_mut();
            let mut workspace = if has_room { Workspace::with_room(scratch) } else { scratch.into() };
            let (done, counts) =
                emulation::count(|| linear_product(&input, segments, &mut workspace, device.stream()).map(|_| ()));
            done.map(|()| counts)
        });
        let counts = counts.unwrap();
        [Access::GlobalLoad, Access::GlobalStore].map(|access| sum(&counts, access).1)
    };
    let ([loads, stores], [loads_left, stores_left]) = (sectors(false), sectors(true));
    let of_x = (case.m * case.k * 2 / 32) as u64;
    assert_eq!([loads - loads_left, stores - stores_left], [of_x; 2]);
}

/// Rows with room begin with a line of the caches: they take the sectors of dense ones.
#[test]
fn rows_with_room_take_whole_sectors() {
    let device = device();
    let (m, h) = (8, 512);
    let numbers = vec![bf16::ONE; 2 * m * (2 * h + 64)];
    let (from, weight) = (device.upload(&numbers).unwrap(), device.upload(&vec![1.0f32; h]).unwrap());
    let sectors = |room: usize| {
        let (mut out, mut gate_up) = (device.upload(&numbers).unwrap(), device.upload(&numbers).unwrap());
        let (done, counts) = emulation::count(|| {
            let (x, y) = (from.view().first(m * h), out.view_mut().first(m * (h + room)));
            rms_norm(Residual::Plain(x), weight.view(), 1e-5, RowsMut::apart(y, h + room), device.stream())?;
            let (dout, rows) = (from.view().first(m * h), gate_up.view_mut().first(m * (2 * h + room)));
            let (out, activation) = (out.view_mut().first(m * (h + room)), GateActivation::Silu);
            let (rows, out) = (RowsMut::apart(rows, 2 * h + room), Some(RowsMut::apart(out, h + room)));
            swiglu_backward(dout, rows, h, activation, out, device.stream())
        });
        done.unwrap();
        [Access::GlobalLoad, Access::GlobalStore].map(|access| sum(&counts, access))
    };
    assert_eq!(sectors(64), sectors(0));
}

/// 8 floats of a lane are two loads, 16 bytes each of the same sectors: the second finds them in the L1 cache.
const FLOATS: Exception = ("rows.cuh", Access::GlobalLoad, 16, 2.0);

/// Rows of bf16 are read and written whole; beside them stand a vector of floats a block.
#[test]
fn sums_over_tokens_read_whole_sectors() {
    for direction in [Direction::Forward, Direction::Backward] {
        let case = Magnitudes { m: 512, n: 256, pad: 0, bias: true, direction, seed: 1 };
        assert_counts(&format!("magnitudes, {direction:?}"), &counted(&case), &[FLOATS]);
    }
    for (parts, width) in [(1, 512), (4, 128)] {
        let case = NormGradients { m: 512, parts, width, column: 0, tail: 0, seed: 1 };
        assert_counts(&format!("gradient of a norm, {parts}"), &counted(&case), &[]);
    }
}

/// All instructions of one kind: their number, and the wavefronts or sectors that they take.
fn sum(counts: &[AccessCount], access: Access) -> (u64, u64) {
    let of_kind = counts.iter().filter(|count| count.access == access);
    of_kind.fold((0, 0), |(instructions, taken), count| (instructions + count.instructions, taken + count.taken))
}

#[test]
fn conflicts_and_sectors_of_known_patterns_are_counted() {
    let run = |which| {
        let ((status, _), counts) = emulation::count(|| test_kernels::run(which));
        assert_eq!(status, sys::QK_OK);
        counts
    };
    // 4 warps, an instruction each.
    let rows = run(Seeded::Rows);
    assert_eq!(sum(&rows, Access::SharedLoad), (4, 4));
    assert_eq!(sum(&rows, Access::GlobalLoad), (4, 16));
    assert_eq!(sum(&run(Seeded::Columns), Access::SharedLoad), (4, 16), "four words of one bank");
    assert_eq!(sum(&run(Seeded::Apart), Access::GlobalLoad), (4, 64), "every other sector");
    let stores = sum(&run(Seeded::Matrix), Access::SharedStore);
    assert_eq!(stores, (8, 8 * 32), "16 bytes of each of 32 rows: eight lanes in four banks");
    assert_eq!(sum(&run(Seeded::Matrix), Access::Matrix), (1, 32));
    assert_eq!(sum(&run(Seeded::MatrixSwizzled), Access::Matrix), (1, 4));
    assert!(emulation::count(|| ()).1.is_empty(), "nothing of an earlier count is left");
}

#[test]
fn a_misaligned_load_is_an_error() {
    let (status, _) = test_kernels::run(Seeded::Misaligned);
    assert_eq!(status, sys::QK_ERROR_EMULATION);
    let message = emulation::message();
    assert!(message.contains("misaligned address") && message.contains("seeded_faults.cu:"), "{message}");
}
