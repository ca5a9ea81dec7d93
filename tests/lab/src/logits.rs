//! The output layer of a few tokens as an [`Operation`], against exact products of the same bf16 inputs.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream, ViewMut};
use qlora_kernels::ops::logits::{OutputLayer, logits};
use qlora_kernels::rng;

#[derive(Clone, Debug)]
pub struct LogitsOperation {
    pub m: usize,
    pub h: usize,
    pub vocab: usize,
    /// Each below m; any order, also twice the same.
    pub tokens: Vec<u32>,
    pub seed: u64,
}

pub struct Host {
    pub hidden: Vec<bf16>,
    pub head: Vec<bf16>,
}

pub struct Buffers {
    hidden: Buffer<bf16>,
    head: Buffer<bf16>,
    logits: Vec<Buffer<f32>>,
}

impl Operation for LogitsOperation {
    type Inputs = Host;
    type Buffers = Buffers;
    /// f32 bits, token by token.
    type Output = Vec<u32>;

    fn name(&self) -> String {
        "logits".into()
    }

    fn shape(&self) -> String {
        format!("{} tokens, H {}, vocabulary {}", self.tokens.len(), self.h, self.vocab)
    }

    fn flops(&self) -> f64 {
        2.0 * (self.tokens.len() * self.h * self.vocab) as f64
    }

    fn bytes(&self) -> f64 {
        (2 * self.h * (self.vocab + self.tokens.len()) + 4 * self.tokens.len() * self.vocab) as f64
    }

    /// Rows that no token names are NaN.
    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 22);
        let mut numbers = |len: usize| to_bf16(&(0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect::<Vec<f32>>());
        let (mut hidden, head) = (numbers(self.m * self.h), numbers(self.vocab * self.h));
        for (row, values) in hidden.chunks_mut(self.h).enumerate() {
            if !self.tokens.contains(&(row as u32)) {
                values.fill(bf16::NAN);
            }
        }
        Host { hidden, head }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let logits = self.tokens.iter().map(|_| device.upload(&vec![f32::NAN; self.vocab])).collect::<Result<_>>()?;
        Ok(Buffers { hidden: device.upload(&host.hidden)?, head: device.upload(&host.head)?, logits })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        let &Self { m, h, vocab, .. } = self;
        let layer = OutputLayer { m, h, vocab, hidden: buffers.hidden.view(), head: buffers.head.view() };
        let mut outputs: Vec<ViewMut<'_, f32>> = buffers.logits.iter_mut().map(Buffer::view_mut).collect();
        logits(&layer, &self.tokens, &mut outputs, stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Vec<u32>> {
        let mut bits = Vec::new();
        for logits in &buffers.logits {
            bits.extend(device.download(logits)?.into_iter().map(f32::to_bits));
        }
        Ok(bits)
    }

    /// Products of two bf16 are exact in f32; a sum errs by 2⁻²⁴ of its terms' magnitudes a term, in any order.
    fn check(&self, host: &Host, output: &Vec<u32>, most: usize) -> std::result::Result<(), String> {
        let step = (output.len() / most).max(1);
        for i in (0..output.len()).step_by(step) {
            let (token, row) = (self.tokens[i / self.vocab] as usize, i % self.vocab);
            let terms = host.hidden[token * self.h..][..self.h].iter().zip(&host.head[row * self.h..][..self.h]);
            let (mut expected, mut magnitude) = (0.0, 0.0);
            for (x, w) in terms {
                expected += x.to_f64() * w.to_f64();
                magnitude += (x.to_f64() * w.to_f64()).abs();
            }
            let (found, bound) = (f64::from(f32::from_bits(output[i])), self.h as f64 * 2f64.powi(-24) * magnitude);
            if (found - expected).abs() > bound || found.is_nan() {
                return Err(format!("token {token}, row {row}: found {found}, expected {expected}, bound {bound}"));
            }
        }
        Ok(())
    }
}
