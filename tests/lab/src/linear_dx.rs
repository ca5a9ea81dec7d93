//! dX of the fused linear layer as an [`Operation`], against a plain f64 sum over the same bf16 inputs and dequantized
//! weights. Parts, weights and adapters are those of the forward pass's [`Linear`].

use super::device::to_bf16;
use super::linear::{HostPart, Linear, Part, SENTINEL};
use super::operation::Operation;
use super::values::chosen;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::linear::{Adapters, Dropout, Lora, Path, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward, lora_columns};
use qlora_kernels::ops::linear_dx::InputGradient;
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::ops::{linear_dx, lora_dy_b};
use qlora_kernels::rng;
use qlora_kernels::weights::Nf4Weight;

#[derive(Clone, Debug)]
pub struct LinearDx {
    /// `pad_x` is that of dX, `pad` of a part that of its dY, `given_s` stands for T; biases play no part.
    pub linear: Linear,
    pub accumulate: bool,
    pub dropout: Option<Dropout<'static>>,
}

pub struct Host {
    /// [m, k + pad_x]: dX before the call
    pub dx: Vec<bf16>,
    /// `[m]`, -1 for none; empty without adapters
    pub index: Vec<i32>,
    pub parts: Vec<HostPart>,
    /// `[m, n + pad]` of each part; what is past n is no number
    pub dy: Vec<Vec<bf16>>,
    /// The step of dropout that is read in device memory in place of the operation's
    pub step_on_device: Option<u32>,
}

pub struct Buffers {
    dx: Buffer<bf16>,
    index: Buffer<i32>,
    t: Buffer<bf16>,
    none: Buffer<bf16>,
    step: Option<Buffer<u32>>,
    parts: Vec<PartBuffers>,
}

struct PartBuffers {
    nf4: Option<Nf4Weight>,
    dense: Option<Buffer<bf16>>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    scales: Buffer<f32>,
    dy: Buffer<bf16>,
    scale: f32,
}

/// T, [m, columns], and dX, [m, k + pad_x], in bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub t: Vec<u16>,
    pub dx: Vec<u16>,
}

/// A row of sums and of the magnitudes that they add.
pub struct Row(pub Vec<(f64, f64)>);

impl Row {
    pub fn add(&mut self, factor: bf16, row: impl Iterator<Item = f32>) {
        let factor = f64::from(factor.to_f32());
        for ((sum, magnitude), value) in self.0.iter_mut().zip(row) {
            let product = factor * f64::from(value);
            *sum += product;
            *magnitude += product.abs();
        }
    }
}

impl LinearDx {
    pub fn with<T>(
        &self,
        buffers: &mut Buffers,
        call: impl FnOnce(
            Backward<'_>,
            &[SegmentBackward<'_>],
            InputGradient<'_>,
            &mut Buffer<bf16>,
            &mut Buffer<bf16>,
        ) -> Result<T>,
    ) -> Result<T> {
        let Linear { m, k, adapters: count, .. } = self.linear;
        let Buffers { dx, index, t, none, step, parts } = buffers;
        let mut segments = Vec::new();
        for (part, buffers) in self.linear.parts.iter().zip(parts.iter()) {
            let weight = match (&buffers.nf4, &buffers.dense) {
                (Some(nf4), _) => Weight::Nf4(nf4.view()),
                (None, dense) => Weight::Dense(dense.as_ref().expect("one of the two").view()),
            };
            let scales = Some(buffers.scales.view());
            let adapters = (count > 0).then_some(Adapters { count, index: index.view(), scales });
            let (a, b) = (buffers.a.view(), buffers.b.view());
            let lora = (part.r > 0).then_some(Lora { r: part.r, scale: buffers.scale, a, b, adapters });
            segments.push(SegmentBackward { n: part.n, weight, lora, dy: buffers.dy.view(), lddy: part.n + part.pad });
        }
        let step_on_device = step.as_ref().map(Buffer::view);
        let dropout = self.dropout.map(|dropout| Dropout { step_on_device, ..dropout });
        let backward = Backward { m, k, t: None, dropout };
        let gradient = InputGradient { dx: dx.view_mut(), lddx: k + self.linear.pad_x, accumulate: self.accumulate };
        call(backward, &segments, gradient, t, none)
    }

    /// The kernel that it takes.
    pub fn path(&self, buffers: &mut Buffers) -> Result<Path> {
        self.with(buffers, |backward, segments, _, _, _| linear_dx::path(&backward, segments))
    }

    pub fn check_t(&self, inputs: &Host, t: &[u16], token: usize) -> std::result::Result<(), String> {
        let mut column = 0;
        for ((part, host), dy) in self.linear.parts.iter().zip(&inputs.parts).zip(&inputs.dy) {
            let dy = &dy[token * (part.n + part.pad)..][..part.n];
            for j in 0..part.r.next_multiple_of(8) {
                let found = t[token * self.linear.columns() + column + j];
                let Some(adapter) = self.linear.adapter(&inputs.index, token).filter(|_| j < part.r) else {
                    if found != 0 {
                        return Err(format!("T of no adapter at token {token}, column {j} is {found:#x}"));
                    }
                    continue;
                };
                let b = &host.b[adapter * part.n * part.r..][..part.n * part.r];
                let mut row = Row(vec![(0.0, 0.0)]);
                dy.iter().enumerate().for_each(|(n, &dy)| row.add(dy, std::iter::once(b[n * part.r + j].to_f32())));
                let scale = f64::from(host.scales[adapter]);
                let expected = (scale * row.0[0].0, scale * row.0[0].1);
                self.linear.compare(found, expected, part.n + 1, || format!("T[{token}, {}]", column + j))?;
            }
            column += part.r.next_multiple_of(8);
        }
        Ok(())
    }

    /// Row `token` of dX in f64, from T as it was rounded: sums and the magnitudes that they add.
    fn row(&self, inputs: &Host, t: &[u16], token: usize) -> Row {
        let Linear { k, pad_x, .. } = self.linear;
        let mut row = Row(vec![(0.0, 0.0); k]);
        let mut column = 0;
        for (part, host) in self.linear.parts.iter().zip(&inputs.parts) {
            if let Some(adapter) = self.linear.adapter(&inputs.index, token) {
                for j in 0..part.r {
                    let t = bf16::from_bits(t[token * self.linear.columns() + column + j]);
                    row.add(t, host.a[(adapter * part.r + j) * k..][..k].iter().map(|a| a.to_f32()));
                }
            }
            column += part.r.next_multiple_of(8);
        }
        if let Some(Dropout { p, seed, dropout_id, dropout_step, first_token, .. }) = self.dropout {
            let mask = rng::Dropout::new(seed, dropout_id, dropout_step, p);
            for (i, (sum, magnitude)) in row.0.iter_mut().enumerate() {
                let factor = f64::from(mask.factors(first_token as u32 + token as u32, i as u32 / 4)[i % 4]);
                // A dropped element is zero whatever it was.
                (*sum, *magnitude) = if factor == 0.0 { (0.0, 0.0) } else { (*sum * factor, *magnitude * factor) };
            }
        }
        for ((part, host), dy) in self.linear.parts.iter().zip(&inputs.parts).zip(&inputs.dy) {
            for n in 0..part.n {
                row.add(dy[token * (part.n + part.pad) + n], host.weight[n * k..][..k].iter().copied());
            }
        }
        if self.accumulate {
            row.add(bf16::ONE, inputs.dx[token * (k + pad_x)..][..k].iter().map(|dx| dx.to_f32()));
        }
        row
    }
}

impl Operation for LinearDx {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        self.linear.name().replace("forward", "dX")
    }

    fn shape(&self) -> String {
        self.linear.shape()
    }

    fn flops(&self) -> f64 {
        self.linear.flops()
    }

    /// The forward pass's, with inputs and outputs exchanged.
    fn bytes(&self) -> f64 {
        let old = if self.accumulate { 2 * self.linear.m * self.linear.k } else { 0 };
        self.linear.bytes() + old as f64
    }

    fn inputs(&self) -> Host {
        let Linear { m, k, pad_x, .. } = self.linear;
        let mut stream = rng::RngStream::new(self.linear.seed, 4);
        let mut dx = vec![SENTINEL; m * (k + pad_x)];
        if self.accumulate {
            dx.chunks_mut(k + pad_x).for_each(|row| row[..k].copy_from_slice(&self.linear.numbers(k, &mut stream)));
        }
        let index = self.linear.index(&mut stream);
        let mut dy_of = |part: &Part| {
            let mut dy = vec![bf16::NAN; m * (part.n + part.pad)];
            dy.chunks_mut(part.n + part.pad)
                .for_each(|row| row[..part.n].copy_from_slice(&self.linear.numbers(part.n, &mut stream)));
            dy
        };
        let dy = self.linear.parts.iter().map(&mut dy_of).collect();
        Host {
            dx,
            index,
            dy,
            parts: self.linear.parts.iter().map(|part| self.linear.part(part, &mut stream)).collect(),
            step_on_device: None,
        }
    }

    fn upload(&self, device: &Device, inputs: &Host) -> Result<Buffers> {
        let linear = &self.linear;
        let transposed = linear.transposed && linear.k.is_multiple_of(linear.block_size);
        let layout = if transposed { Layout::Transposed } else { Layout::RowMajor };
        let of = |(i, host): (usize, &HostPart)| {
            // Exactly as long as the last row's n columns say.
            let len = (inputs.dy[i].len()).saturating_sub(linear.parts[i].pad);
            Ok(PartBuffers {
                nf4: host.nf4.as_ref().map(|matrix| Nf4Weight::upload(device, matrix, layout).unwrap()),
                dense: if linear.dense { Some(device.upload(&to_bf16(&host.weight))?) } else { None },
                a: device.upload(&host.a)?,
                b: device.upload(&host.b)?,
                scales: device.upload(&host.scales)?,
                dy: device.upload(&inputs.dy[i][..len])?,
                scale: host.scales[0],
            })
        };
        Ok(Buffers {
            dx: device.upload(&inputs.dx)?,
            index: device.upload(&inputs.index)?,
            t: device.upload(&vec![SENTINEL; linear.m * linear.columns()])?,
            none: device.upload(&[])?,
            step: inputs.step_on_device.map(|step| device.upload(&[step])).transpose()?,
            parts: inputs.parts.iter().enumerate().map(of).collect::<Result<_>>()?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        self.with(buffers, |backward, segments, gradient, t, none| {
            assert_eq!(lora_columns(segments), self.linear.columns());
            if self.linear.given_s {
                // Buffers may be of a larger M.
                let len = self.linear.m * self.linear.columns();
                lora_dy_b(&backward, segments, t.view_mut().first(len), stream)?;
                let backward = Backward { t: Some(t.view().first(len).into()), ..backward };
                linear_dx(&backward, segments, gradient, none.view_mut(), stream)
            } else {
                linear_dx(&backward, segments, gradient, t.view_mut(), stream)
            }
        })
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let bits = |buffer| Ok(device.download(buffer)?.into_iter().map(bf16::to_bits).collect());
        Ok(Output { t: bits(&buffers.t)?, dx: bits(&buffers.dx)? })
    }

    fn check(&self, inputs: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        let Linear { m, k, pad_x, .. } = self.linear;
        let mut stream = rng::RngStream::new(self.linear.seed, 5);
        let terms: usize = self.linear.parts.iter().map(|part| part.n + part.r).sum();
        for token in chosen(m, if most == usize::MAX { most } else { most.div_ceil(k).max(2) }, &mut stream) {
            self.check_t(inputs, &output.t, token)?;
            let found = &output.dx[token * (k + pad_x)..][..k + pad_x];
            for (i, sum) in self.row(inputs, &output.t, token).0.into_iter().enumerate() {
                self.linear.compare(found[i], sum, terms + 2, || format!("dX[{token}, {i}]"))?;
            }
            if found[k..].iter().any(|&dx| dx != SENTINEL.to_bits()) {
                return Err(format!("columns past K of row {token} were written"));
            }
        }
        Ok(())
    }
}
