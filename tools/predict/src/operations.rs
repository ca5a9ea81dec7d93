//! Launches of each operation of a training step on the fused path: kernels, grids and bytes, as the launchers in
//! `cuda/` choose them.

use crate::cards::Card;
use crate::launches::{Kernels, Launch, Shared, Work, block_cycles, resident};
use anyhow::Result;
use serde::Deserialize;

/// An operation of the trainer, as `qlora-train bench --plan --json` lists it; its fields are those of the trainer's
/// `OpWork`. One that is made up here has shapes alone.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Operation {
    pub name: String,
    pub count: usize,
    pub tokens: usize,
    pub k: usize,
    /// N and r
    pub segments: Vec<[usize; 2]>,
    /// H, Hkv and D
    pub heads: [usize; 3],
    /// Keys that a query of attention sees at most; 0: all before it
    #[serde(default)]
    pub window: usize,
    pub vocab: usize,
    pub values: usize,
    /// Units of work that the trainer's rates count
    pub units: f64,
    /// Useful FLOPs of the operation, as the trainer counts them
    pub flops: f64,
    /// Parameters that an update changes, of an operation that makes their gradients
    pub trained: usize,
}

const LARGE: (usize, usize) = (128, 256);
const SMALL: (usize, usize) = (64, 128);
/// Blocks of a multiprocessor at once, their time and that of one alone, of large and of small tiles: `TileTimes`.
const LARGE_TIMES: [usize; 3] = [1, 100, 100];
const SMALL_TIMES: [usize; 3] = [2, 60, 40];
/// Those of small tiles of which no two fit.
const SMALL_TIMES_ALONE: [usize; 3] = [1, 40, 40];
/// Shared memory of a small tile of bf16 weights, with what the system takes: `kSmallDenseBytes`.
const SMALL_DENSE_BYTES: usize = 75_840;
/// Blocks that are enough for all multiprocessors: `kBlocksOfWideTiles`.
const BLOCKS_OF_WIDE_TILES: usize = 128;
/// Bytes of a weight in NF4 with double quantization: codes, and the absmax of 64.
pub const NF4_BYTES: f64 = 0.5 + 1.0 / 64.0;
/// Supervised tokens whose logits are there at once.
const LOSS_CHUNK: usize = 1024;
/// Share of the L2 that holds what blocks read again.
const L2_SHARE: f64 = 0.7;

impl Operation {
    fn n(&self) -> usize {
        self.segments.iter().map(|[n, _]| n).sum()
    }

    /// Frozen weights of the group.
    pub fn weights(&self) -> f64 {
        (self.k * self.n()) as f64
    }

    fn low_rank(&self) -> usize {
        self.segments.iter().map(|[_, r]| r).sum()
    }

    fn low_rank_of_b(&self) -> usize {
        self.segments.iter().map(|[n, r]| n * r).sum()
    }

    /// The first key that a tile of 128 queries sees, at the beginning of a step of `step` keys.
    fn first_key(&self, tile: usize, step: usize) -> usize {
        match self.window {
            0 => 0,
            window => (tile * 128 + 1).saturating_sub(window) / step * step,
        }
    }

    /// An operation like this one on other `tokens`, each of which costs the same.
    pub fn on(&self, tokens: usize) -> Self {
        let share = tokens as f64 / self.tokens as f64;
        Self { tokens, units: self.units * share, flops: self.flops * share, ..self.clone() }
    }

    /// The launches of one such operation. `None`: a name that is not known.
    pub fn launches(&self, kernels: &Kernels, card: &Card) -> Option<Vec<Launch>> {
        Some(match self.name.as_str() {
            "linear" => vec![self.forward(card)],
            "linear, backward" => vec![self.dx(card, self.k, self.n(), self.tokens, false)],
            "LoRA X·Aᵀ" => vec![self.lora_down()],
            "LoRA dY·B" => vec![self.lora_dy_b()],
            "LoRA gradients" => self.lora_gradients(),
            "attention" => vec![self.attention(kernels, card)],
            "attention, backward" => self.attention_backward(kernels, card),
            "output layer and loss" => self.loss(card),
            "embedding" => vec![self.moves("embedding<8>", 128, self.tokens)],
            "norm" => vec![self.moves("rms_norm<8>", 256, self.tokens)],
            "norm, backward" => vec![self.moves("rms_norm_backward<8>", 256, self.tokens)],
            // A lane takes a vector, or a pair of them where it turns them, in either order.
            "norm of q and k" => vec![self.moves("head_norm<8, false, 0>", 256, self.of_vectors() / 2)],
            "norm of q and k, backward" => vec![self.moves("head_norm<8, true, 0>", 256, self.of_vectors() / 3)],
            "norm and rotation of q and k" => vec![self.moves("head_norm<8, false, 1>", 256, self.of_vectors() / 4)],
            "norm and rotation of q and k, backward" => {
                vec![self.moves("head_norm<8, true, 1>", 256, self.of_vectors() / 6)]
            }
            "rotary embedding" => vec![self.moves("rope<8>", 256, self.of_vectors())],
            "norm, gradient of the weight" => {
                vec![self.moves("norm_gradient<8>", 256, self.of_token_sums(self.values / 2))]
            }
            "magnitudes" => vec![self.moves("magnitude_forward<8>", 256, self.of_token_sums(self.values / 2))],
            "magnitudes, backward" => {
                vec![self.moves("magnitude_backward<8>", 256, self.of_token_sums(self.values / 3))]
            }
            "embedding, backward" => {
                vec![self.moves("embedding_backward<8>", 256, self.tokens * (self.values / 3).div_ceil(8 * 256))]
            }
            "SwiGLU" => vec![self.moves("swiglu<8, false, 0>", 256, self.of_vectors() / 3)],
            "SwiGLU, backward" => {
                vec![self.moves("swiglu<8, true, 0>", 256, (self.tokens * self.k).div_ceil(8 * 256))]
            }
            _ => return None,
        })
    }

    /// Blocks of 256 threads that take 8 values each.
    fn of_vectors(&self) -> usize {
        (self.tokens * self.values).div_ceil(8 * 256)
    }

    /// Blocks of 256 tokens by 16 vectors of a row of `columns` values.
    fn of_token_sums(&self, columns: usize) -> usize {
        self.tokens.div_ceil(256) * columns.div_ceil(8 * 16)
    }

    fn moves(&self, kernel: &str, threads: u32, blocks: usize) -> Launch {
        let bytes = 2.0 * (self.tokens * self.values) as f64;
        Launch::moving(kernel, threads, blocks.max(1), bytes)
    }

    /// Few tokens: each weight straight from memory into registers.
    fn few_tokens(&self) -> Launch {
        let tiles = |columns: usize| self.segments.iter().map(|[n, _]| n.div_ceil(columns)).sum::<usize>();
        let wide = tiles(32) >= BLOCKS_OF_WIDE_TILES;
        let columns = if wide { 32 } else { 8 };
        let blocks = tiles(columns);
        let weights = (self.n() * self.k) as f64 * NF4_BYTES;
        // The code loads X of 16 tokens beside the weights; those that are not there are not loaded.
        let (of_weights, of_token) = (columns as f64 * NF4_BYTES, 2.0);
        let loaded = of_weights + of_token * self.tokens as f64;
        Launch {
            kernel: format!("linear_small_m<{}, false>", columns / 8),
            threads: 256,
            shared: Shared::Bytes(128 + (8 * 16 * columns * 4) as u32),
            work: Work::Products(vec![(16 * columns * self.k) as f64; blocks]),
            flops: self.flops,
            bytes: weights + (2 * self.tokens * (self.k + self.n())) as f64,
            from_dram: of_weights / loaded,
            loads: loaded / (of_weights + of_token * 16.0),
            waits_for_dram: true,
        }
    }

    fn forward(&self, card: &Card) -> Launch {
        if self.tokens <= 16 {
            return self.few_tokens();
        }
        let size = size_of_tiles(card, false, |size| {
            let (down, across) = self.forward_tiles(size);
            down * across
        });
        self.forward_of(card, false, size)
    }

    /// Tiles of this size, down and across.
    fn forward_tiles(&self, (tokens, columns): (usize, usize)) -> (usize, usize) {
        (self.tokens.div_ceil(tokens), self.segments.iter().map(|[n, _]| n.div_ceil(columns)).sum::<usize>())
    }

    /// The forward pass by tiles of this size, weights in NF4 or bf16.
    fn forward_of(&self, card: &Card, dense: bool, (tokens, columns): (usize, usize)) -> Launch {
        let (down, across) = self.forward_tiles((tokens, columns));
        let grid = Grid {
            down,
            across,
            down_bytes: (tokens * self.k * 2) as f64,
            across_bytes: (columns * self.k) as f64 * if dense { 2.0 } else { NF4_BYTES },
        };
        let warps = columns / 32;
        Launch {
            kernel: format!("linear_forward<Config<{tokens}, {warps}, *, {dense}"),
            threads: 32 * warps as u32,
            shared: stages(tokens, columns, dense),
            work: Work::Products(vec![(tokens * columns * self.k) as f64; down * across]),
            flops: self.flops,
            bytes: grid.bytes_from_dram(card) + (2 * self.tokens * self.n()) as f64,
            from_dram: grid.share_from_dram(card),
            loads: 1.0,
            waits_for_dram: false,
        }
    }

    /// [tokens, k] = [tokens, n] · [n, k], weights in NF4 or bf16.
    fn dx(&self, card: &Card, k: usize, n: usize, all_tokens: usize, dense: bool) -> Launch {
        let tiles = |(tokens, columns): (usize, usize)| all_tokens.div_ceil(tokens) * k.div_ceil(columns);
        self.dx_of(card, [k, n, all_tokens], dense, size_of_tiles(card, dense, tiles))
    }

    /// dX by tiles of this size.
    fn dx_of(
        &self,
        card: &Card,
        [k, n, all_tokens]: [usize; 3],
        dense: bool,
        (tokens, columns): (usize, usize),
    ) -> Launch {
        let (down, across) = (all_tokens.div_ceil(tokens), k.div_ceil(columns));
        let weight = if dense { 2.0 } else { NF4_BYTES };
        let grid =
            Grid { down, across, down_bytes: (tokens * n * 2) as f64, across_bytes: (columns * n) as f64 * weight };
        let warps = columns / 32;
        Launch {
            kernel: format!("linear_dx<Config<{tokens}, {warps}, *, {dense}>>"),
            threads: 32 * warps as u32,
            shared: stages(tokens, columns, dense),
            work: Work::Products(vec![(tokens * columns * n) as f64; down * across]),
            flops: self.flops,
            bytes: grid.bytes_from_dram(card) + (2 * all_tokens * k) as f64,
            from_dram: grid.share_from_dram(card),
            loads: 1.0,
            waits_for_dram: false,
        }
    }

    /// 16 tokens by up to 64 columns of all segments, as many as leave enough blocks.
    fn lora_down(&self) -> Launch {
        let groups: usize = self.segments.iter().map(|[_, r]| r.div_ceil(8)).sum();
        let of_tokens = self.tokens.div_ceil(16);
        let mut parts = groups.div_ceil(8).max(1);
        while 2 * parts < groups && of_tokens * parts < BLOCKS_OF_WIDE_TILES {
            parts += 1;
        }
        let tiles = groups.div_ceil(2 * parts).max(1) * 2;
        let (columns, readings) = (8 * tiles, groups.div_ceil(tiles));
        Launch {
            kernel: format!("lora_down<{tiles}>"),
            threads: 256,
            shared: Shared::Bytes((272 * 4 + 8 * 16 * columns * 4) as u32),
            work: Work::Products(vec![(16 * columns * self.k) as f64; readings * of_tokens]),
            flops: self.flops,
            bytes: (2 * self.tokens * (self.k + self.low_rank())) as f64,
            // A comes from the L2, X once for all blocks of its tokens.
            from_dram: 16.0 / (16 + columns) as f64 / readings.max(1) as f64,
            loads: 1.0,
            waits_for_dram: false,
        }
    }

    fn lora_dy_b(&self) -> Launch {
        let of_tokens = self.segments.iter().filter(|[_, r]| *r > 0).map(|[n, _]| (16 * 16 * n) as f64);
        let of_tokens: Vec<f64> = of_tokens.collect();
        let blocks = self.tokens.div_ceil(16);
        Launch {
            kernel: "lora_dy_b<1, 2, true>".to_owned(),
            threads: 256,
            shared: Shared::Bytes(8 * 16 * 16 * 4),
            work: Work::Products(of_tokens.repeat(blocks)),
            flops: self.flops,
            bytes: (2 * self.tokens * (self.n() + self.low_rank())) as f64,
            from_dram: 0.5,
            loads: 1.0,
            waits_for_dram: false,
        }
    }

    fn lora_gradients(&self) -> Vec<Launch> {
        let with_ranks = || self.segments.iter().filter(|[_, r]| *r > 0);
        let tiles: usize = with_ranks().map(|[n, _]| n.div_ceil(128) + self.k.div_ceil(128)).sum();
        let chunks = self.tokens.div_ceil(256);
        let wanted = if tiles < 96 { (2 * 96_usize).div_ceil(tiles.max(1)).min(chunks) } else { 1 };
        let chunks_of_block = chunks.div_ceil(wanted);
        let groups = chunks.div_ceil(chunks_of_block);
        let tokens = (chunks_of_block * 256).min(self.tokens);
        let unique = (2 * self.tokens * (self.n() + self.k)) as f64;
        let main = Launch {
            kernel: "lora_gradients<1, false>".to_owned(),
            threads: 128,
            shared: Shared::Bytes(4 * (32 * 128 * 2 + 32 * 16 * 2)),
            work: Work::Products(vec![(16 * 128 * tokens) as f64; tiles * groups]),
            flops: self.flops,
            bytes: unique + 8.0 * (self.k * self.low_rank() + self.low_rank_of_b()) as f64,
            from_dram: unique / (2.0 * (tiles * 144 * self.tokens) as f64),
            loads: 1.0,
            waits_for_dram: false,
        };
        if groups == 1 {
            return vec![main];
        }
        let partial = (tiles * chunks * 16 * 128 * 4) as f64;
        vec![main, Launch::moving("add_chunks<1>", 128, tiles, partial)]
    }

    fn attention(&self, kernels: &Kernels, card: &Card) -> Launch {
        let [heads, kv_heads, head_dim] = self.heads;
        let tiles = self.tokens.div_ceil(128);
        // Steps of 64 keys from the first that a tile of 128 queries sees up to its own; two products each.
        let steps = |tile: usize| ((tile + 1) * 128 - self.first_key(tile, 64)) / 64;
        let cost = |tile: usize| steps(tile) as f64 * (2 * 128 * 64 * head_dim) as f64;
        Launch {
            kernel: format!("attention<{head_dim}, false>"),
            threads: 256,
            shared: Shared::Bytes((4 * 64 * head_dim * 2) as u32),
            work: Work::Products(heaviest_first(tiles, heads, heads_are_fastest(kernels, card), |tile| {
                cost(tiles - 1 - tile)
            })),
            flops: self.flops,
            bytes: (2 * self.tokens * (2 * heads + 2 * kv_heads) * head_dim) as f64,
            from_dram: 0.1,
            loads: 1.0,
            waits_for_dram: false,
        }
    }

    fn attention_backward(&self, kernels: &Kernels, card: &Card) -> Vec<Launch> {
        let [heads, kv_heads, head_dim] = self.heads;
        let tiles = self.tokens.div_ceil(128);
        let fastest = heads_are_fastest(kernels, card);
        let group = heads / kv_heads.max(1);
        let splits = if fastest { 256_usize.div_ceil(tiles * kv_heads).min(group) } else { 1 };
        // Steps of 32 queries from a tile of 128 keys on, as far as its last key is seen.
        let steps = |tile: usize| match self.window {
            0 => (4 * (tiles - tile)) as f64,
            window => (4 * (tiles - tile)).min((127 + window).div_ceil(32)) as f64,
        };
        // Steps of 32 keys of a tile of 128 queries, counted from the last one.
        let steps_of_queries = |tile: usize| {
            let tile = tiles - 1 - tile;
            (((tile + 1) * 128 - self.first_key(tile, 32)) / 32) as f64
        };
        let product = (128 * 32 * head_dim) as f64;
        let of_heads = (group / splits) as f64;
        let rows = (self.tokens * heads * head_dim) as f64;
        let delta =
            Launch::moving(&format!("attention_delta<{head_dim}>"), 256, (self.tokens * heads).div_ceil(8), 4.0 * rows);
        let keys = Launch {
            kernel: format!("attention_backward_keys<{head_dim}, false>"),
            threads: 256,
            shared: Shared::Bytes((2 * 128 * head_dim * 2 + 2 * 2 * 32 * head_dim * 2 + 1024) as u32),
            work: Work::Products(heaviest_first(tiles, kv_heads * splits, fastest, |tile| {
                of_heads * steps(tile) * 4.0 * product
            })),
            flops: self.flops * 0.5,
            bytes: 2.0 * (3.0 * rows),
            from_dram: 0.1,
            loads: 1.0,
            waits_for_dram: false,
        };
        let queries = Launch {
            kernel: format!("attention_backward_queries<{head_dim}, false>"),
            threads: 256,
            shared: Shared::Bytes((2 * 2 * 32 * head_dim * 2) as u32),
            work: Work::Products(heaviest_first(tiles, heads, fastest, |tile| steps_of_queries(tile) * 3.0 * product)),
            flops: self.flops * 0.5,
            bytes: 2.0 * (3.0 * rows),
            from_dram: 0.1,
            loads: 1.0,
            waits_for_dram: false,
        };
        let mut launches = vec![delta, keys, queries];
        if splits > 1 {
            let sums = (tiles * 128 * kv_heads * splits * head_dim * 2 * 4) as f64;
            launches.push(Launch::moving(
                &format!("attention_backward_add<{head_dim}>"),
                256,
                2 * tiles * kv_heads,
                sums,
            ));
        }
        launches
    }

    /// A chunk of tokens at a time: logits, softmax, the gradient of the hidden states.
    fn loss(&self, card: &Card) -> Vec<Launch> {
        let mut launches = Vec::new();
        let mut left = self.tokens;
        while left > 0 {
            let tokens = left.min(LOSS_CHUNK);
            left -= tokens;
            // Half of them are the logits', half the gradient's.
            let flops = self.on(tokens).flops / 2.0;
            let (down, across) = (tokens.div_ceil(128), self.vocab.div_ceil(256));
            let grid =
                Grid { down, across, down_bytes: (128 * self.k * 2) as f64, across_bytes: (256 * self.k * 2) as f64 };
            launches.push(Launch::moving("copy_rows<false, 8>", 256, tokens, (4 * tokens * self.k) as f64));
            launches.push(Launch {
                kernel: "cross_entropy_logits<true, true, false>".to_owned(),
                threads: 256,
                shared: Shared::Bytes(2 * (128 + 256) * 128),
                work: Work::Products(vec![(128 * 256 * self.k) as f64; down * across]),
                flops,
                bytes: grid.bytes_from_dram(card) + (4 * tokens * self.vocab) as f64,
                from_dram: grid.share_from_dram(card),
                loads: 1.0,
                waits_for_dram: false,
            });
            launches.push(Launch::moving("softmax_rows<false>", 256, tokens, (6 * tokens * self.vocab) as f64));
            launches.push(Launch { flops, ..self.dx(card, self.k, self.vocab, tokens, true) });
        }
        launches
    }
}

impl Launch {
    /// A launch that only moves bytes.
    pub fn moving(kernel: &str, threads: u32, blocks: usize, bytes: f64) -> Self {
        Self {
            kernel: kernel.to_owned(),
            threads,
            shared: Shared::Bytes(1024),
            work: Work::Bytes { blocks },
            flops: 0.0,
            bytes,
            from_dram: 1.0,
            loads: 1.0,
            waits_for_dram: false,
        }
    }
}

/// An AdamW update of 8-bit states by blocks that stride over the parameters, three on each multiprocessor.
pub fn adamw(card: &Card, parameters: f64) -> Launch {
    let blocks = 3 * card.multiprocessors.value as usize;
    let maps = Shared::Bytes(2 * (2 * 256 * 4 + 1024));
    let bytes = parameters * ADAMW_BYTES;
    Launch { work: Work::Strides { blocks }, shared: maps, ..Launch::moving("adamw_update", 256, blocks, bytes) }
}

/// Dequantizes `weights` weights in NF4 with double quantization to bf16.
pub fn dequantize(weights: f64) -> Launch {
    let blocks = (weights / 8.0 / 256.0) as usize;
    Launch::moving("dequantize<__nv_bfloat16>", 256, blocks, weights * (2.0 + NF4_BYTES))
}

/// Bytes that AdamW in 8 bits moves for a parameter: gradient, value read and written, its working copy, two states.
pub const ADAMW_BYTES: f64 = 18.0;

/// Shared memory of the fused layers' tiles: tables, and stages of X or dY and of weights.
fn stages(tokens: usize, columns: usize, dense: bool) -> Shared {
    let row = if dense { 128 } else { 36 };
    Shared::Stages { tables: 272 * 4, stage: (tokens * 128 + columns * row) as u32 }
}

/// `TileTimes` of small tiles on a card, as the launchers take them.
pub fn small_times(card: &Card, dense: bool) -> [usize; 3] {
    let two_fit = !dense || 2 * SMALL_DENSE_BYTES <= card.architecture.shared_memory.value as usize;
    if two_fit { SMALL_TIMES } else { SMALL_TIMES_ALONE }
}

/// The size of tiles that is done first, as the launchers choose it. `tiles`: the number of tiles of a size.
fn size_of_tiles(card: &Card, dense: bool, tiles: impl Fn((usize, usize)) -> usize) -> (usize, usize) {
    let multiprocessors = card.multiprocessors.value as usize;
    let time = |size, [resident, together, alone]: [usize; 3]| {
        let tiles = tiles(size);
        let last = match tiles % (multiprocessors * resident) {
            0 => 0,
            rest if rest <= multiprocessors => alone,
            _ => together,
        };
        tiles / (multiprocessors * resident) * together + last
    };
    if time(LARGE, LARGE_TIMES) <= time(SMALL, small_times(card, dense)) { LARGE } else { SMALL }
}

/// `TileTimes` of small tiles as the machine code has them, of the forward pass or of dX over sums of 8,192 products:
/// blocks that a multiprocessor holds, their time and that of one alone, in hundredths of a large tile's.
pub fn predicted_small_times(kernels: &Kernels, card: &Card, is_dx: bool, dense: bool) -> Result<[usize; 3]> {
    const SIDE: usize = 8192;
    let operation = Operation {
        name: "linear".to_owned(),
        count: 1,
        tokens: 2048,
        k: SIDE,
        segments: vec![[SIDE, 0]],
        ..Operation::default()
    };
    let of = |size| match is_dx {
        true => operation.dx_of(card, [SIDE, SIDE, operation.tokens], dense, size),
        false => operation.forward_of(card, dense, size),
    };
    let (large, small) = (of(LARGE), of(SMALL));
    let whole = block_cycles(kernels, &large, card, resident(kernels.find(&large.kernel, card)?, &large, card))?;
    let held = resident(kernels.find(&small.kernel, card)?, &small, card);
    let hundredths = |blocks| Ok::<_, anyhow::Error>(100.0 * block_cycles(kernels, &small, card, blocks)? / whole);
    Ok([held, hundredths(held)?.round() as usize, hundredths(1)?.round() as usize])
}

/// True if attention's grids have heads on the fastest axis: those that do have a kernel for the split sums.
fn heads_are_fastest(kernels: &Kernels, card: &Card) -> bool {
    kernels.find("attention_backward_add<128>", card).is_ok()
}

/// Costs of tiles times heads, tiles in the order of their costs.
fn heaviest_first(tiles: usize, heads: usize, heads_fastest: bool, cost: impl Fn(usize) -> f64) -> Vec<f64> {
    match heads_fastest {
        true => (0..tiles).flat_map(|tile| std::iter::repeat_n(cost(tile), heads)).collect(),
        false => (0..heads).flat_map(|_| (0..tiles).map(&cost)).collect(),
    }
}

/// A grid of products, tiles of tokens fastest, and what of its operands the L2 keeps.
struct Grid {
    down: usize,
    across: usize,
    /// Bytes of the rows of a tile, and of its columns
    down_bytes: f64,
    across_bytes: f64,
}

impl Grid {
    fn bytes_from_dram(&self, card: &Card) -> f64 {
        let rows = self.down as f64 * self.down_bytes;
        let columns_at_once = (card.multiprocessors.value / self.down as f64).max(1.0);
        // Rows that do not stay are read again for each set of columns.
        let readings = match rows <= L2_SHARE * card.l2_megabytes.value * 1e6 {
            true => 1.0,
            false => (self.across as f64 / columns_at_once).max(1.0),
        };
        rows * readings + self.across as f64 * self.across_bytes
    }

    fn share_from_dram(&self, card: &Card) -> f64 {
        let loaded = (self.down * self.across) as f64 * (self.down_bytes + self.across_bytes);
        (self.bytes_from_dram(card) / loaded).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cards::card;

    #[test]
    fn what_the_l2_keeps_is_read_once() {
        let grid = |down| Grid { down, across: 64, down_bytes: 2e6, across_bytes: 1e6 };
        let (small, large) = (card("A6000").unwrap(), card("L40S").unwrap());
        // 16 tiles of rows are 32 MB: an L2 of 96 MB keeps them, one of 6 MB reads them for each set of columns.
        assert_eq!(grid(16).bytes_from_dram(large), 32e6 + 64e6);
        assert_eq!(grid(16).bytes_from_dram(small), 32e6 * 64.0 / (84.0 / 16.0) + 64e6);
        assert!(grid(16).share_from_dram(large) < grid(16).share_from_dram(small));
        // More tiles of rows than multiprocessors: once for every column of tiles.
        assert_eq!(grid(200).bytes_from_dram(small), 400e6 * 64.0 + 64e6);
    }

    /// The tables of the launchers are copied here.
    #[test]
    fn tiles_are_chosen_by_the_numbers_of_the_launchers() {
        let launchers = include_str!("../../../cuda/linear/choice.cuh");
        let times = |[resident, together, alone]: [usize; 3]| format!("{{{resident}, {together}, {alone}}}");
        for line in [
            format!("kLargeTimes = {}, kSmallTimes = {};", times(LARGE_TIMES), times(SMALL_TIMES)),
            format!("kSmallTimesAlone = {};", times(SMALL_TIMES_ALONE)),
            format!("kSmallDenseBytes = {SMALL_DENSE_BYTES};"),
            format!("kBlocksOfWideTiles = {BLOCKS_OF_WIDE_TILES};"),
            format!("kLargeTokens = {}, kLargeColumns = {}, ", LARGE.0, LARGE.1),
            format!("kSmallTokens = {}, kSmallColumns = {};", SMALL.0, SMALL.1),
        ] {
            assert!(launchers.contains(&line), "{line}");
        }
    }

    /// 3 stages of 64 rows of X and 128 of W by 128 bytes, tables of 1,088 and the system's 1,024: 75,840 bytes, of
    /// which sm_80's 164 KiB and sm_90's 228 hold two and sm_86's and sm_89's 100 one. Of NF4 it is 40,512.
    #[test]
    fn two_small_tiles_of_bf16_weights_fit_where_there_is_shared_memory() {
        assert_eq!(SMALL_DENSE_BYTES, 3 * (64 + 128) * 128 + 1088 + 1024);
        for (name, expected) in [("A100", 2), ("A6000", 1), ("L40S", 1), ("4090", 1), ("H100", 2), ("5090", 1)] {
            let card = card(name).unwrap();
            assert_eq!((small_times(card, true)[0], small_times(card, false)[0]), (expected, 2), "{name}");
            let Shared::Stages { tables, stage } = stages(64, 128, true) else { unreachable!("they have stages") };
            assert_eq!((tables + 3 * stage + 1024) as usize, SMALL_DENSE_BYTES);
        }
        // 200 small tiles on 142 multiprocessors: 60 of the time of a large one by twos, 80 one after the other. Of 70
        // large ones it is 100, of none 0.
        let chosen =
            |dense, large| size_of_tiles(card("L40S").unwrap(), dense, |size| if size == LARGE { large } else { 200 });
        assert_eq!([chosen(false, 70), chosen(true, 70), chosen(true, 0)], [SMALL, SMALL, LARGE]);
        // 852 are 3 waves of two, 180, and 6 of one, 240; 284 large ones are 2, 200.
        let chosen = |dense| size_of_tiles(card("L40S").unwrap(), dense, |size| if size == LARGE { 284 } else { 852 });
        assert_eq!([chosen(false), chosen(true)], [SMALL, LARGE]);
    }

    #[test]
    fn the_heaviest_blocks_come_first_and_heads_side_by_side_where_they_are_fastest() {
        let cost = |tile: usize| [3.0, 2.0, 1.0][tile];
        assert_eq!(heaviest_first(3, 2, true, cost), [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]);
        assert_eq!(heaviest_first(3, 2, false, cost), [3.0, 2.0, 1.0, 3.0, 2.0, 1.0]);
    }
}
