//! The norms of the rows of W + scale·B·A as an [`Operation`]: squares of the rows of W, a forward pass over A, and the
//! norms, against `reference` on the whole matrix in f64.
//!
//! The bounds count roundings: S and Z of the forward pass are rounded to bf16 (2⁻⁸ of them), everything else is f32
//! (2⁻²⁴ of the magnitudes a term). They are of the squares of the norms, as a root of nearly nothing has no small
//! error.

use super::device::{to_bf16, weights};
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight};
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::ops::{RowSquares, linear_forward, magnitude_norms, row_squares};
use qlora_kernels::reference::{self, LoraTerm};
use qlora_kernels::rng;
use qlora_kernels::weights::Nf4Weight;

/// `[n, k]` in NF4, or in bf16, with a low-rank term.
#[derive(Clone, Debug)]
pub struct MagnitudeNorms {
    pub n: usize,
    pub k: usize,
    pub r: usize,
    /// None: bf16
    pub nf4: Option<(Nf4Options, Layout)>,
    pub scale: f32,
    pub seed: u64,
}

pub struct Host {
    /// `[n, k]`, dequantized and rounded to bf16
    weight: Vec<f32>,
    nf4: Option<Nf4Matrix>,
    /// `[r, k]`
    a: Vec<bf16>,
    /// `[n, r]`
    b: Vec<bf16>,
}

pub struct Buffers {
    nf4: Option<Nf4Weight>,
    dense: Buffer<bf16>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    /// S of the forward pass
    s: Buffer<bf16>,
    z: Buffer<bf16>,
    squares: Buffer<f32>,
    norms: Buffer<f32>,
}

/// All of it as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub squares: Vec<u32>,
    pub norms: Vec<u32>,
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Σ |xᵢ·yᵢ|
fn magnitude(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum()
}

impl MagnitudeNorms {
    /// (squares of the norms, their largest error) of every row.
    fn expected(&self, host: &Host) -> Vec<(f64, f64)> {
        let Self { n, k, r, .. } = *self;
        let (scale, unit) = (f64::from(self.scale), |bits: i32| 2f64.powi(-bits));
        let wide = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (a, b) = (wide(&host.a), wide(&host.b));
        let w: Vec<f64> = host.weight.iter().map(|&w| w.into()).collect();
        let mut norms = vec![0.0; n];
        reference::magnitude_norms(&w, &LoraTerm { a: &a, b: &b, r, scale }, &mut norms, k);
        let rows = |of: usize| &a[of * k..][..k];
        // A·Aᵀ, and its terms' magnitudes.
        let gram: Vec<f64> = (0..r * r).map(|at| dot(rows(at / r), rows(at % r))).collect();
        let pairs: Vec<f64> = (0..r * r).map(|at| magnitude(rows(at / r), rows(at % r))).collect();
        let row = |(row, norm): (usize, &f64)| {
            let (w, b) = (&w[row * k..][..k], &b[row * r..][..r]);
            let mut error = self.square_error(w);
            for j in 0..r {
                // S is at most what its terms' magnitudes are, and so is Z.
                let s: Vec<f64> = pairs[j * r..][..r].iter().map(|pair| scale.abs() / 2.0 * pair).collect();
                let (of_w, of_s) = (magnitude(rows(j), w), magnitude(&s, b));
                let s_error = of_s * (unit(8) + (k + 2) as f64 * unit(24));
                let terms = (k + r + 4) as f64 * unit(24);
                let z_error = s_error + (of_w + of_s + s_error) * terms;
                let z = dot(rows(j), w) + scale / 2.0 * dot(b, &gram[j * r..][..r]);
                let rounded = z_error + (z.abs() + z_error) * unit(8);
                error += 2.0 * scale.abs() * b[j].abs() * (rounded + (r + 2) as f64 * unit(24) * (z.abs() + rounded));
            }
            let square = norm * norm;
            (square, error + unit(22) * (square + error))
        };
        norms.iter().enumerate().map(row).collect()
    }

    /// An f32 sum of squares: of a thread's elements, of 32 lanes, of 8 warps.
    fn square_error(&self, w: &[f64]) -> f64 {
        (self.k.div_ceil(256) + 24) as f64 * 2f64.powi(-24) * magnitude(w, w)
    }
}

impl Operation for MagnitudeNorms {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        "norms of magnitudes".into()
    }

    fn shape(&self) -> String {
        format!("{}×{}, rank {}", self.n, self.k, self.r)
    }

    fn flops(&self) -> f64 {
        2.0 * (self.r * self.n * self.k) as f64
    }

    /// The weight twice: for its squares, and in the forward pass.
    fn bytes(&self) -> f64 {
        let weight = if self.nf4.is_some() { 0.53 } else { 2.0 };
        2.0 * weight * (self.n * self.k) as f64 + (2 * self.r * (self.n + self.k)) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 21);
        let plain = weights(self.n * self.k, stream.next_u32().into());
        let nf4 = self.nf4.map(|(options, _)| Nf4Matrix::quantize(&plain, self.n, self.k, &options).unwrap());
        let rounded = nf4.as_ref().map_or_else(|| to_bf16(&plain), Nf4Matrix::dequantize_bf16);
        let mut numbers = |len: usize| to_bf16(&(0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect::<Vec<_>>());
        let (a, b) = (numbers(self.r * self.k), numbers(self.n * self.r));
        Host { weight: rounded.iter().map(|w| w.to_f32()).collect(), nf4, a, b }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let layout = self.nf4.map_or(Layout::RowMajor, |(_, layout)| layout);
        let nf4 = host.nf4.as_ref().map(|matrix| Nf4Weight::upload(device, matrix, layout)).transpose()?;
        let dense = if nf4.is_none() { to_bf16(&host.weight) } else { Vec::new() };
        Ok(Buffers {
            dense: device.upload(&dense)?,
            nf4,
            a: device.upload(&host.a)?,
            b: device.upload(&host.b)?,
            s: device.upload(&vec![bf16::NAN; self.r * self.r.next_multiple_of(8)])?,
            z: device.upload(&vec![bf16::NAN; self.r * self.n])?,
            squares: device.upload(&vec![f32::NAN; self.n])?,
            norms: device.upload(&vec![f32::NAN; self.n])?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { nf4, dense, a, b, s, z, squares, norms } = buffers;
        let Self { n, k, r, scale, .. } = *self;
        let weight = match nf4 {
            Some(nf4) => Weight::Nf4(nf4.view()),
            None => Weight::Dense(dense.view()),
        };
        row_squares(&weight, k, squares.view_mut(), stream)?;
        let lora = Lora { r, scale: scale / 2.0, a: a.view(), b: b.view(), adapters: None };
        let input = Input { m: r, k, x: a.view(), ldx: k, s: None, dropout: None };
        let mut segments = [Segment { n, weight, lora: Some(lora), bias: None, y: z.view_mut(), ldy: n }];
        linear_forward(&input, &mut segments, s.view_mut(), stream)?;
        let rows = RowSquares { r, scale, squares: squares.view(), z: z.view(), b: b.view() };
        magnitude_norms(&rows, norms.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let bits = |buffer| Ok(device.download(buffer)?.into_iter().map(f32::to_bits).collect());
        Ok(Output { squares: bits(&buffers.squares)?, norms: bits(&buffers.norms)? })
    }

    fn check(&self, host: &Host, output: &Output, _: usize) -> std::result::Result<(), String> {
        for (row, &bits) in output.squares.iter().enumerate() {
            let w: Vec<f64> = host.weight[row * self.k..][..self.k].iter().map(|&w| w.into()).collect();
            let (found, expected, bound) = (f64::from(f32::from_bits(bits)), magnitude(&w, &w), self.square_error(&w));
            let right = (found - expected).abs() <= bound;
            if !right {
                return Err(format!("squares of row {row}: found {found}, expected {expected}, bound {bound}"));
            }
        }
        for (row, (&bits, (expected, bound))) in output.norms.iter().zip(self.expected(host)).enumerate() {
            let found = f64::from(f32::from_bits(bits)).powi(2);
            let right = (found - expected).abs() <= bound;
            if !right {
                return Err(format!("norm of row {row}: its square is {found}, expected {expected}, bound {bound}"));
            }
        }
        Ok(())
    }
}
