//! Magnitudes of a linear layer's outputs and their gradients as an [`Operation`], against `reference` in f64 on the
//! same inputs.
//!
//! A result is rounded once, to bf16 or in an f32 sum, from f32 arithmetic whose errors are counted in units of 2⁻²⁴ of
//! the magnitudes that enter it.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::magnitude_backward::workspace_bytes;
use qlora_kernels::ops::{Magnitude, OutputGradient, magnitude, magnitude_backward};
use qlora_kernels::{reference, rng};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Direction {
    Forward,
    Backward,
    /// Backward without the gradient of the magnitudes.
    BackwardOfOutput,
    /// Backward of a layer without magnitudes.
    BackwardWithout,
}

/// `[m, n]`, rows `n + pad` apart.
#[derive(Clone, Debug)]
pub struct Magnitudes {
    pub m: usize,
    pub n: usize,
    pub pad: usize,
    pub bias: bool,
    pub direction: Direction,
    pub seed: u64,
}

pub struct Host {
    /// `[m, n + pad]`, before it is written
    y: Vec<bf16>,
    /// `[m, n + pad]`
    dy: Vec<bf16>,
    magnitude: Vec<f32>,
    /// One of eight is 0
    norms: Vec<f32>,
    bias: Vec<bf16>,
    /// Before it is added to
    dmagnitude: Vec<f32>,
}

pub struct Buffers {
    y: Buffer<bf16>,
    dy: Buffer<bf16>,
    magnitude: Buffer<f32>,
    norms: Buffer<f32>,
    bias: Buffer<bf16>,
    dmagnitude: Buffer<f32>,
    workspace: Buffer<u8>,
}

/// All of it as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub y: Vec<u16>,
    pub dmagnitude: Vec<u32>,
}

/// Columns past n, which must stay as they are.
const SENTINEL: bf16 = bf16::from_bits(0x4bcd);

/// An expected value, and the magnitude of what enters it.
type Bounded = (f64, f64);

impl Magnitudes {
    fn ld(&self) -> usize {
        self.n + self.pad
    }

    /// Expected y `[m, n]` and gradient of the magnitudes `[n]`.
    fn expected(&self, host: &Host) -> (Vec<Bounded>, Vec<Bounded>) {
        let rows = |values: &[bf16]| -> Vec<f64> {
            values.chunks(self.ld()).flat_map(|row| &row[..self.n]).map(|x| x.to_f64()).collect()
        };
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let absolute = |values: &[f64]| values.iter().map(|x| x.abs()).collect::<Vec<f64>>();
        let (y, dy, m, norms) = (rows(&host.y), rows(&host.dy), wide(&host.magnitude), wide(&host.norms));
        let bias: Option<Vec<f64>> = self.bias.then(|| host.bias.iter().map(|x| x.to_f64()).collect());
        let before = wide(&host.dmagnitude);
        let as_it_was = before.iter().map(|&x| (x, 0.0)).collect();
        match self.direction {
            Direction::BackwardWithout => (dy.iter().map(|&dy| (dy, 0.0)).collect(), as_it_was),
            Direction::Forward => {
                let (mut value, mut magnitude) = (y.clone(), absolute(&y));
                reference::magnitude(&m, &norms, bias.as_deref(), &mut value);
                // With y − bias as large as both together.
                let (m, bias) = (absolute(&m), bias.as_deref().map(absolute));
                if let Some(bias) = &bias {
                    magnitude.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % self.n]);
                }
                reference::magnitude(&m, &norms, None, &mut magnitude);
                if let Some(bias) = &bias {
                    magnitude.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % self.n]);
                }
                (value.into_iter().zip(magnitude).collect(), as_it_was)
            }
            Direction::Backward | Direction::BackwardOfOutput => {
                let (mut z, mut dm) = (y.clone(), before.clone());
                reference::magnitude_backward(&dy, &m, &norms, bias.as_deref(), &mut z, &mut dm);
                // −|bias| is taken away, and so added.
                let (mut of_z, mut of_dm) = (absolute(&y), absolute(&before));
                let negative: Option<Vec<f64>> = bias.map(|bias| bias.iter().map(|x| -x.abs()).collect());
                let (of_dy, of_m) = (absolute(&dy), absolute(&m));
                reference::magnitude_backward(&of_dy, &of_m, &norms, negative.as_deref(), &mut of_z, &mut of_dm);
                let z = z.into_iter().zip(of_z).collect();
                let wanted = self.direction == Direction::Backward;
                (z, if wanted { dm.into_iter().zip(of_dm).collect() } else { as_it_was })
            }
        }
    }
}

impl Operation for Magnitudes {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        if self.direction == Direction::Forward { "magnitudes".into() } else { "magnitudes backward".into() }
    }

    fn shape(&self) -> String {
        format!("{}×{}", self.m, self.n)
    }

    fn flops(&self) -> f64 {
        0.0
    }

    fn bytes(&self) -> f64 {
        let matrices = if self.direction == Direction::Forward { 2.0 } else { 3.0 };
        matrices * (2 * self.m * self.n) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 22);
        let mut uniform = || stream.uniform() * 2.0 - 1.0;
        let mut numbers = |len: usize| (0..len).map(|_| uniform()).collect::<Vec<f32>>();
        let (y, dy, bias) = (numbers(self.m * self.ld()), numbers(self.m * self.ld()), numbers(self.n));
        let (magnitude, norms, dmagnitude) = (numbers(self.n), numbers(self.n), numbers(self.n));
        let mut y = to_bf16(&y);
        y.chunks_mut(self.ld()).for_each(|row| row[self.n..].fill(SENTINEL));
        let norms = norms.iter().enumerate().map(|(i, x)| if i % 8 == 5 { 0.0 } else { 0.25 + x.abs() }).collect();
        Host { y, dy: to_bf16(&dy), magnitude, norms, bias: to_bf16(&bias), dmagnitude }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        Ok(Buffers {
            y: device.upload(&host.y)?,
            dy: device.upload(&host.dy)?,
            magnitude: device.upload(&host.magnitude)?,
            norms: device.upload(&host.norms)?,
            bias: device.upload(&host.bias)?,
            dmagnitude: device.upload(&host.dmagnitude)?,
            workspace: device.upload(&vec![0xffu8; workspace_bytes(self.m, self.n)])?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let Buffers { y, dy, magnitude: m, norms, bias, dmagnitude, workspace } = buffers;
        let bias = self.bias.then(|| bias.view());
        let layer = Magnitude { magnitude: m.view(), norms: norms.view(), bias };
        if self.direction == Direction::Forward {
            return magnitude(&layer, self.m, y.view_mut(), self.ld(), stream);
        }
        let (layer, wanted) = match self.direction {
            Direction::BackwardWithout => (None, false),
            direction => (Some(&layer), direction == Direction::Backward),
        };
        let (m, n, ld) = (self.m, self.n, self.ld());
        let output = OutputGradient { m, n, dy: dy.view(), lddy: ld, z: y.view_mut(), ldz: ld };
        let dmagnitude = wanted.then(|| dmagnitude.view_mut());
        magnitude_backward(layer, output, dmagnitude, workspace.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        Ok(Output {
            y: device.download(&buffers.y)?.into_iter().map(bf16::to_bits).collect(),
            dmagnitude: device.download(&buffers.dmagnitude)?.into_iter().map(f32::to_bits).collect(),
        })
    }

    fn check(&self, host: &Host, output: &Output, _: usize) -> std::result::Result<(), String> {
        let (y, dmagnitude) = self.expected(host);
        let unit = |bits: i32| 2f64.powi(-bits);
        let compare = |what: String, found: f64, expected: f64, bound: f64| {
            // A bound of 0: the value is copied.
            let right = (found - expected).abs() <= bound;
            if right { Ok(()) } else { Err(format!("{what}: found {found}, expected {expected}, bound {bound}")) }
        };
        for (row, found) in output.y.chunks(self.ld()).enumerate() {
            for (i, &bits) in found.iter().enumerate() {
                if i >= self.n {
                    let same = bits == SENTINEL.to_bits();
                    if !same {
                        return Err(format!("column {i} of row {row} is beyond n and was written"));
                    }
                    continue;
                }
                let (expected, magnitude) = y[row * self.n + i];
                let rounded = if magnitude > 0.0 { unit(8) * expected.abs() } else { 0.0 };
                let bound = rounded + 8.0 * unit(24) * magnitude;
                compare(format!("y[{row}, {i}]"), bf16::from_bits(bits).to_f64(), expected, bound)?;
            }
        }
        // 16 tokens of a thread, 16 threads, the division, and the chunks.
        let roundings = (40 + self.m.div_ceil(256)) as f64 * unit(24);
        for (i, (&bits, (expected, magnitude))) in output.dmagnitude.iter().zip(dmagnitude).enumerate() {
            let found = f64::from(f32::from_bits(bits));
            compare(format!("gradient of magnitude {i}"), found, expected, roundings * magnitude)?;
        }
        Ok(())
    }
}
