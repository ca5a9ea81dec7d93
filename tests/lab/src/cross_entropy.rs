//! The fused output layer and cross-entropy as an [`Operation`], against the definition in f64 on the same bf16 inputs.
//!
//! The bounds count roundings. A logit is an f32 sum (2⁻²⁴ of the magnitudes a term); its error is one of an exponent,
//! so a relative one of its probability, and the largest of a row is one of the logarithm of their sum. An exponential
//! is right to 2⁻²² and each of the few merges of statistics adds another. The gradient of a logit is rounded to bf16
//! (2⁻⁸ of it) before the second product, and the result once.

mod head;

pub use head::HeadLoss;

use super::operation::Operation;
use super::values::chosen;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::cross_entropy::{CrossEntropy, LossState, STATE_LEN, Shape, cross_entropy, workspace_bytes};
use qlora_kernels::rng;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Hidden states are uniform in (-size, size), the output layer in (-1, 1): the larger, the sharper the softmax.
    Random { size: f32 },
    /// At most 256 logits, a power of two, are 0 and all others -2¹⁴: probabilities and gradients that no sum rounds.
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Targets {
    All,
    None,
    /// Two of three rows have one.
    Some,
    /// Two of three rows have one, of which one of eight is no token of the vocabulary.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Loss {
    pub m: usize,
    pub h: usize,
    pub vocab: usize,
    pub chunk: usize,
    pub targets: Targets,
    pub gradient: bool,
    /// Each token has a weight, of either sign, and one of four of 0.
    pub weighted: bool,
    pub values: Values,
    pub soft_cap: Option<f32>,
    pub seed: u64,
}

pub struct Host {
    /// `[m, h]`
    pub hidden: Vec<bf16>,
    /// `[vocab, h]`
    pub head: Vec<bf16>,
    /// `[m]`
    pub targets: Vec<i32>,
    /// `[m]`
    pub weights: Option<Vec<f32>>,
    pub scale: f32,
    pub soft_cap: Option<f32>,
}

pub struct Buffers {
    hidden: Buffer<bf16>,
    head: Buffer<bf16>,
    pub targets: Buffer<i32>,
    losses: Buffer<f32>,
    state: Buffer<u64>,
    dhidden: Buffer<bf16>,
    workspace: Buffer<u8>,
    weights: Option<Buffer<f32>>,
    shape: Shape,
    scale: f32,
    soft_cap: Option<f32>,
}

/// All of it as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub losses: Vec<u32>,
    pub state: [u64; STATE_LEN],
    /// Empty without a gradient.
    pub dhidden: Vec<u16>,
}

/// A value, and the largest error of the kernels.
pub type Bounded = (f64, f64);

/// 2⁻ᵇ
fn unit(bits: i32) -> f64 {
    2f64.powi(-bits)
}

impl Host {
    pub fn weight(&self, row: usize) -> f32 {
        self.weights.as_ref().map_or(1.0, |weights| weights[row])
    }

    pub fn is_supervised(&self, row: usize) -> bool {
        self.targets[row] >= 0 && self.weight(row) != 0.0
    }

    /// A logit with its soft cap, a tanh to 2⁻²¹ with a factor that is rounded, and the slope there.
    fn capped(&self, (z, error): Bounded) -> (Bounded, Bounded) {
        let Some(cap) = self.soft_cap.map(f64::from) else { return ((z, error), (1.0, 0.0)) };
        let tanh = (z / cap).tanh();
        let error = error + cap * unit(21);
        ((cap * tanh, error), (1.0 - tanh * tanh, 2.0 * error / cap + unit(22)))
    }

    /// The loss of a row, not weighted, and the gradients of its logits; none of a row that is not supervised, and NaN
    /// of one whose target is no token.
    fn gradients_of_logits(&self, row: usize, h: usize) -> (Bounded, Option<Vec<Bounded>>) {
        let x = &self.hidden[row * h..][..h];
        let rows = self.head.chunks_exact(h);
        let target = usize::try_from(self.targets[row]).ok().filter(|_| self.is_supervised(row));
        let Some(target) = target else { return ((0.0, 0.0), None) };
        if target >= rows.len() {
            return ((f64::NAN, 0.0), Some(vec![(f64::NAN, 0.0); rows.len()]));
        }
        let (logits, slopes): (Vec<Bounded>, Vec<Bounded>) = rows.clone().map(|w| self.capped(dot(x, w))).unzip();
        let max = logits.iter().fold(f64::NEG_INFINITY, |max, z| max.max(z.0));
        let sum: f64 = logits.iter().map(|z| (z.0 - max).exp()).sum();
        let worst = logits.iter().fold(0.0f64, |worst, z| worst.max(z.1));
        // Statistics are of 64 logits; a thread merges every 256th, then come 5 merges of lanes and 8 of warps.
        let merges = logits.len().div_ceil(64).div_ceil(256) + 14;
        let exponential = |z: f64| (6.0 * merges as f64 + 30.0 + 2.0 * (max - z)) * unit(24);
        let normalizer = worst + logits.iter().map(|z| (z.0 - max).exp() / sum * exponential(z.0)).sum::<f64>();
        let (z, z_error) = logits[target];
        let loss = sum.ln() + (max - z);
        let loss_error = 1.01 * (normalizer + z_error) + unit(22) * (sum.ln().abs() + (max - z).abs() + loss.abs());

        let weight = f64::from(self.scale * self.weight(row));
        let gradient = |(column, z): (usize, &Bounded)| {
            let (p, one) = ((z.0 - max).exp() / sum, f64::from(u8::from(column == target)));
            let p_error = p * (z.1 + normalizer + exponential(z.0) + unit(22)).exp_m1() + (p + one) * unit(23);
            let (slope, slope_error) = slopes[column];
            let dz = weight * (p - one) * slope;
            let dz_error =
                weight.abs() * (p_error * (slope + slope_error) + (p - one).abs() * slope_error) * (1.0 + unit(8))
                    + unit(8) * dz.abs();
            // Smaller than the smallest normal number of f32 and bf16, p, dz and their product may be zero.
            let flushed = f64::from(f32::MIN_POSITIVE) * (1.0 + weight.abs() * slope.abs());
            (dz, dz_error + flushed)
        };
        ((loss, loss_error), Some(logits.iter().enumerate().map(gradient).collect()))
    }

    /// The loss of a row, not weighted, and its gradient.
    pub fn expected(&self, row: usize, h: usize) -> (Bounded, Vec<Bounded>) {
        let (loss, gradients) = self.gradients_of_logits(row, h);
        let Some(gradients) = gradients else { return (loss, vec![(0.0, 0.0); h]) };
        let terms = (gradients.len() + 8) as f64;
        let mut gradient = vec![(0.0, 0.0, 0.0); h];
        for ((dz, dz_error), w) in gradients.into_iter().zip(self.head.chunks_exact(h)) {
            for (to, w) in gradient.iter_mut().zip(w) {
                let w = f64::from(w.to_f32());
                *to = (to.0 + dz * w, to.1 + dz_error * w.abs(), to.2 + (dz * w).abs());
            }
        }
        let rounded = |(value, error, magnitude): (f64, f64, f64)| {
            (value, unit(8) * value.abs() + (1.0 + unit(8)) * (error + terms * unit(24) * magnitude))
        };
        (loss, gradient.into_iter().map(rounded).collect())
    }

    pub fn supervised(&self) -> usize {
        (0..self.targets.len()).filter(|&row| self.is_supervised(row)).count()
    }
}

/// Σ aᵢ·bᵢ and the largest error of an f32 sum of it, in any order.
fn dot(a: &[bf16], b: &[bf16]) -> Bounded {
    let (sum, magnitude) = a.iter().zip(b).fold((0.0, 0.0), |(sum, magnitude), (a, b)| {
        let product = f64::from(a.to_f32()) * f64::from(b.to_f32());
        (sum + product, magnitude + product.abs())
    });
    (sum, (a.len() + 8) as f64 * unit(24) * magnitude)
}

impl Buffers {
    /// Device memory beside the operation's inputs and outputs.
    pub fn transient_bytes(&self) -> usize {
        self.workspace.view().len()
    }
}

impl Loss {
    fn shape_of(&self, host: &Host) -> Shape {
        Shape { m: self.m, h: self.h, vocab: self.vocab, supervised: host.supervised(), chunk: self.chunk }
    }

    fn compare(
        &self,
        what: impl Fn() -> String,
        found: f64,
        (value, bound): Bounded,
    ) -> std::result::Result<(), String> {
        let exact = self.values == Values::Exact;
        let right = match value {
            value if value.is_nan() => found.is_nan(),
            value if exact => found == bf16::from_f64(value).to_f64(),
            value => (found - value).abs() <= bound + 1e-38,
        };
        if right { Ok(()) } else { Err(format!("{}: found {found}, expected {value}, bound {bound}", what())) }
    }
}

impl Operation for Loss {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        if self.gradient { "loss".into() } else { "loss without a gradient".into() }
    }

    fn shape(&self) -> String {
        format!("{} tokens, H {}, vocabulary {}, chunks of {}", self.m, self.h, self.vocab, self.chunk)
    }

    /// FLOPs as if every token had a target.
    fn flops(&self) -> f64 {
        let products = if self.gradient { 2.0 } else { 1.0 };
        products * 2.0 * self.m as f64 * self.h as f64 * self.vocab as f64
    }

    fn bytes(&self) -> f64 {
        let rows = self.vocab + if self.gradient { 2 * self.m } else { self.m };
        2.0 * rows as f64 * self.h as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 13);
        let Self { m, h, vocab, .. } = *self;
        let targets = (0..m)
            .map(|_| {
                let (has, unknown) = (stream.below(3) > 0, stream.below(8) == 0);
                let token = stream.below(vocab as u32) as i32;
                match self.targets {
                    Targets::All => token,
                    Targets::None => -1 - token,
                    Targets::Some | Targets::Unknown if !has => -100,
                    Targets::Unknown if unknown => vocab as i32 + token,
                    Targets::Some | Targets::Unknown => token,
                }
            })
            .collect();
        let mut uniform = |size: f32| bf16::from_f32((stream.uniform() * 2.0 - 1.0) * size);
        let (hidden, head) = match self.values {
            Values::Random { size } => {
                let hidden = (0..m * h).map(|_| uniform(size)).collect();
                (hidden, (0..vocab * h).map(|_| uniform(1.0)).collect())
            }
            Values::Exact => {
                let mut hidden = vec![bf16::ZERO; m * h];
                hidden.iter_mut().step_by(h).for_each(|x| *x = bf16::ONE);
                let integers: Vec<bf16> =
                    (0..vocab * h).map(|_| bf16::from_f32(stream.below(17) as f32 - 8.0)).collect();
                let mut head = integers;
                let mut order: Vec<usize> = (0..vocab).collect();
                stream.shuffle(&mut order);
                let alive = 1 << vocab.ilog2().min(8);
                for (i, row) in order.into_iter().enumerate() {
                    head[row * h] = if i < alive { bf16::ZERO } else { bf16::from_f32(-16384.0) };
                }
                (hidden, head)
            }
        };
        // From a stream of their own, so that all else is that of a loss without weights. Powers of two, where no
        // product is to be rounded.
        let mut stream = rng::RngStream::new(self.seed, 15);
        let mut weight = || match (stream.below(4), self.values) {
            (0, _) => 0.0,
            (_, Values::Exact) => [0.5, 1.0, 2.0, -1.0][stream.below(4) as usize],
            (_, Values::Random { .. }) => stream.uniform() * 4.0 - 2.0,
        };
        let weights = self.weighted.then(|| (0..m).map(|_| weight()).collect());
        let scale = if self.values == Values::Exact { 0.25 } else { 0.3 };
        Host { hidden, head, targets, weights, scale, soft_cap: self.soft_cap }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let shape = self.shape_of(host);
        Ok(Buffers {
            hidden: device.upload(&host.hidden)?,
            head: device.upload(&host.head)?,
            targets: device.upload(&host.targets)?,
            losses: device.upload(&vec![-7.0f32; self.m])?,
            state: device.upload(&[0x7777_7777_7777_7777u64; STATE_LEN])?,
            dhidden: device.upload(&vec![bf16::from_f32(-7.0); if self.gradient { self.m * self.h } else { 0 }])?,
            workspace: device.upload(&vec![0xffu8; workspace_bytes(&shape, self.gradient)?])?,
            shape,
            weights: host.weights.as_deref().map(|weights| device.upload(weights)).transpose()?,
            scale: host.scale,
            soft_cap: host.soft_cap,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { hidden, head, targets, losses, state, dhidden, workspace, weights, shape, scale, soft_cap } =
            buffers;
        let (hidden, head, targets) = (hidden.view(), head.view(), targets.view());
        let weights = weights.as_ref().map(Buffer::view);
        let (shape, gradient_scale, soft_cap) = (*shape, *scale, *soft_cap);
        let input = CrossEntropy { shape, gradient_scale, hidden, head, targets, weights, soft_cap };
        let dhidden = self.gradient.then(|| dhidden.view_mut());
        cross_entropy(&input, losses.view_mut(), state.view_mut(), dhidden, workspace.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let state = device.download(&buffers.state)?;
        Ok(Output {
            losses: device.download(&buffers.losses)?.into_iter().map(f32::to_bits).collect(),
            state: [state[0], state[1]],
            dhidden: device.download(&buffers.dhidden)?.into_iter().map(bf16::to_bits).collect(),
        })
    }

    fn check(&self, host: &Host, output: &Output, most: usize) -> std::result::Result<(), String> {
        let losses: Vec<f64> = output.losses.iter().map(|&bits| f32::from_bits(bits).into()).collect();
        let mut stream = rng::RngStream::new(self.seed, 14);
        for row in chosen(self.m, (most / self.h).max(2), &mut stream) {
            let ((loss, bound), gradient) = host.expected(row, self.h);
            let right = if loss.is_nan() { losses[row].is_nan() } else { (losses[row] - loss).abs() <= bound };
            if !right {
                return Err(format!("loss of row {row}: found {}, expected {loss}, bound {bound}", losses[row]));
            }
            for (i, (found, expected)) in output.dhidden.iter().skip(row * self.h).zip(gradient).enumerate() {
                self.compare(|| format!("dhidden[{row}, {i}]"), bf16::from_bits(*found).to_f64(), expected)?;
            }
        }
        // The sum is of the losses as they were found, weighted, in f64.
        let state = LossState::from_words(output.state);
        let weight = |row| if host.is_supervised(row) { f64::from(host.weight(row)) } else { 0.0 };
        let weighted = losses.iter().enumerate().map(|(row, loss)| weight(row) * loss);
        let (sum, magnitude) = weighted.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
        let bad = losses.iter().position(|loss| !loss.is_finite());
        let summed = if bad.is_some() {
            state.sum.is_nan()
        } else {
            (state.sum - sum).abs() <= 2.0 * self.m as f64 * unit(53) * magnitude
        };
        let expected = LossState { sum, not_finite: bad, supervised: host.supervised() };
        let right = summed && (state.not_finite, state.supervised) == (bad, host.supervised());
        if right { Ok(()) } else { Err(format!("found {state:?}, expected {expected:?}")) }
    }
}

impl Host {
    pub fn logit(&self, row: usize, token: usize, h: usize) -> f64 {
        let (x, w) = (&self.hidden[row * h..][..h], &self.head[token * h..][..h]);
        x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
    }
}
