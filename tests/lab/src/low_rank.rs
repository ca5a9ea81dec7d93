//! The low-rank path of the linear layer as an [`Operation`]: S, T and the gradients of A and B, with dropout and
//! adapters, against the f64 reference. Every result is checked from the kernels' own S and T, as they were rounded.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::linear::{Adapters, Dropout, Input, Lora, Segment, Weight};
use qlora_kernels::ops::linear_backward::{Backward, SegmentBackward};
use qlora_kernels::ops::lora_gradients::{ForwardInputs, PairGradient, lora_gradients, workspace_bytes};
use qlora_kernels::ops::{lora_down, lora_dy_b};
use qlora_kernels::reference;
use qlora_kernels::reference::LoraTerm;
use qlora_kernels::rng;

#[derive(Clone, Copy, Debug)]
pub struct LowRankPart {
    pub n: usize,
    pub r: usize,
    /// Columns of dY past n.
    pub pad: usize,
}

#[derive(Clone, Debug)]
pub struct LowRank {
    pub m: usize,
    pub k: usize,
    pub pad_x: usize,
    pub parts: Vec<LowRankPart>,
    /// 0: one, for all tokens, without an index.
    pub adapters: usize,
    /// p; 0: no dropout is given.
    pub dropout: f32,
    /// Small integers, so that no sum rounds.
    pub exact: bool,
    /// T comes from `lora_dy_b`; otherwise the gradients compute it.
    pub given_t: bool,
    pub seed: u64,
}

pub struct HostPart {
    /// `[count, r, k]`
    pub a: Vec<bf16>,
    /// `[count, n, r]`
    pub b: Vec<bf16>,
    /// `[m, n + pad]`
    pub dy: Vec<bf16>,
    pub scale: f32,
    /// The values that are added to: [count, r, k]; `db`: [count, n, r]
    pub da: Vec<f32>,
    pub db: Vec<f32>,
}

pub struct Host {
    /// [m, k + pad_x]
    pub x: Vec<bf16>,
    /// `[m]`
    pub index: Vec<i32>,
    /// `[adapters]`
    pub scales: Vec<f32>,
    pub forward: Option<Dropout<'static>>,
    pub backward: Option<Dropout<'static>>,
    /// The step of dropout that is read in device memory in place of theirs
    pub step_on_device: Option<u32>,
    pub parts: Vec<HostPart>,
}

pub struct Buffers {
    x: Buffer<bf16>,
    index: Buffer<i32>,
    scales: Buffer<f32>,
    s: Buffer<bf16>,
    t: Buffer<bf16>,
    forward: Option<Dropout<'static>>,
    backward: Option<Dropout<'static>>,
    step: Option<Buffer<u32>>,
    parts: Vec<PartBuffers>,
}

struct PartBuffers {
    weight: Buffer<bf16>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    dy: Buffer<bf16>,
    y: Buffer<bf16>,
    scale: f32,
    da: Buffer<f32>,
    db: Buffer<f32>,
}

/// Bits, so that a NaN equals itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub s: Vec<u16>,
    /// Not written unless `given_t`.
    pub t: Vec<u16>,
    pub da: Vec<Vec<u32>>,
    pub db: Vec<Vec<u32>>,
}

const SENTINEL: bf16 = bf16::from_bits(0x4bcd);

impl LowRank {
    pub fn count(&self) -> usize {
        self.adapters.max(1)
    }

    pub fn columns(&self) -> usize {
        self.parts.iter().map(|part| part.r.next_multiple_of(8)).sum()
    }

    fn numbers(&self, len: usize, stream: &mut rng::RngStream) -> Vec<f32> {
        let integer = |stream: &mut rng::RngStream| stream.below(5) as f32 - 2.0;
        (0..len).map(|_| if self.exact { integer(stream) } else { stream.uniform() * 2.0 - 1.0 }).collect()
    }

    /// `[rows, len]`; exact: one element of each row of `along`, so that the product with it stays a small integer.
    fn pairs(&self, count: usize, rows: usize, len: usize, transposed: bool, stream: &mut rng::RngStream) -> Vec<bf16> {
        if !self.exact {
            return to_bf16(&self.numbers(count * rows * len, stream));
        }
        let mut matrix = vec![bf16::ZERO; count * rows * len];
        for row in 0..count * rows {
            let (pair, at) = (row / rows * rows * len, stream.below(len as u32) as usize);
            let place = if transposed { pair + at * rows + row % rows } else { pair + row % rows * len + at };
            matrix[place] = bf16::from_f32(2.0);
        }
        matrix
    }

    fn part(&self, part: &LowRankPart, stream: &mut rng::RngStream) -> HostPart {
        let (count, LowRankPart { n, r, pad }) = (self.count(), *part);
        HostPart {
            a: self.pairs(count, r, self.k, false, stream),
            b: self.pairs(count, r, n, true, stream),
            dy: to_bf16(&self.numbers(self.m * (n + pad), stream)),
            scale: if self.exact { 0.5 } else { 1.5 },
            da: self.numbers(count * r * self.k, stream),
            db: self.numbers(count * n * r, stream),
        }
    }

    /// The scale of an adapter: from the table where there are several, as the kernels' arguments say.
    fn scale(&self, inputs: &Host, part: usize, adapter: usize) -> f64 {
        f64::from(if self.adapters > 1 { inputs.scales[adapter] } else { inputs.parts[part].scale })
    }

    pub fn with<T>(
        &self,
        buffers: &mut Buffers,
        call: impl FnOnce(
            &Backward<'_>,
            &[SegmentBackward<'_>],
            &Input<'_>,
            &mut [Segment<'_>],
            &mut [PairGradient<'_>],
            (&mut Buffer<bf16>, &mut Buffer<bf16>),
        ) -> Result<T>,
    ) -> Result<T> {
        let (mut forward, mut backward, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
        let scales = (self.adapters > 1).then(|| buffers.scales.view());
        for (part, buffers_of) in self.parts.iter().zip(&mut buffers.parts) {
            let adapters =
                (self.adapters > 0).then(|| Adapters { count: self.adapters, index: buffers.index.view(), scales });
            let (a, b) = (buffers_of.a.view(), buffers_of.b.view());
            let lora = (part.r > 0).then_some(Lora { r: part.r, scale: buffers_of.scale, a, b, adapters });
            let weight = Weight::Dense(buffers_of.weight.view());
            let n = part.n;
            forward.push(Segment { n, weight, lora, bias: None, y: buffers_of.y.view_mut(), ldy: n });
            backward.push(SegmentBackward { n, weight, lora, dy: buffers_of.dy.view(), lddy: n + part.pad });
            gradients.push(match lora {
                Some(_) => PairGradient { da: Some(buffers_of.da.view_mut()), db: Some(buffers_of.db.view_mut()) },
                None => PairGradient::default(),
            });
        }
        let Self { m, k, .. } = *self;
        let input = Input { m, k, x: buffers.x.view(), ldx: k + self.pad_x, s: None, dropout: None };
        let step_on_device = buffers.step.as_ref().map(Buffer::view);
        let [forward_mask, backward_mask] = [buffers.forward, buffers.backward]
            .map(|dropout| dropout.map(|dropout| Dropout { step_on_device, ..dropout }));
        let input = Input { dropout: forward_mask, ..input };
        let shared = Backward { m, k, t: None, dropout: backward_mask };
        call(&shared, &backward, &input, &mut forward, &mut gradients, (&mut buffers.s, &mut buffers.t))
    }

    fn compare(&self, found: f32, sum: f64, bound: f64, what: impl Fn() -> String) -> std::result::Result<(), String> {
        let error = (f64::from(found) - sum).abs();
        let right = if self.exact { f64::from(found) == sum } else { error <= bound };
        if right { Ok(()) } else { Err(format!("{}: found {found}, expected {sum}, bound {bound}", what())) }
    }
}

fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

/// Rows `tokens` of a strided matrix, the first `columns` of each.
fn gather(matrix: &[bf16], tokens: &[usize], stride: usize, first: usize, columns: usize) -> Vec<f64> {
    tokens.iter().flat_map(|token| wide(&matrix[token * stride + first..][..columns])).collect()
}

fn bits(values: &[u16]) -> Vec<bf16> {
    values.iter().map(|&bits| bf16::from_bits(bits)).collect()
}

/// The factors of `tokens`, as src/rng.rs draws them.
pub fn factors(dropout: Dropout<'_>, tokens: &[usize], k: usize) -> Vec<f64> {
    let mask = rng::Dropout::new(dropout.seed, dropout.dropout_id, dropout.dropout_step, dropout.p);
    let row = |&token: &usize| {
        let token = dropout.first_token as u32 + token as u32;
        (0..k as u32).step_by(4).flat_map(move |i| mask.factors(token, i / 4)).take(k).map(f64::from)
    };
    tokens.iter().flat_map(row).collect()
}

impl Operation for LowRank {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        "S, T, dA, dB".into()
    }

    fn shape(&self) -> String {
        let widths: Vec<String> = self.parts.iter().map(|part| format!("{} r {}", part.n, part.r)).collect();
        format!("{}×{}", widths.join("+"), self.k)
    }

    fn flops(&self) -> f64 {
        4.0 * self.m as f64 * self.parts.iter().map(|part| part.r * (part.n + self.k)).sum::<usize>() as f64
    }

    fn bytes(&self) -> f64 {
        let of = |part: &LowRankPart| 4 * self.m * part.n + 12 * self.count() * part.r * (part.n + self.k);
        (4 * self.m * self.k + self.parts.iter().map(of).sum::<usize>()) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 7);
        let x = to_bf16(&self.numbers(self.m * (self.k + self.pad_x), &mut stream));
        // Runs of tokens of one adapter, as the rows of a batch are; -1: none.
        let mut adapter = 0;
        let index = (0..self.m).map(|token| {
            if token == 0 || stream.below(20) == 0 {
                adapter = stream.below(self.count() as u32 + 1) as i32 - 1;
            }
            adapter
        });
        let index = index.collect();
        let scales = (0..self.count()).map(|i| if self.exact { 0.5 } else { 0.75 + i as f32 }).collect();
        let (seed, first_token) = (stream.next_u32().into(), stream.below(1000).into());
        let dropout = Dropout {
            p: self.dropout,
            seed,
            dropout_id: stream.next_u32(),
            dropout_step: stream.next_u32(),
            first_token,
            step_on_device: None,
        };
        let dropout = (self.dropout > 0.0).then_some(dropout);
        let parts = self.parts.iter().map(|part| self.part(part, &mut stream)).collect();
        Host { x, index, scales, forward: dropout, backward: dropout, step_on_device: None, parts }
    }

    fn upload(&self, device: &Device, inputs: &Host) -> Result<Buffers> {
        let of = |(part, host): (&LowRankPart, &HostPart)| {
            Ok(PartBuffers {
                weight: device.upload(&vec![SENTINEL; part.n * self.k])?,
                a: device.upload(&host.a)?,
                b: device.upload(&host.b)?,
                dy: device.upload(&host.dy)?,
                y: device.upload(&vec![SENTINEL; self.m * part.n])?,
                scale: host.scale,
                da: device.upload(&host.da)?,
                db: device.upload(&host.db)?,
            })
        };
        let poisoned = vec![SENTINEL; self.m * self.columns()];
        Ok(Buffers {
            x: device.upload(&inputs.x)?,
            index: device.upload(&inputs.index)?,
            scales: device.upload(&inputs.scales)?,
            s: device.upload(&poisoned)?,
            t: device.upload(&poisoned)?,
            forward: inputs.forward,
            backward: inputs.backward,
            step: inputs.step_on_device.map(|step| device.upload(&[step])).transpose()?,
            parts: self.parts.iter().zip(&inputs.parts).map(of).collect::<Result<_>>()?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let device = super::device::device();
        self.with(buffers, |backward, segments, input, forward, gradients, (s, t)| {
            lora_down(input, forward, s.view_mut(), stream)?;
            if self.given_t {
                lora_dy_b(backward, segments, t.view_mut(), stream)?;
            }
            let backward = Backward { t: self.given_t.then(|| t.view().into()), ..*backward };
            let inputs = ForwardInputs { x: input.x, ldx: input.ldx, s: s.view().into() };
            let bytes = workspace_bytes(&backward, segments, &inputs, gradients)?;
            let mut workspace = device.upload(&vec![0xffu8; bytes])?;
            lora_gradients(&backward, segments, &inputs, gradients, workspace.view_mut(), stream)
        })
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let halves = |buffer| Ok(device.download(buffer)?.into_iter().map(bf16::to_bits).collect());
        let floats = |buffer: &Buffer<f32>| Ok(device.download(buffer)?.into_iter().map(f32::to_bits).collect());
        Ok(Output {
            s: halves(&buffers.s)?,
            t: halves(&buffers.t)?,
            da: buffers.parts.iter().map(|part| floats(&part.da)).collect::<Result<_>>()?,
            db: buffers.parts.iter().map(|part| floats(&part.db)).collect::<Result<_>>()?,
        })
    }

    fn check(&self, inputs: &Host, output: &Output, _most: usize) -> std::result::Result<(), String> {
        let (columns, ldx, k) = (self.columns(), self.k + self.pad_x, self.k);
        let chunks = self.m.div_ceil(256);
        let mut column = 0;
        for (i, part) in self.parts.iter().enumerate() {
            let (host, LowRankPart { n, r, pad }) = (&inputs.parts[i], *part);
            if r == 0 {
                continue;
            }
            for adapter in 0..self.count() {
                let mine = |&token: &usize| self.adapters == 0 || inputs.index[token] == adapter as i32;
                let tokens: Vec<usize> = (0..self.m).filter(mine).collect();
                let factors = inputs.forward.map(|dropout| factors(dropout, &tokens, k));
                let x = gather(&inputs.x, &tokens, ldx, 0, k);
                let dy = gather(&host.dy, &tokens, n + pad, 0, n);
                let (a, b) = (wide(&host.a[adapter * r * k..][..r * k]), wide(&host.b[adapter * n * r..][..n * r]));
                let lora = LoraTerm { a: &a, b: &b, r, scale: self.scale(inputs, i, adapter) };
                let (a, b) = (absolute(&a), absolute(&b));
                let sizes = LoraTerm { a: &a, b: &b, ..lora };
                // Products of S and T are exact in them as they were rounded.
                let [mut s, mut s_size, mut t, mut t_size] = [(); 4].map(|()| vec![0.0; tokens.len() * r]);
                reference::lora_down(&x, factors.as_deref(), &lora, &mut s, k);
                reference::lora_down(&absolute(&x), factors.as_deref(), &sizes, &mut s_size, k);
                reference::lora_dy_b(&dy, &lora, &mut t, n);
                reference::lora_dy_b(&absolute(&dy), &sizes, &mut t_size, n);
                let halves = [(&output.s, &mut s, s_size, k, true), (&output.t, &mut t, t_size, n, self.given_t)];
                for (what, (found, expected, sizes, terms, written)) in ["S", "T"].iter().zip(halves) {
                    if !written {
                        // Computed inside, by the same kernel: rounded as it rounds.
                        expected.iter_mut().for_each(|t| *t = bf16::from_f64(*t).to_f64());
                        continue;
                    }
                    let found = gather(&bits(found), &tokens, columns, column, r);
                    for (at, (&found, &expected)) in found.iter().zip(expected.iter()).enumerate() {
                        let bound = 2f64.powi(-8) * expected.abs() + (terms + 3) as f64 * 2f64.powi(-24) * sizes[at];
                        let place = || format!("{what}[{}, {}] of segment {i}", tokens[at / r], at % r);
                        self.compare(found as f32, expected, bound + 1e-38, place)?;
                    }
                    expected.copy_from_slice(&found);
                }
                let zeros = |len: usize| vec![0.0; len];
                let (mut da, mut db, mut da_size, mut db_size) =
                    (zeros(r * k), zeros(n * r), zeros(r * k), zeros(n * r));
                let factors = inputs.backward.map(|dropout| self::factors(dropout, &tokens, k));
                let factors = factors.as_deref();
                reference::lora_gradients(&x, factors, &dy, &s, &t, &mut da, &mut db, n, k, r);
                let [x, dy, s, t] = [&x, &dy, &s, &t].map(|values| absolute(values));
                reference::lora_gradients(&x, factors, &dy, &s, &t, &mut da_size, &mut db_size, n, k, r);
                let matrices = [
                    ("dA", &output.da[i][adapter * r * k..][..r * k], &host.da[adapter * r * k..], da, da_size),
                    ("dB", &output.db[i][adapter * n * r..][..n * r], &host.db[adapter * n * r..], db, db_size),
                ];
                for (what, found, before, sums, sizes) in matrices {
                    // T inside may differ by one more rounding from the reference's.
                    let t_rounding = if what == "dA" && !self.given_t { 2f64.powi(-7) } else { 0.0 };
                    for (at, &found) in found.iter().enumerate() {
                        let before = f64::from(before[at]);
                        let error = (tokens.len() + chunks + 2) as f64 * 2f64.powi(-24) + t_rounding;
                        let bound = error * (sizes[at] + before.abs()) + 1e-38;
                        let place = || format!("{what} at {at} of adapter {adapter} of segment {i}");
                        self.compare(f32::from_bits(found), before + sums[at], bound, place)?;
                    }
                }
            }
            // Padding columns, and rows without an adapter, are zero.
            for token in 0..self.m {
                let none = self.adapters > 0 && !(0..self.adapters as i32).contains(&inputs.index[token]);
                let zeros = if none { 0..r.next_multiple_of(8) } else { r..r.next_multiple_of(8) };
                for matrix in [&output.s, &output.t].into_iter().take(1 + usize::from(self.given_t)) {
                    if matrix[token * columns + column..][zeros.clone()].iter().any(|&bits| bits != 0) {
                        return Err(format!("what token {token} has no rank for is not zero in segment {i}"));
                    }
                }
            }
            column += r.next_multiple_of(8);
        }
        Ok(())
    }
}
