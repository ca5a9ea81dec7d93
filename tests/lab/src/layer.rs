//! The operations of a Llama layer beside its linear ones, as [`Operation`]s against `reference` in f64 on the same
//! bf16 inputs.
//!
//! A result is rounded once, from f32 arithmetic whose errors are counted in units of 2⁻²⁴ of the magnitudes that enter
//! it.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream, View};
use qlora_kernels::ops::{self, HeadNorm, HeadRotation, Residual, RopeTable};
use qlora_kernels::shape::{AttentionShape, GateActivation};
use qlora_kernels::{reference, rng, rope};

/// The kinds of operation, which share sizes, inputs and the comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Norm,
    AddNorm,
    AddNormInPlace,
    /// The norm of a, added to b.
    NormAfter,
    NormBackward {
        accumulate: bool,
    },
    HeadNorm(HeadNorms),
    HeadNormBackward(HeadNorms),
    /// `kept`: the elements of each head that stay.
    Rope {
        heads: usize,
        pad: usize,
        kept: usize,
        inverse: bool,
    },
    Swiglu(GateActivation),
    SwigluBackward {
        activation: GateActivation,
        recompute: bool,
    },
}

/// The norm of each head; or of all of q and all of k.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorms {
    pub heads: usize,
    pub kv_heads: usize,
    pub whole: bool,
    pub turn: Option<Turn>,
}

/// The rotation that comes with norms of heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    pub before_norm: bool,
    /// Elements of each head that stay
    pub kept: usize,
}

/// `[m, width]`; the width is H, D or I.
#[derive(Clone, Debug)]
pub struct Layer {
    pub kind: Kind,
    pub m: usize,
    pub width: usize,
    pub seed: u64,
}

/// a, b, c: the operation's bf16 matrices in the order of its parameters; c is the one that is written, as it was
/// before.
pub struct Host {
    a: Vec<bf16>,
    b: Vec<bf16>,
    c: Vec<bf16>,
    weight: Vec<f32>,
    k_weight: Vec<f32>,
    positions: Vec<u32>,
    table: rope::RopeTable<f32>,
}

pub struct Buffers {
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    c: Buffer<bf16>,
    /// A second output.
    d: Buffer<bf16>,
    weight: Buffer<f32>,
    k_weight: Buffer<f32>,
    positions: Buffer<u32>,
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

const EPS: f32 = 1e-5;
const POSITIONS: usize = 97;

/// The magnitude of the norm's gradient at each element of one row: of its two terms, whose difference it is, with the
/// sum g · x in absolute values. `of_x`: the magnitudes in x.
fn norm_gradient_magnitudes(dy: &[f64], [x, of_x]: [&[f64]; 2], weight: &[f64]) -> Vec<f64> {
    let width = weight.len() as f64;
    let rho = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width + f64::from(EPS)).sqrt();
    let g_dot_x = dy.iter().zip(of_x).zip(weight).map(|((dy, x), w)| (w * dy * x).abs()).sum::<f64>();
    let terms = dy.iter().zip(of_x).zip(weight);
    terms.map(|((dy, x), w)| (rho * w * dy).abs() + (x * rho.powi(3) * g_dot_x / width).abs()).collect()
}

/// The argument of a gate's sigmoid, and its slope.
fn exponent(gate: f64, activation: GateActivation) -> (f64, f64) {
    let root = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    match activation {
        GateActivation::Silu => (gate, 1.0),
        GateActivation::GeluTanh => (root * (gate + 0.044715 * gate.powi(3)), root * (1.0 + 0.134145 * gate * gate)),
    }
}

/// Factor by which the error of a gate's sigmoid may exceed its own rounding: an error of the exponent is a relative
/// one of the sigmoid. Silu's exponent is the gate itself.
fn exponent_magnitude(gate: f64, activation: GateActivation) -> f64 {
    match activation {
        GateActivation::Silu => 1.0,
        GateActivation::GeluTanh => 1.0 + exponent(gate, activation).0.abs(),
    }
}

impl Layer {
    fn row(&self) -> usize {
        match self.kind {
            Kind::Rope { heads, pad, .. } => heads * self.width + pad,
            Kind::HeadNorm(norms) | Kind::HeadNormBackward(norms) => self.shape_of(norms).qkv(),
            Kind::Swiglu(_) | Kind::SwigluBackward { .. } => 2 * self.width,
            _ => self.width,
        }
    }

    fn shape_of(&self, HeadNorms { heads, kv_heads, .. }: HeadNorms) -> AttentionShape {
        AttentionShape { heads, kv_heads, head_dim: self.width, soft_cap: None }
    }

    /// The widths of what is normalized of q and of k.
    fn norm_widths(&self) -> [usize; 2] {
        match self.kind {
            Kind::HeadNorm(norms) | Kind::HeadNormBackward(norms) if norms.whole => {
                [norms.heads * self.width, norms.kv_heads * self.width]
            }
            _ => [self.width; 2],
        }
    }

    /// The share that a result may err by, of the magnitude that enters it: a norm sums `width` squares; everything
    /// else is at most a dozen operations.
    fn roundings(&self) -> f64 {
        (self.norm_widths()[0] + 16) as f64 * 2f64.powi(-24)
    }

    /// Elements of a head that are rotated.
    fn rotary_dim(&self) -> usize {
        match self.kind {
            Kind::Rope { kept, .. } => self.width - kept,
            Kind::HeadNorm(HeadNorms { turn: Some(turn), .. })
            | Kind::HeadNormBackward(HeadNorms { turn: Some(turn), .. }) => self.width - turn.kept,
            _ => self.width,
        }
    }

    fn table<'a>(&self, cosines: View<'a, f32>, sines: View<'a, f32>) -> RopeTable<'a> {
        RopeTable { half: self.rotary_dim() / 2, cosines, sines }
    }

    /// Rotates heads in place as the table says, or back; `magnitudes`, of what enters them, become those of pairs,
    /// which keep their length.
    fn turn(&self, host: &Host, heads: usize, inverse: bool, values: &mut [f64], magnitudes: &mut [f64]) {
        let (row, width, rotated) = (self.row(), self.width, self.rotary_dim());
        let f64s = |values: &[f32]| values.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let table = rope::RopeTable { half: rotated / 2, cos: f64s(&host.table.cos), sin: f64s(&host.table.sin) };
        let rotate = if inverse { reference::rope_inverse } else { reference::rope };
        rotate(values, row, heads, width, &host.positions, &table);
        let before = magnitudes.to_vec();
        for (i, magnitude) in magnitudes.iter_mut().enumerate() {
            let (start, column) = (i / row * row, i % row);
            if column < heads * width && column % width < rotated {
                let partner = column / width * width + (column % width + rotated / 2) % rotated;
                *magnitude = before[i] + before[start + partner];
            }
        }
    }

    /// (expected, magnitude of what enters it) of the written matrices, one after the other.
    fn expected(&self, host: &Host) -> Vec<(f64, f64)> {
        let f64s = |values: &[bf16]| values.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let (a, b, mut c) = (f64s(&host.a), f64s(&host.b), f64s(&host.c));
        let weight: Vec<f64> = host.weight.iter().map(|&w| w.into()).collect();
        let k_weight: Vec<f64> = host.k_weight.iter().map(|&w| w.into()).collect();
        let (m, width) = (self.m, self.width);
        let plain = |values: Vec<f64>| values.into_iter().map(|y| (y, y.abs())).collect::<Vec<_>>();
        match self.kind {
            Kind::Norm => {
                let mut y = vec![0.0; m * width];
                reference::rms_norm(&a, &weight, EPS.into(), &mut y);
                plain(y)
            }
            Kind::AddNorm | Kind::AddNormInPlace => {
                // The norm reads the rounded sum.
                let sum: Vec<f64> =
                    host.a.iter().zip(&host.b).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()).to_f64()).collect();
                let mut y = vec![0.0; m * width];
                reference::rms_norm(&sum, &weight, EPS.into(), &mut y);
                plain(sum.into_iter().chain(y).collect())
            }
            Kind::NormAfter => {
                let mut y = vec![0.0; m * width];
                reference::rms_norm(&a, &weight, EPS.into(), &mut y);
                // The norm is rounded on its own, before the sum is.
                let rounded = 2f64.powi(-8) / self.roundings();
                y.iter().zip(&b).map(|(y, b)| (y + b, b.abs() + y.abs() * (1.0 + rounded))).collect()
            }
            Kind::NormBackward { accumulate } => {
                if !accumulate {
                    c.fill(0.0);
                }
                let before = c.clone();
                reference::rms_norm_backward(&a, &b, &weight, EPS.into(), &mut c);
                let rows = a.chunks(width).zip(b.chunks(width));
                let magnitudes = rows.flat_map(|(dy, x)| norm_gradient_magnitudes(dy, [x, x], &weight));
                c.iter().zip(&before).zip(magnitudes).map(|((&dx, before), m)| (dx, before.abs() + m)).collect()
            }
            Kind::HeadNorm(norms) => {
                let (shape, heads) = (self.shape_of(norms), norms.heads + norms.kv_heads);
                let (mut x, mut magnitudes) = (a.clone(), a.iter().map(|x| x.abs()).collect::<Vec<_>>());
                if norms.turn.is_some_and(|turn| turn.before_norm) {
                    self.turn(host, heads, false, &mut x, &mut magnitudes);
                }
                let mut y = vec![0.0; x.len()];
                reference::head_norm(&x, [&weight, &k_weight], EPS.into(), shape, &mut y);
                // A norm scales each element's magnitude as it scales the element.
                for ((magnitude, x), y) in magnitudes.iter_mut().zip(&x).zip(&y) {
                    *magnitude = if *x == 0.0 { *magnitude } else { *magnitude * (y / x).abs() };
                }
                if norms.turn.is_some_and(|turn| !turn.before_norm) {
                    self.turn(host, heads, false, &mut y, &mut magnitudes);
                }
                y.into_iter().zip(magnitudes).collect()
            }
            Kind::HeadNormBackward(norms) => {
                let (shape, heads) = (self.shape_of(norms), norms.heads + norms.kv_heads);
                let (before_norm, after_norm) =
                    (norms.turn.is_some_and(|turn| turn.before_norm), norms.turn.is_some_and(|turn| !turn.before_norm));
                // dy and x as the norm has them, with the magnitudes of their terms.
                let (mut x, mut dy) = (a, c);
                let [mut of_x, mut of_dy] = [&x, &dy].map(|of| of.iter().map(|x| x.abs()).collect::<Vec<f64>>());
                if before_norm {
                    self.turn(host, heads, false, &mut x, &mut of_x);
                }
                if after_norm {
                    self.turn(host, heads, true, &mut dy, &mut of_dy);
                }
                let mut dx = vec![0.0; x.len()];
                reference::head_norm_backward(&dy, &x, [&weight, &k_weight], EPS.into(), shape, &mut dx);
                let (row, [q_width, k_width]) = (shape.qkv(), self.norm_widths());
                let of_parts = |columns: std::ops::Range<usize>, weight: &[f64], part: usize| -> Vec<f64> {
                    let parts = columns.step_by(part).map(|at| at..at + part);
                    let magnitudes = |at: std::ops::Range<usize>| {
                        norm_gradient_magnitudes(&of_dy[at.clone()], [&x[at.clone()], &of_x[at]], weight)
                    };
                    parts.flat_map(magnitudes).collect()
                };
                let mut magnitudes: Vec<f64> = (0..m)
                    .flat_map(|token| {
                        let start = token * row;
                        let (keys, values) = (start + shape.out(), start + heads * width);
                        let mut magnitudes = of_parts(start..keys, &weight, q_width);
                        magnitudes.extend(of_parts(keys..values, &k_weight, k_width));
                        magnitudes.extend(dy[values..start + row].iter().map(|dy| dy.abs()));
                        magnitudes
                    })
                    .collect();
                if before_norm {
                    self.turn(host, heads, true, &mut dx, &mut magnitudes);
                }
                dx.into_iter().zip(magnitudes).collect()
            }
            Kind::Rope { heads, inverse, .. } => {
                let mut magnitudes: Vec<f64> = c.iter().map(|x| x.abs()).collect();
                self.turn(host, heads, inverse, &mut c, &mut magnitudes);
                c.into_iter().zip(magnitudes).collect()
            }
            Kind::Swiglu(activation) => {
                let mut out = vec![0.0; m * width];
                reference::swiglu(&a, &mut out, width, activation);
                let magnitude = |i: usize| {
                    let gate = a[i / width * 2 * width + i % width];
                    exponent_magnitude(gate, activation)
                };
                out.into_iter().enumerate().map(|(i, y)| (y, y.abs() * magnitude(i))).collect()
            }
            Kind::SwigluBackward { activation, recompute } => {
                let mut out = vec![0.0; m * width];
                reference::swiglu(&c, &mut out, width, activation);
                let before = c.clone();
                reference::swiglu_backward(&a, &mut c, width, activation);
                // 1 + gate · (1 − s) may cancel.
                let magnitude = |i: usize| {
                    let (gate, dout) =
                        (before[i / (2 * width) * 2 * width + i % width], a[i / (2 * width) * width + i % width]);
                    let up = before[i / (2 * width) * 2 * width + width + i % width];
                    let (z, slope) = exponent(gate, activation);
                    let (s, errors) = (1.0 / (1.0 + (-z).exp()), exponent_magnitude(gate, activation));
                    let dgate = (dout * up * s).abs() * (1.0 + gate.abs() * slope) * errors;
                    if i % (2 * width) < width { dgate } else { (dout * gate * s).abs() * errors }
                };
                let gradient = c.iter().enumerate().map(|(i, &x)| (x, magnitude(i))).collect::<Vec<_>>();
                let gates = before.chunks(2 * width).flat_map(|row| &row[..width]);
                let again = out.into_iter().zip(gates);
                let again = again.map(|(y, &gate)| (y, y.abs() * exponent_magnitude(gate, activation)));
                if recompute { gradient.into_iter().chain(again).collect() } else { gradient }
            }
        }
    }
}

impl Operation for Layer {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Vec<u16>;

    fn name(&self) -> String {
        match self.kind {
            Kind::Norm => "rms_norm",
            Kind::AddNorm | Kind::AddNormInPlace => "add + rms_norm",
            Kind::NormAfter => "rms_norm + add",
            Kind::NormBackward { .. } => "rms_norm backward",
            Kind::HeadNorm(HeadNorms { turn: None, .. }) => "head_norm",
            Kind::HeadNorm(_) => "head_norm + rope",
            Kind::HeadNormBackward(HeadNorms { turn: None, .. }) => "head_norm backward",
            Kind::HeadNormBackward(_) => "head_norm + rope backward",
            Kind::Rope { .. } => "rope",
            Kind::Swiglu(_) => "swiglu",
            Kind::SwigluBackward { .. } => "swiglu backward",
        }
        .into()
    }

    fn shape(&self) -> String {
        format!("{}×{}", self.m, self.row())
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        let matrices = match self.kind {
            Kind::Norm | Kind::HeadNorm(_) | Kind::Rope { .. } => 2.0,
            Kind::HeadNormBackward(_) | Kind::NormAfter => 3.0,
            Kind::AddNorm | Kind::AddNormInPlace => 4.0,
            Kind::NormBackward { accumulate } => 3.0 + f64::from(u8::from(accumulate)),
            Kind::Swiglu(_) => 1.5,
            Kind::SwigluBackward { recompute, .. } => 2.5 + 0.5 * f64::from(u8::from(recompute)),
        };
        matrices * (self.m * self.row() * 2) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 11);
        let mut numbers = |len: usize, size: f32| {
            to_bf16(&(0..len).map(|_| (stream.uniform() * 2.0 - 1.0) * size).collect::<Vec<f32>>())
        };
        let len = self.m * self.row();
        let size = if matches!(self.kind, Kind::Swiglu(_) | Kind::SwigluBackward { .. }) { 8.0 } else { 1.0 };
        let (a, b, c) = (numbers(len, size), numbers(len, 1.0), numbers(len, size));
        let [q_width, k_width] = self.norm_widths();
        let weight = numbers(q_width, 1.0).iter().map(|w| w.to_f32()).collect();
        let positions = (0..self.m).map(|_| stream.below(POSITIONS as u32)).collect();
        let table = rope::RopeTable::new(self.rotary_dim().max(2), 10_000.0, rope::RopeScaling::Default, POSITIONS);
        let k_weight = (0..k_width).map(|_| stream.uniform() * 2.0 - 1.0).collect();
        let mut host = Host { a, b, c, weight, k_weight, positions, table };
        if matches!(self.kind, Kind::SwigluBackward { .. }) {
            host.a.truncate(self.m * self.width);
        }
        host
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let poison = vec![bf16::NAN; self.m * self.width.max(self.row())];
        let written = matches!(
            self.kind,
            Kind::NormBackward { .. } | Kind::HeadNormBackward(_) | Kind::Rope { .. } | Kind::SwigluBackward { .. }
        );
        let out = match self.kind {
            Kind::Swiglu(_) | Kind::SwigluBackward { .. } => self.m * self.width,
            _ => self.m * self.row(),
        };
        Ok(Buffers {
            a: device.upload(&host.a)?,
            b: device.upload(&host.b)?,
            c: device.upload(if written { &host.c } else { &poison })?,
            d: device.upload(&poison[..out])?,
            weight: device.upload(&host.weight)?,
            k_weight: device.upload(&host.k_weight)?,
            positions: device.upload(&host.positions)?,
            cosines: device.upload(&host.table.cos)?,
            sines: device.upload(&host.table.sin)?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { a, b, c, d, weight, k_weight, positions, cosines, sines } = buffers;
        let weight = weight.view();
        let table = self.table(cosines.view(), sines.view());
        let head_norm = |x, norms: HeadNorms| HeadNorm {
            shape: self.shape_of(norms),
            eps: EPS,
            x,
            q_weight: weight,
            k_weight: k_weight.view(),
            rotation: norms.turn.map(|Turn { before_norm, .. }| HeadRotation {
                positions: positions.view(),
                table,
                before_norm,
            }),
        };
        match self.kind {
            Kind::Norm => ops::rms_norm(Residual::Plain(a.view()), weight, EPS, d.view_mut(), stream),
            Kind::AddNorm => {
                let input = Residual::Add { x: a.view(), delta: b.view(), sum: c.view_mut() };
                ops::rms_norm(input, weight, EPS, d.view_mut(), stream)
            }
            Kind::AddNormInPlace => {
                let input = Residual::AddInPlace { x: a.view_mut(), delta: b.view() };
                ops::rms_norm(input, weight, EPS, d.view_mut(), stream)
            }
            Kind::NormAfter => {
                let input = Residual::After { delta: a.view(), x: b.view() };
                ops::rms_norm(input, weight, EPS, d.view_mut(), stream)
            }
            Kind::NormBackward { accumulate } => {
                ops::rms_norm_backward(a.view(), b.view(), weight, EPS, accumulate, c.view_mut(), stream)
            }
            Kind::HeadNorm(norms) => ops::head_norm(head_norm(a.view(), norms), d.view_mut(), stream),
            Kind::HeadNormBackward(norms) => ops::head_norm_backward(head_norm(a.view(), norms), c.view_mut(), stream),
            Kind::Rope { heads, inverse, .. } => {
                ops::rope(c.view_mut(), self.row(), heads, self.width, positions.view(), table, inverse, stream)
            }
            Kind::Swiglu(activation) => ops::swiglu(a.view(), self.width, activation, d.view_mut(), stream),
            Kind::SwigluBackward { activation, recompute } => {
                let out = recompute.then(|| d.view_mut().into());
                ops::swiglu_backward(a.view(), c.view_mut(), self.width, activation, out, stream)
            }
        }
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Vec<u16>> {
        let Buffers { a, c, d, .. } = buffers;
        let written: &[&Buffer<bf16>] = match self.kind {
            Kind::Norm | Kind::NormAfter | Kind::HeadNorm(_) | Kind::Swiglu(_) => &[d],
            Kind::AddNorm => &[c, d],
            Kind::AddNormInPlace => &[a, d],
            Kind::NormBackward { .. }
            | Kind::HeadNormBackward(_)
            | Kind::Rope { .. }
            | Kind::SwigluBackward { recompute: false, .. } => &[c],
            Kind::SwigluBackward { recompute: true, .. } => &[c, d],
        };
        let mut bits = Vec::new();
        for buffer in written {
            bits.extend(device.download(buffer)?.into_iter().map(bf16::to_bits));
        }
        Ok(bits)
    }

    fn check(&self, host: &Host, output: &Vec<u16>, _: usize) -> std::result::Result<(), String> {
        let expected = self.expected(host);
        if expected.len() != output.len() {
            return Err(format!("{} outputs, expected {}", output.len(), expected.len()));
        }
        let roundings = self.roundings();
        for (i, (&found, (expected, magnitude))) in output.iter().zip(expected).enumerate() {
            let found = bf16::from_bits(found).to_f64();
            let bound = 2f64.powi(-8) * expected.abs() + roundings * magnitude + 1e-38;
            if (found - expected).abs() > bound || found.is_nan() {
                return Err(format!("element {i}: found {found}, expected {expected}, bound {bound}"));
            }
        }
        Ok(())
    }
}
