//! Kernels on grids of real size: the linear layers and the attention of Llama 3 8B and 70B. The emulation runs the
//! first block, the last, and one by chance; their outputs are found, have to be whole tiles, and are compared with the
//! definition. Outputs start as zeros that no page of memory holds yet, and a sum of this many products is never 0.

use half::bf16;
use lab::device::{Tally, device, set_schedule};
use qlora_kernels::device::{View, ViewMut, emulation};
use qlora_kernels::nf4::{CODE, dynamic_map_signed};
use qlora_kernels::ops::attention::{Attention, attention};
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::linear_dx::{InputGradient, linear_dx};
use qlora_kernels::ops::linear_forward::linear_forward;
use qlora_kernels::ops::{lora_down, nf4};
use qlora_kernels::shape::AttentionShape;

/// K, and the rows of the segments, of the linear groups of a layer: q‖k‖v, o, gate‖up, down.
type Group = (usize, &'static [usize]);
const LLAMA_8B: [Group; 4] = [(4096, &[4096, 1024, 1024]), (4096, &[4096]), (4096, &[14336, 14336]), (14336, &[4096])];
const LLAMA_70B: [Group; 4] = [(8192, &[8192, 1024, 1024]), (8192, &[8192]), (8192, &[28672, 28672]), (28672, &[8192])];

const RANK: usize = 16;
/// Blocks of a launch that run.
const BLOCKS: u64 = 3;

/// Numbers made quickly (xorshift64*): a matrix of a real layer has hundreds of millions.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Magnitudes from 1/4 to 1.
    fn bf16(&mut self, len: usize) -> Vec<bf16> {
        let of = |bits: u16| bf16::from_bits((bits & 0x8000) | (0x3e80 + (bits & 0xff)));
        let mut numbers = Vec::with_capacity(len + 4);
        while numbers.len() < len {
            let word = self.next();
            numbers.extend([
                of(word as u16),
                of((word >> 16) as u16),
                of((word >> 32) as u16),
                of((word >> 48) as u16),
            ]);
        }
        numbers.truncate(len);
        numbers
    }
}

fn view<T: qlora_kernels::device::Element>(data: &[T]) -> View<'_, T> {
    // SAFETY: the emulation's memory is the host's, and the slice outlives the view.
    unsafe { View::from_raw_parts(data.as_ptr(), data.len()) }
}

/// Zeroed memory for outputs, of which only what is written takes room.
struct Zeros {
    bits: Vec<u16>,
}

impl Zeros {
    fn new(len: usize) -> Self {
        Self { bits: vec![0; len] }
    }

    /// From element `first` on.
    fn view_mut(&mut self, first: usize) -> ViewMut<'_, bf16> {
        let part = &mut self.bits[first..];
        // SAFETY: as in `view`; bf16 is its 16 bits, and a segment writes its own columns alone.
        unsafe { ViewMut::from_raw_parts(part.as_mut_ptr().cast(), part.len()) }
    }

    fn at(&self, index: usize) -> f64 {
        f64::from(bf16::from_bits(self.bits[index]).to_f32())
    }
}

fn nothing<'a>() -> ViewMut<'a, bf16> {
    // SAFETY: no element.
    unsafe { ViewMut::from_raw_parts(std::ptr::NonNull::dangling().as_ptr(), 0) }
}

/// An NF4 weight, or the first rows of one.
struct Nf4 {
    codes: Vec<u8>,
    absmax: Vec<u8>,
    nested: Vec<f32>,
    offset: [f32; 1],
}

impl Nf4 {
    fn new(elements: usize, numbers: &mut Numbers) -> Self {
        let nested = (0..elements / 64 / 256 + 1).map(|_| 0.01 + 0.001 * numbers.below(10) as f32).collect();
        Self { codes: numbers.bytes(elements / 2), absmax: numbers.bytes(elements / 64), nested, offset: [0.02] }
    }

    fn weight(&self, n: usize, k: usize) -> Weight<'_> {
        let blocks = n * k / 64;
        let absmax = nf4::Absmax::DoubleQuantized {
            codes: view(&self.absmax[..blocks]),
            nested_absmax: view(&self.nested[..blocks.div_ceil(256)]),
            nested_map: view(dynamic_map_signed()),
            offset: view(&self.offset),
        };
        let codes = view(&self.codes[..n * k / 2]);
        Weight::Nf4(nf4::Weight { n, k, block_size: 64, layout: nf4::Layout::Transposed, codes, absmax })
    }

    /// An element as the kernels multiply with it.
    fn at(&self, (n, k): (usize, usize), row: usize, column: usize) -> f64 {
        let byte = self.codes[(row * k + column) / 2];
        let code = CODE[usize::from(if column.is_multiple_of(2) { byte >> 4 } else { byte & 15 })];
        let block = row * (k / 64) + column / 64;
        let absmax_code = usize::from(self.absmax[column / 64 * n + row]);
        let absmax = dynamic_map_signed()[absmax_code] * self.nested[block / 256] + self.offset[0];
        f64::from(bf16::from_f32(code * absmax).to_f32())
    }
}

/// A sum, and the sum of its terms' magnitudes.
#[derive(Default)]
struct Sum {
    value: f64,
    magnitude: f64,
    terms: usize,
}

impl Sum {
    fn add(&mut self, a: f64, b: f64) {
        self.value += a * b;
        self.magnitude += (a * b).abs();
        self.terms += 1;
    }

    /// One rounding to bf16, and the error of an f32 sum.
    fn check(&self, found: f64, what: &str) {
        let bound = 2f64.powi(-8) * self.value.abs() + self.terms as f64 * 2f64.powi(-24) * self.magnitude;
        assert!((found - self.value).abs() <= bound, "{what}: found {found}, expected {}, bound {bound}", self.value);
    }
}

/// Runs `work`, with only some blocks of each launch after the first `whole`. Returns the number of blocks that ran.
fn sampled(whole: u64, work: impl FnOnce()) -> u64 {
    let before = emulation::blocks();
    emulation::sample(emulation::launches() + 1 + whole, BLOCKS);
    work();
    emulation::sample(u64::MAX, 0);
    emulation::blocks() - before
}

/// Pieces of `rows` by `columns` of a matrix of which something was written: each is written whole.
fn written(matrix: &Zeros, (m, width): (usize, usize), (rows, columns): (usize, usize)) -> Vec<(usize, usize)> {
    let mut pieces = Vec::new();
    for row in (0..m).step_by(rows) {
        for column in (0..width).step_by(columns) {
            if matrix.bits[row * width + column] == 0 {
                continue;
            }
            for row in row..(row + rows).min(m) {
                let piece = &matrix.bits[row * width + column..][..columns.min(width - column)];
                assert!(piece.iter().all(|&bits| bits != 0), "row {row}, from column {column} on: a part is missing");
            }
            pieces.push((row, column));
        }
    }
    pieces
}

/// The first block and the last have opposite corners of the output, in whatever order the others lie.
fn assert_corners(pieces: &[(usize, usize)], (m, width): (usize, usize), (rows, columns): (usize, usize)) {
    let last = ((m - 1) / rows * rows, (width - 1) / columns * columns);
    assert!(pieces.contains(&(0, 0)) && pieces.contains(&last), "(0, 0) or {last:?} is not among {pieces:?}");
}

/// Elements of a piece to look at: its corners and some others.
fn elements((row, column): (usize, usize), rows: usize, columns: usize, numbers: &mut Numbers) -> Vec<(usize, usize)> {
    let mut elements = vec![(row, column), (row + rows - 1, column + columns - 1)];
    elements.extend((0..2).map(|_| (row + numbers.below(rows), column + numbers.below(columns))));
    elements
}

fn segment_of(n: &[usize], mut column: usize) -> (usize, usize) {
    let mut segment = 0;
    while column >= n[segment] {
        column -= n[segment];
        segment += 1;
    }
    (segment, column)
}

/// All of a group's weights begin with the same bytes, and its outputs lie side by side, as the trainer has them.
fn forward(m: usize, (k, n): Group, seed: u64) {
    let device = device();
    let mut numbers = Numbers(seed);
    let width: usize = n.iter().sum();
    let weight = Nf4::new(n.iter().max().unwrap() * k, &mut numbers);
    let (x, s) = (numbers.bf16(m * k), numbers.bf16(m * RANK * n.len()));
    let (a, b) = (numbers.bf16(RANK * k), numbers.bf16(n.iter().max().unwrap() * RANK));
    let mut y = Zeros::new(m * width);
    set_schedule(seed);
    let blocks = sampled(0, || {
        let mut first = 0;
        let mut segments = Vec::new();
        for &n in n {
            let lora = Lora { r: RANK, scale: 1.0, a: view(&a), b: view(&b[..n * RANK]), adapters: None };
            let part = y.view_mut(first);
            // SAFETY: segments write columns of their own.
            let part = unsafe { ViewMut::from_raw_parts(part.address(), part.len()) };
            segments.push(Segment {
                n,
                weight: weight.weight(n, k),
                lora: Some(lora),
                bias: None,
                y: part,
                ldy: width,
            });
            first += n;
        }
        let input = Input { m, k, x: view(&x), ldx: k, s: Some(view(&s).into()), dropout: None };
        linear_forward(&input, &mut segments, nothing(), device.stream()).unwrap();
    });
    assert_eq!(blocks, BLOCKS);
    // A quarter of a tile; of a tile at the end of M, which is cut off at 64, there are two.
    let (rows, columns) = if m <= 16 { (m, 8) } else { (64, 128) };
    let pieces = written(&y, (m, width), (rows, columns));
    assert_corners(&pieces, (m, width), (rows, columns));
    let whole = 4 * BLOCKS as usize;
    assert!(pieces.len() == whole || m % 128 == 64 && (whole / 2..whole).contains(&pieces.len()), "{pieces:?}");
    for piece in pieces {
        for (token, column) in elements(piece, rows.min(m - piece.0), columns, &mut numbers) {
            let (segment, row) = segment_of(n, column);
            let mut sum = Sum::default();
            for (column, x) in x[token * k..][..k].iter().enumerate() {
                sum.add(x.to_f64(), weight.at((n[segment], k), row, column));
            }
            let s = &s[(token * n.len() + segment) * RANK..][..RANK];
            s.iter().zip(&b[row * RANK..]).for_each(|(s, b)| sum.add(s.to_f64(), b.to_f64()));
            sum.check(y.at(token * width + column), &format!("K {k}, Y[{token}, {column}]"));
        }
    }
}

fn dx(m: usize, (k, n): Group, seed: u64) {
    let device = device();
    let mut numbers = Numbers(seed);
    let width: usize = n.iter().sum();
    let weight = Nf4::new(n.iter().max().unwrap() * k, &mut numbers);
    let (dy, t) = (numbers.bf16(m * width), numbers.bf16(m * RANK * n.len()));
    let (a, b) = (numbers.bf16(RANK * k), numbers.bf16(n.iter().max().unwrap() * RANK));
    let mut dx = Zeros::new(m * k);
    set_schedule(seed);
    let blocks = sampled(0, || {
        let mut first = 0;
        let mut segments = Vec::new();
        for &n in n {
            let lora = Lora { r: RANK, scale: 1.0, a: view(&a), b: view(&b[..n * RANK]), adapters: None };
            let dy = view(&dy[first..]);
            segments.push(SegmentBackward { n, weight: weight.weight(n, k), lora: Some(lora), dy, lddy: width });
            first += n;
        }
        let backward = Backward { m, k, t: Some(view(&t).into()), dropout: None };
        let gradient = InputGradient { dx: dx.view_mut(0), lddx: k, accumulate: false };
        linear_dx(&backward, &segments, gradient, nothing(), device.stream()).unwrap();
    });
    assert_eq!(blocks, BLOCKS);
    let pieces = written(&dx, (m, k), (64, 128));
    assert_corners(&pieces, (m, k), (64, 128));
    assert_eq!(pieces.len(), 4 * BLOCKS as usize);
    for piece in pieces {
        for (token, column) in elements(piece, 64, 128, &mut numbers) {
            let (mut sum, mut first, segments) = (Sum::default(), 0, n.len());
            for (segment, &n) in n.iter().enumerate() {
                for row in 0..n {
                    sum.add(dy[token * width + first + row].to_f64(), weight.at((n, k), row, column));
                }
                first += n;
                let t = &t[(token * segments + segment) * RANK..][..RANK];
                t.iter().zip(a[column..].iter().step_by(k)).for_each(|(t, a)| sum.add(t.to_f64(), a.to_f64()));
            }
            sum.check(dx.at(token * k + column), &format!("K {k}, dX[{token}, {column}]"));
        }
    }
}

fn layers(work: impl Fn(Group, u64), tally: &Tally) {
    for (seed, group) in LLAMA_8B.into_iter().chain(LLAMA_70B).enumerate() {
        work(group, seed as u64 + 1);
        tally.case();
    }
}

#[test]
fn forward_of_every_linear_layer_of_llama_8b_and_70b() {
    let tally = Tally::new("forward, real layers", 1);
    layers(|group, seed| forward(2048, group, seed), &tally);
}

#[test]
fn forward_of_few_tokens_of_every_linear_layer() {
    let tally = Tally::new("forward, real layers, few tokens", 1);
    layers(|group, seed| forward(1 + 15 * (seed as usize % 2), group, seed), &tally);
}

#[test]
fn dx_of_every_linear_layer_of_llama_8b_and_70b() {
    let tally = Tally::new("dX, real layers", 1);
    layers(|group, seed| dx(2048, group, seed), &tally);
}

/// The output has more than 2^31 elements.
#[test]
fn forward_of_a_long_batch_reaches_past_32_bits() {
    let tally = Tally::new("forward, 40,000 tokens", 1);
    forward(40_000, LLAMA_70B[2], 11);
    tally.case();
}

/// S of segments that each have an A of their own.
fn s(m: usize, k: usize, segments: usize, seed: u64) {
    let device = device();
    let (mut numbers, columns) = (Numbers(seed), RANK * segments);
    let (x, a) = (numbers.bf16(m * k), numbers.bf16(columns * k));
    let mut s = Zeros::new(m * columns);
    set_schedule(seed);
    let blocks = sampled(0, || {
        // Aligned as an output has to be.
        let address = s.view_mut(0).address();
        let segment = |of: usize| {
            let a_of = &a[of * RANK * k..][..RANK * k];
            let lora = Lora { r: RANK, scale: 0.5, a: view(a_of), b: view(&a[..64 * RANK]), adapters: None };
            // SAFETY: nothing is written to it, and the weight is not read.
            let y = unsafe { ViewMut::from_raw_parts(address, 64) };
            Segment { n: 64, weight: Weight::Dense(view(&x[..64 * k])), lora: Some(lora), bias: None, y, ldy: 64 }
        };
        let mut segments: Vec<_> = (0..segments).map(segment).collect();
        let input = Input { m, k, x: view(&x), ldx: k, s: None, dropout: None };
        // SAFETY: as in `Zeros`.
        let s = unsafe { ViewMut::from_raw_parts(address, m * columns) };
        lora_down(&input, &mut segments, s, device.stream()).unwrap();
    });
    assert_eq!(blocks, BLOCKS);
    // A block has all columns of 16 tokens.
    let pieces = written(&s, (m, columns), (16, columns));
    assert_corners(&pieces, (m, columns), (16, columns));
    assert_eq!(pieces.len(), BLOCKS as usize);
    for piece in pieces {
        for (token, column) in elements(piece, 16, columns, &mut numbers) {
            let mut sum = Sum::default();
            for (x, a) in x[token * k..][..k].iter().zip(&a[column * k..]) {
                sum.add(0.5 * x.to_f64(), a.to_f64());
            }
            sum.check(s.at(token * columns + column), &format!("K {k}, S[{token}, {column}]"));
        }
    }
}

/// S reads X to its last token and feature.
#[test]
fn s_of_long_batches() {
    let tally = Tally::new("S, real layers", 1);
    for (m, k, seed) in [(16_384, 4096, 1), (16_384, 8192, 2), (2048, 28672, 3)] {
        s(m, k, 1, seed);
        tally.case();
    }
}

#[test]
fn s_of_every_group_of_llama_8b_and_70b() {
    let tally = Tally::new("S, real groups", 1);
    layers(|(k, n), seed| s(2048, k, n.len(), seed), &tally);
}

/// 16,384 tokens of the heads of both models.
#[test]
fn attention_of_a_long_document() {
    let tally = Tally::new("attention, 16,384 tokens", 1);
    let (device, m, head_dim) = (device(), 16_384usize, 128usize);
    for heads in [32usize, 64] {
        let shape = AttentionShape { heads, kv_heads: 8, head_dim, soft_cap: None };
        let mut numbers = Numbers(heads as u64);
        let qkv = numbers.bf16(m * shape.qkv());
        let boundaries = [0, m as u32];
        let (mut out, mut lse) = (Zeros::new(m * shape.out()), vec![0f32; m * heads]);
        set_schedule(heads as u64);
        let blocks = sampled(0, || {
            let input = Attention { shape, m, qkv: view(&qkv), boundaries: view(&boundaries), window: None };
            // SAFETY: the emulation's memory is the host's.
            let lse = unsafe { ViewMut::from_raw_parts(lse.as_mut_ptr(), lse.len()) };
            attention(&input, out.view_mut(0), lse, device.stream()).unwrap();
        });
        assert_eq!(blocks, BLOCKS);
        let pieces = written(&out, (m, shape.out()), (128, head_dim));
        assert_eq!(pieces.len(), BLOCKS as usize);
        assert!(pieces.contains(&(m - 128, 0)), "the last queries come first: {pieces:?}");
        assert!(pieces.contains(&(0, shape.out() - head_dim)), "the first queries come last: {pieces:?}");
        for (first, column) in pieces {
            let head = column / head_dim;
            for query in [first, first + 127, first + numbers.below(128)] {
                let at = |token: usize, column: usize| &qkv[token * shape.qkv() + column..][..head_dim];
                let score = |key: usize| -> f64 {
                    let pairs = at(query, head * head_dim).iter().zip(at(key, shape.key_column(head)));
                    pairs.map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>() * shape.scale()
                };
                let scores: Vec<f64> = (0..=query).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let expected = (largest + total.ln()) as f32;
                let found = lse[query * heads + head];
                assert!((found - expected).abs() < 1e-4, "lse of {query}, head {head}: {found}, expected {expected}");
                for column in 0..head_dim {
                    let (mut value, mut magnitude) = (0.0, 0.0);
                    for (key, score) in scores.iter().enumerate() {
                        let term = (score - largest).exp() / total * at(key, shape.value_column(head))[column].to_f64();
                        value += term;
                        magnitude += term.abs();
                    }
                    // P is rounded to bf16, sums of it are not, and neither rounds toward one side.
                    let bound = 2f64.powi(-8) * (value.abs() + magnitude);
                    let found = out.at(query * shape.out() + head * head_dim + column);
                    assert!((found - value).abs() <= bound, "query {query}, head {head}: {found}, expected {value}");
                }
            }
        }
        tally.case();
    }
}
