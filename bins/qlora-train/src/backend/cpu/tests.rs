//! More threads than any machine here has: all of them work, the results are those of one, the scratch memory is
//! counted for each, and work is cut so that most of them are busy.

use super::bf16;
use super::gemm::product::{Left, Product, Right};
use super::gemm::tiles::{PREPARATION, split};
use super::gemm::{PANEL, WIDTH, pack, panels};
use super::optimizer::PIECE;
use super::workspace::Workspace;
use super::{Cpu, Isa};
use crate::backend::Memory;
use crate::backend::run_shape::RunShape;
use qlora_kernels::shape::AttentionShape;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

const THREADS: usize = 128;

fn in_pool<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

fn dims() -> RunShape {
    RunShape {
        tokens: 300,
        tile: 300,
        hidden: 64,
        vocab: 99,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        groups: vec![(128, 64, 16)],
        training: true,
        ..RunShape::default()
    }
}

/// A place where threads wait for one another, so that none does the work of another.
struct Meeting {
    threads: usize,
    come: Mutex<HashSet<usize>>,
    all: Condvar,
}

impl Meeting {
    fn of(threads: usize) -> Self {
        Self { threads, come: Mutex::default(), all: Condvar::new() }
    }

    /// A thread that comes for the first time waits until all have come; half a minute at most.
    fn wait(&self) {
        let thread = rayon::current_thread_index().expect("a thread of the pool");
        let mut come = self.come.lock().unwrap();
        if come.insert(thread) {
            self.all.notify_all();
            let some_are_missing = |come: &mut HashSet<usize>| come.len() < self.threads;
            drop(self.all.wait_timeout_while(come, Duration::from_secs(30), some_are_missing).unwrap());
        }
    }

    fn count(&self) -> usize {
        self.come.lock().unwrap().len()
    }
}

/// A number that bf16 has.
fn value(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 31) as f32 / 8.0 - 2.0
}

/// A matrix that a thread reads when all have come to read it.
struct Met<'a>(&'a Meeting);

impl bf16::stored::Stored for Met<'_> {
    fn read(&self, _: Isa, row: usize, columns: Range<usize>, out: &mut [half::bf16]) {
        self.0.wait();
        out.iter_mut().zip(columns).for_each(|(out, column)| *out = half::bf16::from_f32(value(row, column)));
    }
}

impl pack::Stored for Met<'_> {
    fn read(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        self.0.wait();
        for (row, out) in rows.zip(out.chunks_mut(stride)) {
            out.iter_mut().zip(columns.clone()).for_each(|(out, column)| *out = value(row, column));
        }
    }
}

/// A tile of a product is computed where another thread waits with each of the others.
#[test]
fn each_of_128_threads_takes_a_tile_and_the_bits_are_those_of_one() {
    let (m, k, n) = (8, 34, WIDTH * THREADS);
    let x: Vec<f32> = (0..m * k).map(|i| value(i, 5)).collect();
    let rounded: Vec<half::bf16> = x.iter().map(|&x| half::bf16::from_f32(x)).collect();
    let in_f32 = |threads: usize| {
        in_pool(threads, || {
            let (mut workspace, meeting) = (Workspace::new(&dims(), threads), Meeting::of(threads));
            let (matrix, mut out) = (Met(&meeting), vec![0.0f32; m * n]);
            let product = Product::new(Left::Rows { data: &x, stride: k }, k, Right::Turned(&matrix));
            panels::multiply(&mut workspace.panels, &mut out, n, m, 0..n, false, &[product]);
            (meeting.count(), out)
        })
    };
    let in_bf16 = |isa: Isa, threads: usize| {
        in_pool(threads, || {
            let mut workspace = bf16::workspace::Workspace::new(isa, &dims(), threads);
            let meeting = Meeting::of(threads);
            let (matrix, mut out) = (Met(&meeting), vec![0.0f32; m * n]);
            let left = bf16::stored::Rows { data: &rounded, stride: k };
            let product = bf16::gemm::Product { left, k, right: bf16::gemm::Right::Turned(&matrix) };
            let to = bf16::gemm::Out::F32 { data: &mut out, stride: n };
            bf16::gemm::multiply(isa, &mut workspace.gemm, to, m, 0..n, &[product]);
            (meeting.count(), out)
        })
    };
    let by_scalar = |threads| in_bf16(Isa::SCALAR, threads);
    let by_tiles = |threads| in_bf16(Isa::AMX_TWIN, threads);
    let runs: [&dyn Fn(usize) -> (usize, Vec<f32>); 3] = [&in_f32, &by_scalar, &by_tiles];
    for (number, run) in runs.into_iter().enumerate() {
        let ((one, expected), (all, found)) = (run(1), run(THREADS));
        assert_eq!((one, all), (1, THREADS), "arithmetic {number}: threads that took tiles");
        assert!(found == expected && found.iter().any(|&x| x != 0.0), "arithmetic {number}");
    }
}

#[test]
fn scratch_memory_is_made_and_planned_for_every_thread() {
    let dims = dims();
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 16, soft_cap: None };
    let planned = |threads| in_pool(threads, || Cpu::dry_run(dims.clone()).bytes());
    let made = |threads| in_pool(threads, || Cpu::new(dims.clone()).bytes());
    for threads in [1, 2, 64, 65, THREADS] {
        let more = (threads - 1) as u64 * PANEL as u64 * 4;
        assert_eq!(Workspace::new(&dims, threads).panels.len(), threads * PANEL);
        assert_eq!(Workspace::bytes_for(&dims, threads) - Workspace::bytes_for(&dims, 1), more);
        assert_eq!((planned(threads) - planned(1), made(threads)), (more, planned(threads)), "{threads} threads");
        // Attention of 300 tokens has five tasks for each key head.
        let workspace = bf16::workspace::Workspace::new(Isa::SCALAR, &dims, threads);
        assert_eq!((workspace.gemm.len(), workspace.attention.len()), (threads, threads.min(10)));
        let bytes = |threads| bf16::workspace::Workspace::bytes_for(&dims, threads);
        let more = (threads - 1) as u64 * bf16::gemm::Scratch::BYTES
            + (threads.min(10) - 1) as u64 * bf16::attention::Scratch::bytes(shape);
        assert_eq!(bytes(threads) - bytes(1), more, "{threads} threads");
    }
}

/// Pieces of work that threads take one after the other.
struct Items {
    /// Time of each, in units of the operation
    costs: Vec<usize>,
    /// Time without what is done again because work is cut
    useful: usize,
    /// Bytes that an item reads and writes in the mean
    bytes: usize,
}

impl Items {
    fn of(costs: Vec<usize>, bytes: usize) -> Self {
        Self { useful: costs.iter().sum(), costs, bytes }
    }

    /// Share of the threads that does useful work until the last one is done.
    fn busy(&self, threads: usize) -> f64 {
        let mut ends = vec![0; threads];
        for cost in &self.costs {
            *ends.iter_mut().min().expect("there are threads") += cost;
        }
        self.useful as f64 / (threads * ends.into_iter().max().expect("there are threads")) as f64
    }
}

/// Tiles of a product with bf16 operands and f32 results, contracted over `k`. A panel's preparation is work once.
fn of_product(rows: usize, columns: usize, k: usize, threads: usize) -> Items {
    let mut matrix = vec![0u8; rows * columns];
    let tiles = split(&mut matrix, columns, rows, 0..columns, WIDTH, threads);
    let costs: Vec<usize> = tiles.iter().map(|tile| tile.columns.len() * (tile.rows.len() + PREPARATION)).collect();
    let bytes: usize = tiles.iter().map(|tile| tile.columns.len() * (2 * k + 4 * tile.rows.len())).sum();
    Items { bytes: bytes / costs.len(), costs, useful: columns * (rows + PREPARATION) }
}

struct Sizes {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    vocab: usize,
    kv_heads: usize,
    /// Query heads of a key head
    group: usize,
    head_dim: usize,
}

impl Sizes {
    /// One row of so many tokens; the time of a task is the tiles of scores that it computes, times products of each.
    fn attention(&self, tokens: usize, backward: bool) -> Items {
        let (tiles, group) = (tokens / WIDTH, self.group);
        let cost = |tile: usize| if backward { 3 * (tile + 1) + 4 * (tiles - tile) } else { tile + 1 };
        // The forward pass begins with the last tile, which takes longest.
        let order: Vec<usize> = if backward { (0..tiles).collect() } else { (0..tiles).rev().collect() };
        let costs: Vec<usize> =
            order.into_iter().flat_map(|tile| std::iter::repeat_n(cost(tile), self.kv_heads)).collect();
        assert_eq!(costs.len(), bf16::attention::tasks(tokens, self.kv_heads));
        // Blocks of a tile's tokens and one head: its own, and keys and values, or queries and dO too, of the others.
        let blocks = match backward {
            false => 2 * group + tiles + 1,
            true => 3 * group + 4 + (1 + group) * (tiles + 1),
        };
        Items::of(costs, blocks * WIDTH * self.head_dim * 2)
    }

    /// Values of A and B of every linear layer, at rank 16.
    fn tensors(&self) -> Vec<usize> {
        let (h, i, kv) = (self.hidden, self.intermediate, self.kv_heads * self.head_dim);
        let of_layer = [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)];
        (0..self.layers).flat_map(|_| of_layer).flat_map(|(n, k)| [16 * k, n * 16]).collect()
    }

    fn update(&self) -> Items {
        let pieces = |len: usize| (0..len).step_by(PIECE).map(move |first| PIECE.min(len - first));
        let costs: Vec<usize> = self.tensors().into_iter().flat_map(pieces).collect();
        // Values and both moments are read and written, gradients are read.
        let bytes = 28 * costs.iter().sum::<usize>() / costs.len();
        Items::of(costs, bytes)
    }
}

/// A step of 512 tokens on as many cores as machines have, beside the linear layers: items, bytes of an item and the
/// share of threads that is busy. Gradients of A and B are of the layers that read the norm of the MLP.
#[test]
fn many_threads_are_busy_in_other_operations() {
    let large = Sizes {
        name: "Llama 3 8B",
        hidden: 4096,
        intermediate: 14_336,
        layers: 32,
        vocab: 128_256,
        kv_heads: 8,
        group: 4,
        head_dim: 128,
    };
    let small = Sizes {
        name: "SmolLM2-135M",
        hidden: 576,
        intermediate: 1536,
        layers: 30,
        vocab: 49_152,
        kv_heads: 3,
        group: 3,
        head_dim: 64,
    };
    for (sizes, least) in [(large, &LEAST[0]), (small, &LEAST[1])] {
        let Sizes { name, hidden, intermediate, vocab, .. } = sizes;
        for (number, threads) in [8, 16, 32, 64, 128].into_iter().enumerate() {
            let operations = [
                ("attention, forward", sizes.attention(512, false)),
                ("attention, backward", sizes.attention(512, true)),
                ("attention, 2,048 tokens, forward", sizes.attention(2048, false)),
                ("attention, 2,048 tokens, backward", sizes.attention(2048, true)),
                ("gradient of A", of_product(32, hidden, 256, threads)),
                ("gradient of B", of_product(16, intermediate, 256, threads)),
                ("logits", of_product(256, vocab, hidden, threads)),
                ("softmax", Items::of(vec![1; 256], 8 * vocab)),
                ("gradient of the output layer's input", of_product(256, hidden, vocab, threads)),
                ("AdamW", sizes.update()),
            ];
            for ((operation, items), least) in operations.into_iter().zip(least) {
                let (busy, count, kib) = (items.busy(threads), items.costs.len(), items.bytes >> 10);
                let each = count as f64 / threads as f64;
                println!(
                    "{name}, {operation}, {threads} threads: {count} items of {kib} KiB, {each:.1} for each thread, \
                     {:.0}% busy",
                    100.0 * busy
                );
                let what = format!("{name}, {operation}, {threads} threads: {busy}");
                assert!(busy >= f64::from(least[number]) / 100.0, "{what}");
                // A microsecond of memory's time or more, beside which the queue's lock is short.
                assert!(items.bytes >= 32 << 10 && count <= 48 * threads.max(64), "{what}");
            }
        }
    }
}

/// Percent of 8, 16, 32, 64 and 128 threads that are busy at least, by operation.
const LEAST: [[[u8; 5]; 10]; 2] = [
    [
        [95, 95, 95, 55, 27],
        [95, 95, 95, 85, 44],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 60],
        [95, 95, 95, 85, 85],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 85],
        [95, 95, 95, 95, 90],
    ],
    [
        [95, 80, 40, 20, 10],
        [95, 75, 65, 33, 16],
        [95, 95, 90, 75, 38],
        [95, 95, 95, 75, 65],
        [60, 55, 33, 16, 8],
        [95, 75, 75, 37, 18],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 95],
        [90, 65, 65, 60, 50],
        [95, 95, 85, 80, 65],
    ],
];
