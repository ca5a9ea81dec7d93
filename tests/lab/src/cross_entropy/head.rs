//! The loss with the gradient of an output layer that is trained, or of some of its rows. All else is bit for bit that
//! of the loss without it.

use super::{Buffers, Host, Loss, Output, unit};
use crate::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::cross_entropy::{CrossEntropy, HeadGradient};
use qlora_kernels::ops::cross_entropy::{cross_entropy_with_head, workspace_bytes_with_head};
use qlora_kernels::rng;

/// A loss with a gradient.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    pub loss: Loss,
    /// Rows whose gradients are wanted, one of them perhaps none of the vocabulary; `None`: all
    pub rows: Option<Vec<u32>>,
}

pub struct HeadBuffers {
    loss: Buffers,
    rows: Option<Buffer<u32>>,
    dhead: Buffer<f32>,
}

/// All of it as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadOutput {
    pub loss: Output,
    /// `[vocab, h]`, or `[rows, h]`
    pub dhead: Vec<u32>,
}

impl HeadLoss {
    /// The wanted rows of a table `[vocab, h]`; those that it does not have are zeros.
    pub fn wanted<T: Copy + Default>(&self, table: &[T]) -> Vec<T> {
        let (h, Some(rows)) = (self.loss.h, &self.rows) else { return table.to_vec() };
        let row = |&row: &u32| match table.chunks_exact(h).nth(row as usize) {
            Some(row) => row.to_vec(),
            None => vec![T::default(); h],
        };
        rows.iter().flat_map(row).collect()
    }

    /// The gradient as it was before: powers of two, which round no exact sum.
    fn before(&self) -> Vec<f32> {
        let mut stream = rng::RngStream::new(self.loss.seed, 16);
        let table = (0..self.loss.vocab * self.loss.h).map(|_| [0.0, 0.5, -1.0, 2.0][stream.below(4) as usize]);
        self.wanted(&table.collect::<Vec<f32>>())
    }
}

impl Operation for HeadLoss {
    type Inputs = Host;
    type Buffers = HeadBuffers;
    type Output = HeadOutput;

    fn name(&self) -> String {
        "loss of a trained output layer".into()
    }

    fn shape(&self) -> String {
        match &self.rows {
            None => self.loss.shape(),
            Some(rows) => format!("{}, {} rows", self.loss.shape(), rows.len()),
        }
    }

    fn flops(&self) -> f64 {
        let share = self.rows.as_ref().map_or(1.0, |rows| rows.len() as f64 / self.loss.vocab as f64);
        (1.0 + 0.5 * share) * self.loss.flops()
    }

    fn bytes(&self) -> f64 {
        let rows = self.rows.as_ref().map_or(self.loss.vocab, Vec::len);
        self.loss.bytes() + (8 * rows * self.loss.h) as f64
    }

    fn inputs(&self) -> Host {
        self.loss.inputs()
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<HeadBuffers> {
        let mut loss = self.loss.upload(device, host)?;
        let bytes = workspace_bytes_with_head(&loss.shape, self.rows.as_ref().map(Vec::len))?;
        loss.workspace = device.upload(&vec![0xffu8; bytes])?;
        let rows = self.rows.as_ref().map(|rows| device.upload(rows)).transpose()?;
        Ok(HeadBuffers { loss, rows, dhead: device.upload(&self.before())? })
    }

    fn launch(&self, buffers: &mut HeadBuffers, stream: Stream) -> Result<()> {
        let HeadBuffers { loss, rows, dhead } = buffers;
        let Buffers { hidden, head, targets, losses, state, dhidden, workspace, weights, shape, scale, soft_cap } =
            loss;
        let (hidden, head, targets) = (hidden.view(), head.view(), targets.view());
        let weights = weights.as_ref().map(Buffer::view);
        let (shape, gradient_scale, soft_cap) = (*shape, *scale, *soft_cap);
        let input = CrossEntropy { shape, gradient_scale, hidden, head, targets, weights, soft_cap };
        let (losses, state) = (losses.view_mut(), state.view_mut());
        let (dhidden, workspace) = (dhidden.view_mut(), workspace.view_mut());
        let dhead = HeadGradient { rows: rows.as_ref().map(Buffer::view), gradient: dhead.view_mut() };
        cross_entropy_with_head(&input, losses, state, dhidden, dhead, workspace, stream)
    }

    fn download(&self, device: &Device, buffers: &HeadBuffers) -> Result<HeadOutput> {
        let dhead = device.download(&buffers.dhead)?.into_iter().map(f32::to_bits).collect();
        Ok(HeadOutput { loss: self.loss.download(device, &buffers.loss)?, dhead })
    }

    fn check(&self, host: &Host, output: &HeadOutput, most: usize) -> std::result::Result<(), String> {
        let Loss { m, h, .. } = self.loss;
        self.loss.check(host, &output.loss, most)?;
        // (expected, the largest error of the kernels, magnitude)
        let mut gradient = vec![(0.0, 0.0, 0.0); self.loss.vocab * h];
        let mut supervised = 0;
        for row in 0..m {
            let Some(of_logits) = host.gradients_of_logits(row, h).1 else { continue };
            supervised += 1;
            let x = &host.hidden[row * h..][..h];
            for (to, (dz, error)) in gradient.chunks_exact_mut(h).zip(of_logits) {
                for (to, x) in to.iter_mut().zip(x.iter().map(|x: &bf16| x.to_f64())) {
                    *to = (to.0 + dz * x, to.1 + error * x.abs(), to.2 + (dz * x).abs());
                }
            }
        }
        // Tokens of a chunk of 256, and the chunks.
        let terms = (256.min(supervised) + supervised / 256 + 8) as f64 * unit(24);
        let gradient = self.wanted(&gradient).into_iter().zip(self.before());
        for (i, (&bits, ((value, error, magnitude), before))) in output.dhead.iter().zip(gradient).enumerate() {
            let (value, magnitude) = (value + f64::from(before), magnitude + f64::from(before.abs()));
            let bound = error + terms * (magnitude + error);
            let what = || format!("dhead[{}, {}]", i / h, i % h);
            let found = f64::from(f32::from_bits(bits));
            let right = if value.is_nan() { found.is_nan() } else { (found - value).abs() <= bound };
            if !right {
                return Err(format!("{}: found {found}, expected {value}, bound {bound}", what()));
            }
        }
        Ok(())
    }
}
