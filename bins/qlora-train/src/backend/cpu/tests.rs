//! More threads than any machine here has: all of them work, the results are those of one, the scratch memory is
//! counted for each, and work is cut so that most of them are busy.

use super::bf16;
use super::bf16::attention::backward::keys_at_once;
use super::gemm::product::{Left, Product, Right};
use super::gemm::tiles::{PREPARATION, split};
use super::gemm::{PANEL, WIDTH, pack, panels};
use super::optimizer::PIECE;
use super::workspace::Workspace;
use super::{Cpu, Isa};
use crate::backend::Memory;
use crate::backend::run_shape::RunShape;
use qlora_kernels::shape::AttentionShape;
use std::collections::{HashMap, HashSet};
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
    /// Sums of each item to which it adds in the order of the items, after equal parts of its time
    sums: Vec<Vec<usize>>,
}

impl Items {
    fn of(costs: Vec<usize>, bytes: usize) -> Self {
        Self { useful: costs.iter().sum(), costs, bytes, sums: Vec::new() }
    }

    /// Share of the threads that does useful work until the last one is done.
    fn busy(&self, threads: usize) -> f64 {
        let (mut ends, mut sums) = (vec![0; threads], HashMap::new());
        for (item, cost) in self.costs.iter().enumerate() {
            let end = ends.iter_mut().min().expect("there are threads");
            let Some(added) = self.sums.get(item) else {
                *end += cost;
                continue;
            };
            for sum in added {
                let added_before = sums.entry(sum).or_insert(0);
                *end = (*end + cost / added.len()).max(*added_before);
                *added_before = *end;
            }
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
    let count = costs.len();
    Items { useful: columns * (rows + PREPARATION), ..Items::of(costs, bytes / count) }
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
    /// One row of so many tokens; the time of a task is the tiles of scores that it computes.
    fn attention(&self, tokens: usize) -> Items {
        let tiles = tokens / WIDTH;
        // The last tile, which takes longest, is the first.
        let costs: Vec<usize> =
            (0..tiles).rev().flat_map(|tile| std::iter::repeat_n(tile + 1, self.kv_heads)).collect();
        assert_eq!(costs.len(), bf16::attention::tasks(tokens, self.kv_heads));
        // Blocks of a tile's tokens and one head: its own, and keys and values of the others.
        Items::of(costs, (2 * self.group + tiles + 1) * WIDTH * self.head_dim * 2)
    }

    /// Items of its gradient, whose tasks add to dQ in the order of their keys.
    fn attention_backward(&self, tokens: usize, threads: usize) -> Items {
        let (tiles, keys) = (tokens / WIDTH, keys_at_once(tokens, self.kv_heads, threads));
        let (mut costs, mut sums) = (Vec::new(), Vec::new());
        for (first, kv_head) in (0..tokens).step_by(keys).flat_map(|first| (0..self.kv_heads).map(move |h| (first, h)))
        {
            let heads = kv_head * self.group..(kv_head + 1) * self.group;
            let sum = |head| (first / WIDTH..tiles).map(move |tile| head * tiles + tile);
            let of_task: Vec<usize> = heads.flat_map(sum).collect();
            costs.push(of_task.len() * keys);
            sums.push(of_task);
        }
        // Blocks of a tile's tokens and one head: keys and values and their gradients, and queries, dO and dQ, which is
        // in f32 and read and written, of the others.
        let blocks = 4 * keys / WIDTH + 6 * self.group * tiles.div_ceil(2);
        Items { sums, ..Items::of(costs, blocks * WIDTH * self.head_dim * 2) }
    }

    /// Gradients of A and B of the layers that read the norm of the MLP, for 256 tokens.
    fn lora_gradients(&self) -> Items {
        let (rank, tokens) = (16, bf16::lora_gradients::TOKENS);
        let of_a = self.hidden.div_ceil(WIDTH);
        let costs: Vec<usize> =
            (0..of_a).map(|_| 2 * rank).chain((0..2 * self.intermediate.div_ceil(WIDTH)).map(|_| rank)).collect();
        Items::of(costs, WIDTH * (2 * tokens + 8 * rank))
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
/// share of threads that is busy.
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
        let Sizes { name, hidden, vocab, .. } = sizes;
        for (number, threads) in [8, 16, 32, 64, 128].into_iter().enumerate() {
            let operations = [
                ("attention, forward", sizes.attention(512)),
                ("attention, backward", sizes.attention_backward(512, threads)),
                ("attention, 2,048 tokens, forward", sizes.attention(2048)),
                ("attention, 2,048 tokens, backward", sizes.attention_backward(2048, threads)),
                ("gradients of A and B", sizes.lora_gradients()),
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
const LEAST: [[[u8; 5]; 9]; 2] = [
    [
        [95, 95, 95, 55, 27],
        [95, 95, 85, 70, 50],
        [95, 95, 95, 95, 95],
        [95, 95, 90, 90, 80],
        [95, 95, 95, 95, 85],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 85],
        [95, 95, 95, 95, 90],
    ],
    [
        [95, 80, 40, 20, 10],
        [90, 80, 60, 40, 20],
        [95, 95, 90, 75, 38],
        [95, 90, 85, 75, 55],
        [90, 80, 65, 50, 25],
        [95, 95, 95, 95, 95],
        [95, 95, 95, 95, 95],
        [90, 65, 65, 60, 50],
        [95, 95, 85, 80, 65],
    ],
];
