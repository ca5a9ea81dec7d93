//! Instructions of whole launches: barriers, matrix instructions, the copies in flight beside them, and loads and
//! stores by kind and width are what the headers of the kernels claim of a block. None of it shows in a result.

use crate::counters::{dx, linear};
use crate::test_kernels::{self, Seeded};
use lab::attention::AttentionOperation;
use lab::device::{device, set_schedule};
use lab::linear::{Linear, Part};
use lab::low_rank::{LowRank, LowRankPart};
use lab::operation::Operation;
use qlora_kernels::device::emulation::{self, Access, LaunchCount};
use qlora_kernels::shape::AttentionShape;
use qlora_kernels::sys;

/// The launches of an operation, at most `blocks` blocks of each.
fn launches_of<O: Operation>(operation: &O, blocks: u64) -> Vec<LaunchCount> {
    let device = device();
    let mut buffers = operation.upload(&device, &operation.inputs()).unwrap();
    set_schedule(1);
    emulation::sample(emulation::launches() + 1, blocks);
    let (done, launches) = emulation::count_launches(|| operation.launch(&mut buffers, device.stream()));
    emulation::sample(u64::MAX, 0);
    done.unwrap();
    launches
}

/// Bytes of shared memory, threads and blocks that a multiprocessor has room for.
const SM_80: [u64; 3] = [164 << 10, 2048, 32];
const SM_86: [u64; 3] = [100 << 10, 1536, 16];
const SM_90: [u64; 3] = [228 << 10, 2048, 32];

/// Blocks that a multiprocessor holds by shared memory, of which each block's first kilobyte is the system's, and by
/// threads. Registers may leave it fewer.
fn held(launch: &LaunchCount, [shared, threads, blocks]: [u64; 3]) -> u64 {
    let bytes = (launch.shared_bytes + 1024).next_multiple_of(128);
    (shared / bytes).min(threads / launch.threads).min(blocks)
}

#[track_caller]
fn assert_held(what: &str, launch: &LaunchCount, expected: [u64; 3]) {
    assert_eq!([SM_80, SM_86, SM_90].map(|room| held(launch, room)), expected, "{what}");
}

/// A tile of a pipeline in one warp: its matrix instructions, and those of them that come before the next copies.
#[derive(Clone, Copy)]
struct Stage {
    products: u64,
    before: u64,
}

/// Groups in flight at the matrix instructions of a warp, added up: `stages` but the one that is read, as far as there
/// are tiles, and one fewer until a tile's copies start.
fn in_flight(stages: u64, tiles: &[Stage]) -> u64 {
    let of_tile = |(left, tile): (u64, &Stage)| {
        left.min(stages - 2) * tile.before + left.min(stages - 1) * (tile.products - tile.before)
    };
    (0..).zip(tiles.iter().rev()).map(of_tile).sum()
}

/// Instructions of one block of a tiled product.
struct Block {
    warps: u64,
    barriers: u64,
    stages: u64,
    stage_bytes: u64,
    tiles: Vec<Stage>,
    /// Those of one warp
    accesses: Vec<(Access, usize, u64)>,
}

#[track_caller]
fn assert_block(what: &str, launch: &LaunchCount, block: &Block) {
    let Block { warps, barriers, stages, stage_bytes, tiles, accesses } = block;
    let blocks = launch.blocks;
    assert!(blocks > 0 && launch.threads == 32 * warps, "{what}");
    let products: u64 = tiles.iter().map(|tile| tile.products).sum();
    assert_eq!(launch.barriers, blocks * barriers, "{what}: barriers");
    assert_eq!(launch.products, blocks * warps * products, "{what}: matrix instructions");
    assert_eq!(launch.groups_in_products, blocks * warps * in_flight(*stages, tiles), "{what}: copies in flight");
    assert_eq!((launch.most_groups, launch.most_copied_bytes), (stages - 1, (stages - 1) * stage_bytes), "{what}");
    for (access, bytes, instructions) in accesses {
        let found = launch.instructions(*access, *bytes);
        assert_eq!(found, blocks * warps * instructions, "{what}: {access:?} of {bytes} bytes");
    }
}

#[test]
fn blocks_of_the_forward_pass_do_what_their_header_says() {
    for (large, dense) in [(false, false), (true, false), (false, true), (true, true)] {
        let what = format!("forward, large {large}, bf16 {dense}");
        let launches = launches_of(&linear(large, dense), 3);
        let launch = launches.last().unwrap();
        let (tokens, columns) = if large { (128, 256) } else { (64, 128) };
        let (warps, tiles, rank_tiles) = (columns / 32, 256 / 64, 1);
        let mut all = vec![Stage { products: tokens / 4, before: 0 }; rank_tiles as usize];
        let before = if dense { tokens / 4 } else { 0 };
        all.extend(vec![Stage { products: tokens, before }; tiles as usize]);
        let stage_bytes = tokens * 128 + columns * if dense { 128 } else { 32 };
        let copies = (tiles * stage_bytes + rank_tiles * 32 * (tokens + columns)) / (512 * warps);
        let mut accesses = vec![(Access::CopyTarget, 16, copies), (Access::GlobalStore, 8, tokens / 4)];
        accesses.extend(if dense {
            vec![(Access::Matrix, 16, (4 * tiles + rank_tiles) * (tokens / 16 + 2)), (Access::SharedLoad, 16, 0)]
        } else {
            vec![
                (Access::Matrix, 16, rank_tiles * (tokens / 16 + 2)),
                (Access::SharedLoad, 16, tiles * (tokens / 4 + 1)),
                (Access::SharedLoad, 8, tiles * 4),
                (Access::SharedLoad, 4, tiles * 65),
                (Access::SharedStore, 4, tiles),
            ]
        });
        let stages = if large && dense { 2 } else { 3 };
        let barriers = tiles + rank_tiles + u64::from(!dense);
        assert_block(&what, launch, &Block { warps, barriers, stages, stage_bytes, tiles: all, accesses });
        // Nothing of the tiles is past the end: what is written to shared memory was read.
        assert_eq!(launch.bytes(Access::CopySource), launch.bytes(Access::CopyTarget), "{what}");
        assert_held(&what, launch, held_by_tiles(large, dense));
    }
}

/// Blocks that sm_80, sm_86 and sm_90 hold of the linear layers' tiles, forward and dX.
fn held_by_tiles(large: bool, dense: bool) -> [u64; 3] {
    match (large, dense) {
        (false, false) => [4, 2, 5],
        (true, true) => [1, 1, 2],
        (true, false) => [2, 1, 2],
        (false, true) => [2, 1, 3],
    }
}

#[test]
fn blocks_of_dx_do_what_their_header_says() {
    for (large, dense) in [(false, false), (true, false), (false, true), (true, true)] {
        let what = format!("dx, large {large}, bf16 {dense}");
        let mut case = dx(large, dense);
        // Without ranks: T and the mask come before the pipeline.
        case.linear = Linear { given_s: false, parts: vec![Part { n: 256, r: 0, bias: false, pad: 0 }], ..case.linear };
        let launches = launches_of(&case, 3);
        let launch = launches.last().unwrap();
        let (tokens, columns) = if large { (128, 256) } else { (64, 128) };
        let (warps, tiles) = (columns / 32, 256 / 64);
        let stage_bytes = tokens * 128 + 64 * columns * 2 / if dense { 1 } else { 4 };
        let mut accesses = vec![
            (Access::CopyTarget, 16, tiles * stage_bytes / (512 * warps)),
            (Access::Matrix, 16, tiles * tokens / 4),
            (Access::GlobalStore, 16, tokens / 8),
        ];
        accesses.extend(if dense {
            vec![(Access::SharedLoad, 8, tiles * 16), (Access::SharedLoad, 4, 0)]
        } else {
            vec![
                (Access::SharedLoad, 8, tiles * 8),
                (Access::SharedLoad, 4, tiles * 64),
                (Access::SharedLoad, 2, tiles * 16),
            ]
        });
        let block = Block {
            warps,
            barriers: tiles + 1 + u64::from(!dense),
            stages: if large && dense { 2 } else { 3 },
            stage_bytes,
            tiles: vec![Stage { products: tokens, before: tokens / 4 }; tiles as usize],
            accesses,
        };
        assert_block(&what, launch, &block);
        assert_held(&what, launch, held_by_tiles(large, dense));
    }
}

const TOKENS: u64 = 256;
const HEADS: u64 = 4;
/// Warps of a block of attention, of 16 rows each.
const WARPS: u64 = 8;

fn attention(head_dim: usize, backward: bool) -> Vec<LaunchCount> {
    let shape = AttentionShape { heads: HEADS as usize, kv_heads: 1, head_dim, soft_cap: None };
    let documents = vec![TOKENS as usize];
    let case = AttentionOperation { shape, documents, window: None, backward, size: 1.0, seed: 1 };
    launches_of(&case, u64::MAX)
}

/// Barriers, matrix instructions, groups in flight at those, and ldmatrix, of all blocks of a kernel.
fn sums(launch: &LaunchCount) -> [u64; 4] {
    let matrices = launch.instructions(Access::Matrix, 16);
    [launch.barriers, launch.products, launch.groups_in_products, matrices]
}

/// [`sums`] of blocks of 128 rows whose warps take some of the block's steps: barriers beside the steps, steps of a
/// tile, those of them that a warp takes and those of these with copies in flight, matrix instructions of a step, and
/// ldmatrix once and in a step.
fn expected(
    once: [u64; 2],
    steps: impl Fn(u64) -> u64,
    taken: impl Fn(u64, u64) -> [u64; 2],
    [products, matrices]: [u64; 2],
) -> [u64; 4] {
    let mut sums = [0; 4];
    for tile in 0..TOKENS / 128 {
        sums[0] += once[0] + steps(tile);
        for warp in 0..WARPS {
            let [taken, in_flight] = taken(tile, warp);
            sums[1] += products * taken;
            sums[2] += products * in_flight;
            sums[3] += once[1] + matrices * taken;
        }
    }
    sums.map(|sum| HEADS * sum)
}

#[test]
fn blocks_of_attention_do_what_their_header_says() {
    for (head_dim, blocks) in [(64, [4, 3, 6]), (128, [2, 1, 3])] {
        let (launches, d) = (attention(head_dim, false), head_dim as u64);
        let launch = &launches[0];
        let steps = |tile: u64| 2 * (tile + 1);
        let taken = |tile: u64, warp: u64| {
            let taken = 2 * tile + warp / 4 + 1;
            [taken, taken.min(steps(tile) - 1)]
        };
        assert_eq!(sums(launch), expected([2, d / 16], steps, taken, [d, d / 2]), "D {d}");
        assert_eq!((launch.most_groups, launch.most_copied_bytes), (1, 256 * d), "D {d}");
        assert_eq!(launch.instructions(Access::GlobalStore, 4), launch.grid * WARPS * d / 4, "D {d}");
        assert_held(&format!("attention, D {d}"), launch, blocks);
    }
}

#[test]
fn blocks_of_the_gradient_of_attention_do_what_their_header_says() {
    for (head_dim, of_keys, of_queries) in [(64, [3, 2, 4], [8, 5, 8]), (128, [1, 1, 2], [4, 3, 6])] {
        let (launches, d) = (attention(head_dim, true), head_dim as u64);
        let [delta, keys, _, queries] = &launches[..] else { panic!("D {d}: {} launches", launches.len()) };
        assert_eq!(sums(delta), [0; 4], "D {d}");
        assert_eq!(delta.instructions(Access::GlobalLoad, 4), TOKENS * HEADS * d / 32, "D {d}");

        // A block for each head: 4 blocks of keys are few.
        let steps = |tile: u64| (TOKENS - 128 * tile) / 32;
        let taken = |tile: u64, warp: u64| [steps(tile) - warp / 2, steps(tile) - warp / 2 - 1];
        assert_eq!(sums(keys), expected([1, 0], steps, taken, [d, 10 * d / 16]), "dK, dV, D {d}");
        assert_eq!((keys.most_groups, keys.most_copied_bytes), (1, 640 * d + 256), "dK, dV, D {d}");
        let all_taken: u64 = (0..TOKENS / 128).flat_map(|tile| (0..WARPS).map(move |warp| taken(tile, warp)[0])).sum();
        assert_eq!(keys.instructions(Access::SharedLoad, 16), HEADS * all_taken * 8, "dK, dV, D {d}");
        assert_held(&format!("dK, dV, D {d}"), keys, of_keys);

        let steps = |tile: u64| 4 * (tile + 1);
        let taken = |tile: u64, warp: u64| {
            let taken = 4 * tile + warp / 2 + 1;
            [taken, taken.min(steps(tile) - 1)]
        };
        assert_eq!(sums(queries), expected([4, 2 * d / 16], steps, taken, [3 * d / 4, 6 * d / 16]), "dQ, D {d}");
        assert_eq!((queries.most_groups, queries.most_copied_bytes), (1, 256 * d), "dQ, D {d}");
        assert_held(&format!("dQ, D {d}"), queries, of_queries);
    }
}

#[test]
fn blocks_of_the_gradients_of_lora_do_what_their_header_says() {
    for (r, blocks) in [(16, [4, 2, 6]), (64, [3, 2, 4])] {
        let parts = vec![LowRankPart { n: 256, r, pad: 0 }];
        let (m, k) = (256, 512);
        let case = LowRank { m, k, pad_x: 0, parts, adapters: 0, dropout: 0.0, exact: false, given_t: true, seed: 1 };
        let launches = launches_of(&case, u64::MAX);
        let launch = launches.last().unwrap();
        assert_eq!(launch.grid, 6, "tiles of 128 columns of X and dY");
        let (steps, rank_tiles) = (256 / 32, r as u64 / 16);
        let stage_bytes = 32 * (256 + 32 * rank_tiles);
        let block = Block {
            warps: 4,
            barriers: steps,
            stages: 4,
            stage_bytes,
            tiles: vec![Stage { products: 8 * rank_tiles, before: 0 }; steps as usize],
            accesses: vec![(Access::Matrix, 16, steps * 2 * (2 + rank_tiles))],
        };
        assert_block(&format!("LoRA gradients, r {r}"), launch, &block);
        // Ranks are copied by some of the warps alone.
        let copies = launch.instructions(Access::CopyTarget, 16);
        assert_eq!(copies, launch.blocks * steps * stage_bytes / 512, "r {r}");
        assert_held(&format!("LoRA gradients, r {r}"), launch, blocks);
    }
}

#[test]
fn known_patterns_are_counted_by_the_launch() {
    let run = |which| {
        let ((status, _), launches) = emulation::count_launches(|| test_kernels::run(which));
        assert_eq!((status, launches.len()), (sys::QK_OK, 1));
        launches[0]
    };
    let copy = run(Seeded::Copy);
    assert_eq!((copy.grid, copy.blocks, copy.threads, copy.shared_bytes), (1, 1, 128, 2048));
    assert_eq!((copy.barriers, copy.products, copy.groups_in_products), (1, 0, 0));
    assert_eq!((copy.most_groups, copy.most_copied_bytes), (1, 128 * 16));
    assert_eq!((copy.instructions(Access::CopySource, 16), copy.bytes(Access::CopySource)), (4, 128 * 16));
    assert_eq!((run(Seeded::Twice).barriers, run(Seeded::TwiceNoBarrier).barriers), (4, 2));
    let rows = run(Seeded::Rows);
    assert_eq!((rows.instructions(Access::SharedLoad, 4), rows.bytes(Access::SharedLoad)), (4, 128 * 4));
    assert_eq!((rows.instructions(Access::SharedLoad, 16), rows.bytes(Access::CopyTarget)), (0, 0));
    assert!(emulation::count_launches(|| ()).1.is_empty(), "nothing of an earlier count is left");
}
