//! The fused linear layer as an [`Operation`], against a plain f64 product of the same bf16 inputs and dequantized
//! weights.

use super::device::{to_bf16, weights};
use super::operation::Operation;
use super::values::{chosen, integers, random_codes};
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::ops::linear::{Adapters, Input, Lora, Path, Segment, Weight, lora_columns};
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::ops::{linear_forward, lora_down};
use qlora_kernels::rng;
use qlora_kernels::weights::Nf4Weight;

/// One segment.
#[derive(Clone, Debug)]
pub struct Part {
    pub n: usize,
    pub r: usize,
    pub bias: bool,
    /// Columns of y past n, which must stay as they are.
    pub pad: usize,
}

/// The kind of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Blocks that differ in scale, quantized.
    Ragged,
    /// Codes 0, 7 and 15, absmax a power of two, small integers elsewhere: every product and sum is exact.
    Exact,
    /// Random codes under random scales: made quickly, for large shapes.
    RandomCodes,
}

#[derive(Clone, Debug)]
pub struct Linear {
    pub m: usize,
    pub k: usize,
    pub pad_x: usize,
    pub block_size: usize,
    /// bf16 weights.
    pub dense: bool,
    pub transposed: bool,
    pub double_quant: bool,
    pub values: Values,
    /// S comes from `lora_down`; otherwise the forward function computes it.
    pub given_s: bool,
    /// Several adapters, of which every token takes one or none; 0: one, without an index.
    pub adapters: usize,
    pub parts: Vec<Part>,
    pub seed: u64,
}

pub struct HostPart {
    /// `[n, k]`, the weights as the kernels multiply with them: dequantized and rounded to bf16
    pub weight: Vec<f32>,
    pub nf4: Option<Nf4Matrix>,
    /// `[adapters, r, k]`
    pub a: Vec<bf16>,
    /// `[adapters, n, r]`
    pub b: Vec<bf16>,
    pub bias: Vec<bf16>,
    /// `[adapters]`, 1 without an index
    pub scales: Vec<f32>,
}

pub struct Host {
    /// [m, k + pad_x]
    pub x: Vec<bf16>,
    /// `[m]`, -1 for none; empty without adapters
    pub index: Vec<i32>,
    pub parts: Vec<HostPart>,
}

pub struct Buffers {
    x: Buffer<bf16>,
    index: Buffer<i32>,
    s: Buffer<bf16>,
    none: Buffer<bf16>,
    parts: Vec<PartBuffers>,
}

struct PartBuffers {
    nf4: Option<Nf4Weight>,
    dense: Option<Buffer<bf16>>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    bias: Buffer<bf16>,
    y: Buffer<bf16>,
    scales: Buffer<f32>,
    scale: f32,
}

/// S, [m, columns], and every segment's y, [m, n + pad]; bits, so that a NaN equals itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub s: Vec<u16>,
    pub y: Vec<Vec<u16>>,
}

pub const SENTINEL: bf16 = bf16::from_bits(0x4bcd);

impl Linear {
    /// NF4 weights of ragged values in blocks of 64, doubly quantized, one adapter, and rows without padding.
    pub fn new(m: usize, k: usize, parts: Vec<Part>) -> Self {
        Self {
            m,
            k,
            pad_x: 0,
            block_size: 64,
            dense: false,
            transposed: true,
            double_quant: true,
            values: Values::Ragged,
            given_s: false,
            adapters: 0,
            parts,
            seed: 5,
        }
    }

    pub fn exact(&self) -> bool {
        self.values == Values::Exact
    }

    pub fn numbers(&self, len: usize, stream: &mut rng::RngStream) -> Vec<bf16> {
        let values = if self.exact() {
            integers(len, 2, stream)
        } else {
            (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect()
        };
        to_bf16(&values)
    }

    pub fn columns(&self) -> usize {
        self.parts.iter().map(|part| part.r.next_multiple_of(8)).sum()
    }

    fn plain_weight(&self, len: usize, stream: &mut rng::RngStream) -> Vec<f32> {
        if !self.exact() {
            return weights(len, stream.next_u32().into());
        }
        // Every block has its own power of two, and its largest magnitude, so that this is its absmax.
        let mut scale = 1.0;
        let mut next = |i: usize| {
            if i.is_multiple_of(self.block_size) {
                scale = [0.5, 1.0, 2.0][stream.below(3) as usize];
                return scale;
            }
            (stream.below(3) as f32 - 1.0) * scale
        };
        (0..len).map(&mut next).collect()
    }

    pub fn part(&self, part: &Part, stream: &mut rng::RngStream) -> HostPart {
        let nf4 = if self.values == Values::RandomCodes {
            random_codes(part.n, self.k, stream)
        } else {
            let double_quant = self.double_quant && !self.exact();
            let options = Nf4Options { block_size: self.block_size, double_quant };
            Nf4Matrix::quantize(&self.plain_weight(part.n * self.k, stream), part.n, self.k, &options).unwrap()
        };
        let weight = nf4.dequantize_bf16().iter().map(|w| w.to_f32()).collect();
        let count = self.adapters.max(1);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for adapter in 0..count {
            // Ranks differ: the missing rows of an adapter are zero.
            let r = if adapter == 0 { part.r } else { 1 + stream.below(part.r.max(1) as u32) as usize };
            a.extend(self.a(r.min(part.r), part.r, stream));
            let mut rows = self.numbers(part.n * part.r, stream);
            rows.iter_mut().enumerate().filter(|(i, _)| i % part.r >= r).for_each(|(_, b)| *b = bf16::ZERO);
            b.extend(rows);
        }
        let bias = self.numbers(part.n, stream);
        let scale = if self.exact() { 0.5 } else { 1.5 };
        let scales = (0..count).map(|adapter| if adapter % 2 == 0 { scale } else { 2.0 * scale }).collect();
        HostPart { weight, nf4: (!self.dense).then_some(nf4), a, b, bias, scales }
    }

    /// `[r, k]`, rows from `rank` on zero.
    fn a(&self, rank: usize, r: usize, stream: &mut rng::RngStream) -> Vec<bf16> {
        let mut a = vec![bf16::ZERO; r * self.k];
        if self.exact() {
            // One feature a rank, so that S stays a small integer.
            (0..rank).for_each(|row| a[row * self.k + stream.below(self.k as u32) as usize] = bf16::from_f32(2.0));
        } else {
            a[..rank * self.k].copy_from_slice(&self.numbers(rank * self.k, stream));
        }
        a
    }

    /// Runs of tokens of one adapter, some of none and some of one that does not exist.
    pub fn index(&self, stream: &mut rng::RngStream) -> Vec<i32> {
        let mut adapter = -1;
        let mut next = |_| {
            if stream.below(4) == 0 {
                adapter = stream.below(self.adapters as u32 + 2) as i32 - 1;
            }
            adapter
        };
        if self.adapters == 0 { Vec::new() } else { (0..self.m).map(&mut next).collect() }
    }

    /// The adapter of a token, none for an index that is out of range.
    pub fn adapter(&self, index: &[i32], token: usize) -> Option<usize> {
        match index.get(token) {
            None => Some(0),
            Some(&adapter) => usize::try_from(adapter).ok().filter(|&adapter| adapter < self.adapters),
        }
    }

    pub fn with<T>(
        &self,
        buffers: &mut Buffers,
        call: impl FnOnce(Input<'_>, &mut [Segment<'_>], &mut Buffer<bf16>, &mut Buffer<bf16>) -> Result<T>,
    ) -> Result<T> {
        let mut segments: Vec<Segment> = Vec::new();
        let index = &buffers.index;
        for (part, buffers) in self.parts.iter().zip(&mut buffers.parts) {
            let weight = match (&buffers.nf4, &buffers.dense) {
                (Some(nf4), _) => Weight::Nf4(nf4.view()),
                (None, dense) => Weight::Dense(dense.as_ref().expect("one of the two").view()),
            };
            let (a, b) = (buffers.a.view(), buffers.b.view());
            let (count, scales) = (self.adapters, Some(buffers.scales.view()));
            let adapters = (count > 0).then_some(Adapters { count, index: index.view(), scales });
            let lora = (part.r > 0).then_some(Lora { r: part.r, scale: buffers.scale, a, b, adapters });
            let bias = part.bias.then(|| buffers.bias.view());
            segments.push(Segment { n: part.n, weight, lora, bias, y: buffers.y.view_mut(), ldy: part.n + part.pad });
        }
        let input =
            Input { m: self.m, k: self.k, x: buffers.x.view(), ldx: self.k + self.pad_x, s: None, dropout: None };
        call(input, &mut segments, &mut buffers.s, &mut buffers.none)
    }

    /// The kernel that it takes.
    pub fn path(&self, buffers: &mut Buffers) -> Result<Path> {
        self.with(buffers, |input, segments, _, _| linear_forward::path(&input, segments))
    }

    /// |found − expected| may be 2⁻⁸ of the value for its own rounding, and an f32 sum's error over the magnitudes that
    /// it adds. A sum
    /// that is no number, or infinite, must be found so.
    pub fn compare(
        &self,
        found: u16,
        (sum, magnitude): (f64, f64),
        terms: usize,
        what: impl Fn() -> String,
    ) -> std::result::Result<(), String> {
        let found = f64::from(bf16::from_bits(found).to_f32());
        let bound = 2f64.powi(-8) * sum.abs() + terms as f64 * 2f64.powi(-24) * magnitude + 1e-38;
        let right = match sum {
            sum if sum.is_nan() => found.is_nan(),
            sum if sum.is_infinite() => found == sum,
            sum if self.exact() => found == f64::from(bf16::from_f64(sum).to_f32()),
            sum => (found - sum).abs() <= bound,
        };
        if right { Ok(()) } else { Err(format!("{}: found {found}, expected {sum}, bound {bound}", what())) }
    }
}

/// Σ xᵢ·wᵢ and Σ |xᵢ·wᵢ|.
fn dot(x: &[bf16], w: impl Iterator<Item = f32>) -> (f64, f64) {
    x.iter().zip(w).fold((0.0, 0.0), |(sum, magnitude), (x, w)| {
        let product = f64::from(x.to_f32()) * f64::from(w);
        (sum + product, magnitude + product.abs())
    })
}

/// Σ xᵢ·wᵢ and Σ |xᵢ·wᵢ| for each row of weights, four rows at a time: their sums do not wait for each other.
fn dots(x: &[bf16], rows: &[&[f32]]) -> Vec<(f64, f64)> {
    let x: Vec<f64> = x.iter().map(|x| f64::from(x.to_f32())).collect();
    let mut sums = vec![(0.0, 0.0); rows.len()];
    for (sums, rows) in sums.chunks_mut(4).zip(rows.chunks(4)) {
        // The last row again where there are fewer.
        let rows: [&[f32]; 4] = std::array::from_fn(|i| &rows[i.min(rows.len() - 1)][..x.len()]);
        let mut four = [(0.0, 0.0); 4];
        for (i, x) in x.iter().enumerate() {
            for ((sum, magnitude), row) in four.iter_mut().zip(rows) {
                let product = x * f64::from(row[i]);
                *sum += product;
                *magnitude += product.abs();
            }
        }
        sums.copy_from_slice(&four[..sums.len()]);
    }
    sums
}

impl Operation for Linear {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        let lora = if self.parts.iter().any(|part| part.r > 0) { " + LoRA" } else { "" };
        format!("forward {}{lora}", if self.dense { "bf16" } else { "NF4" })
    }

    fn shape(&self) -> String {
        let widths: Vec<String> = self.parts.iter().map(|part| part.n.to_string()).collect();
        format!("{}×{}", widths.join("+"), self.k)
    }

    fn flops(&self) -> f64 {
        let of = |part: &Part| part.n * self.k + part.r * (part.n + self.k);
        2.0 * self.m as f64 * self.parts.iter().map(of).sum::<usize>() as f64
    }

    fn bytes(&self) -> f64 {
        let of = |part: &Part| {
            let count = part.n * self.k;
            let absmax = if self.double_quant { count / self.block_size } else { 4 * count / self.block_size };
            let weight = if self.dense { 2 * count } else { count / 2 + absmax };
            weight + 2 * part.r * (part.n + self.k) + 2 * self.m * part.n
        };
        (self.parts.iter().map(of).sum::<usize>() + 2 * self.m * self.k) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 2);
        let x = self.numbers(self.m * (self.k + self.pad_x), &mut stream);
        let index = self.index(&mut stream);
        Host { x, index, parts: self.parts.iter().map(|part| self.part(part, &mut stream)).collect() }
    }

    fn upload(&self, device: &Device, inputs: &Host) -> Result<Buffers> {
        let transposed = self.transposed && self.k.is_multiple_of(self.block_size);
        let layout = if transposed { Layout::Transposed } else { Layout::RowMajor };
        let of = |(part, host): (&Part, &HostPart)| {
            Ok(PartBuffers {
                nf4: host.nf4.as_ref().map(|matrix| Nf4Weight::upload(device, matrix, layout).unwrap()),
                dense: if self.dense { Some(device.upload(&to_bf16(&host.weight))?) } else { None },
                a: device.upload(&host.a)?,
                b: device.upload(&host.b)?,
                bias: device.upload(&host.bias)?,
                y: device.upload(&vec![SENTINEL; self.m * (part.n + part.pad)])?,
                scales: device.upload(&host.scales)?,
                scale: host.scales[0],
            })
        };
        Ok(Buffers {
            x: device.upload(&inputs.x)?,
            index: device.upload(&inputs.index)?,
            s: device.upload(&vec![SENTINEL; self.m * self.columns()])?,
            none: device.upload(&[])?,
            parts: self.parts.iter().zip(&inputs.parts).map(of).collect::<Result<_>>()?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        self.with(buffers, |input, segments, s, none| {
            assert_eq!(lora_columns(segments), self.columns());
            if self.given_s {
                // Buffers may be of a larger M.
                let len = self.m * self.columns();
                lora_down(&input, segments, s.view_mut().first(len), stream)?;
                let input = Input { s: Some(s.view().first(len).into()), ..input };
                linear_forward(&input, segments, none.view_mut(), stream)
            } else {
                linear_forward(&input, segments, s.view_mut(), stream)
            }
        })
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let bits = |buffer| Ok(device.download(buffer)?.into_iter().map(bf16::to_bits).collect());
        Ok(Output { s: bits(&buffers.s)?, y: buffers.parts.iter().map(|part| bits(&part.y)).collect::<Result<_>>()? })
    }

    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        let (columns, ldx) = (self.columns(), self.k + self.pad_x);
        let mut stream = rng::RngStream::new(self.seed, 3);
        let mut column = 0;
        for (part, (host, y)) in self.parts.iter().zip(inputs.parts.iter().zip(&output.y)) {
            let tokens = chosen(self.m, if most == usize::MAX { most } else { 16 }, &mut stream);
            let features = chosen(part.n, most / tokens.len().max(1), &mut stream);
            let rows: Vec<&[f32]> = features.iter().map(|n| &host.weight[n * self.k..][..self.k]).collect();
            for token in tokens {
                let x = &inputs.x[token * ldx..][..self.k];
                let adapter = self.adapter(&inputs.index, token);
                let s = &output.s[token * columns + column..][..part.r.next_multiple_of(8)];
                for (j, &found) in s.iter().enumerate() {
                    let Some(adapter) = adapter.filter(|_| j < part.r) else {
                        if found != 0 {
                            return Err(format!("padding of S at token {token}, column {j} is {found:#x}"));
                        }
                        continue;
                    };
                    let a = &host.a[(adapter * part.r + j) * self.k..][..self.k];
                    let (sum, magnitude) = dot(x, a.iter().map(|a| a.to_f32()));
                    let scale = f64::from(host.scales[adapter]);
                    self.compare(found, (scale * sum, scale * magnitude), self.k + 1, || format!("S[{token}, {j}]"))?;
                }
                for (&n, (mut sum, mut magnitude)) in features.iter().zip(dots(x, &rows)) {
                    // S as it was rounded: the following products are exact in it.
                    let mut add = |term: f64| (sum, magnitude) = (sum + term, magnitude + term.abs());
                    let b = adapter.map_or(&[][..], |adapter| &host.b[(adapter * part.n + n) * part.r..][..part.r]);
                    for (s, b) in s.iter().zip(b) {
                        add(f64::from(bf16::from_bits(*s).to_f32()) * f64::from(b.to_f32()));
                    }
                    if part.bias {
                        add(f64::from(host.bias[n].to_f32()));
                    }
                    let found = y[token * (part.n + part.pad) + n];
                    self.compare(found, (sum, magnitude), self.k + part.r + 1, || format!("Y[{token}, {n}]"))?;
                }
                let rest = &y[token * (part.n + part.pad) + part.n..][..part.pad];
                if rest.iter().any(|&y| y != SENTINEL.to_bits()) {
                    return Err(format!("columns past N of row {token} were written"));
                }
            }
            column += part.r.next_multiple_of(8);
        }
        Ok(())
    }
}
