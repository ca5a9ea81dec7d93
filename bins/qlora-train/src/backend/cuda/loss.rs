//! The output layer and the loss.

use super::batch::BatchMemory;
use super::memory::{DeviceMemory, fetch};
use super::operands::{CudaBuffer, CudaTable, TableParts};
use crate::backend::CheckedBatch;
use crate::backend::run_shape::RunShape;
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, ReadbackStaging, View, ViewMut};
use qlora_kernels::ops::cross_entropy::{self, CrossEntropy, HeadGradient, LossState, Shape};
use qlora_kernels::ops::logits::{OutputLayer, logits};
use std::ops::Range;

/// Tokens whose logits exist at one time, at most as many as a batch has.
const CHUNK: usize = cross_entropy::CHUNK;

/// Tokens whose logits are computed together.
const LOGITS: usize = 16;

/// Memory of the loss beside its operands.
pub struct LossMemory {
    /// `[tokens]`
    losses: Buffer<f32>,
    state: Buffer<u64>,
    workspace: Buffer<u8>,
    /// Host memory that the state is read back to; none in a dry run.
    readback: Option<ReadbackStaging<u64>>,
    /// `[vocab]` of every token whose logits are computed together; made when there is one
    logits: Vec<Buffer<f32>>,
    /// The last losses were computed of all tokens at once, and summed on the device.
    whole: bool,
}

impl LossMemory {
    pub fn new(memory: &DeviceMemory, dims: &RunShape) -> Result<Self> {
        let &RunShape { tokens, hidden, vocab, training, trains_head, head_rows, .. } = dims;
        let shape = Shape { m: tokens, h: hidden, vocab, supervised: tokens, chunk: CHUNK };
        let workspace = match trains_head {
            true => cross_entropy::workspace_bytes_with_head(&shape, Some(head_rows).filter(|&rows| rows > 0))?,
            false => cross_entropy::workspace_bytes(&shape, training)?,
        };
        Ok(Self {
            losses: memory.alloc("losses", tokens)?,
            state: memory.alloc("losses", cross_entropy::STATE_LEN)?,
            workspace: memory.alloc("logits of the loss", workspace)?,
            readback: memory.readback(cross_entropy::STATE_LEN)?,
            logits: Vec::new(),
            whole: true,
        })
    }
}

/// Targets of the tokens of a range.
pub struct Targets<'a> {
    pub batch: &'a CheckedBatch,
    pub tokens: &'a Range<usize>,
    /// Targets of the range
    pub device: View<'a, i32>,
    /// Weights of the range; none: 1 each
    pub device_weights: Option<View<'a, f32>>,
}

impl<'a> Targets<'a> {
    pub fn of(batch: &'a CheckedBatch, on_device: &'a BatchMemory, tokens: &'a Range<usize>) -> Self {
        let device_weights = (!batch.weights.is_empty()).then(|| on_device.weights.rows(tokens));
        Self { batch, tokens, device: on_device.targets.rows(tokens), device_weights }
    }
}

/// The output layer, and its gradient where it is trained.
pub struct Head<'a> {
    vocab: usize,
    hidden: usize,
    /// `[vocab, hidden]`
    values: View<'a, bf16>,
    gradient: Option<HeadGradient<'a>>,
}

impl<'a> Head<'a> {
    /// A table whose values are on the device.
    pub fn frozen(table: &CudaTable, values: View<'a, bf16>) -> Self {
        Self { vocab: table.vocab, hidden: table.hidden, values, gradient: None }
    }

    pub fn trained(table: &'a mut CudaTable) -> Self {
        let (vocab, hidden) = (table.vocab, table.hidden);
        let TableParts { values, rows, gradient } = table.parts();
        let gradient = gradient.map(|gradient| HeadGradient { rows, gradient });
        Self { vocab, hidden, values, gradient }
    }
}

impl LossMemory {
    /// The losses, the gradient of `x` where it is asked for, and that of a head that is trained.
    pub fn cross_entropy(
        &mut self,
        memory: &DeviceMemory,
        targets: Targets<'_>,
        x: &CudaBuffer,
        head: Head<'_>,
        weight: f32,
        soft_cap: Option<f32>,
        dx: Option<&mut CudaBuffer>,
    ) -> Result<()> {
        let Targets { batch, tokens, device, device_weights } = targets;
        let supervised = tokens.clone().filter(|&token| batch.counts(token)).count();
        let input = CrossEntropy {
            shape: Shape { m: tokens.len(), h: head.hidden, vocab: head.vocab, supervised, chunk: CHUNK },
            gradient_scale: weight,
            weights: device_weights,
            hidden: x.rows(tokens)?,
            head: head.values,
            targets: device,
            soft_cap,
        };
        let dhidden = dx.map(|dx| dx.rows_mut(tokens)).transpose()?;
        let losses = self.losses.view_mut().skip(tokens.start).first(tokens.len());
        let (state, workspace, stream) = (self.state.view_mut(), self.workspace.view_mut(), memory.stream());
        match (dhidden, head.gradient) {
            (Some(dhidden), Some(dhead)) => {
                let with_head = cross_entropy::cross_entropy_with_head;
                with_head(&input, losses, state, dhidden, dhead, workspace, stream)?;
            }
            (dhidden, _) => cross_entropy::cross_entropy(&input, losses, state, dhidden, workspace, stream)?,
        }
        self.whole = tokens.len() == batch.tokens();
        if self.whole { fetch(&mut self.readback, &self.state) } else { Ok(()) }
    }

    /// The sum of a batch's losses, NaN if one is not finite.
    pub fn read(&mut self, memory: &DeviceMemory, batch: &CheckedBatch) -> Result<f64> {
        if !self.whole {
            return Ok(sum(&memory.download(&self.losses)?[..batch.tokens()], &batch.weights));
        }
        let readback = self.readback.as_mut().expect("it is there while running");
        let words = readback.wait()?;
        let found = LossState::from_words([words[0], words[1]]);
        Ok(if found.not_finite.is_some() { f64::NAN } else { found.sum })
    }

    /// The weighted losses of the batch's tokens that count, in order.
    pub fn read_each(&self, memory: &DeviceMemory, batch: &CheckedBatch) -> Result<Vec<f64>> {
        let losses = memory.download(&self.losses)?;
        let weight = |token: usize| batch.weights.get(token).copied().map_or(1.0, f64::from);
        let counted = (0..batch.tokens()).filter(|&token| batch.counts(token));
        Ok(counted.map(|token| f64::from(losses[token]) * weight(token)).collect())
    }

    /// Room for the logits of as many tokens as are computed together.
    pub fn reserve_logits(&mut self, memory: &DeviceMemory, vocab: usize, tokens: usize) -> Result<()> {
        while self.logits.len() < tokens.min(LOGITS) {
            self.logits.push(memory.alloc("logits", vocab)?);
        }
        Ok(())
    }

    /// In f32, as they are summed; the output layer is read once for [`LOGITS`] tokens. `hidden` is of the whole batch.
    pub fn logits(
        &mut self,
        memory: &DeviceMemory,
        hidden: View<'_, bf16>,
        head: Head<'_>,
        tokens: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let (m, h, vocab) = (hidden.len() / head.hidden, head.hidden, head.vocab);
        let layer = OutputLayer { m, h, vocab, hidden, head: head.values };
        let mut found = Vec::with_capacity(tokens.len());
        for tokens in tokens.chunks(LOGITS) {
            let rows: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
            let buffers = &mut self.logits[..rows.len()];
            let mut outputs: Vec<ViewMut<'_, f32>> = buffers.iter_mut().map(Buffer::view_mut).collect();
            logits(&layer, &rows, &mut outputs, memory.stream())?;
            for buffer in buffers.iter() {
                found.push(memory.download(buffer)?);
            }
        }
        Ok(found)
    }
}

/// The sum of a batch that was cut into ranges, with the bits of the kernel's sum over a whole one: 256 tokens at a
/// time, of each lane of a warp every 32nd in order, then of the lanes in pairs.
fn sum(losses: &[f32], weights: &[f32]) -> f64 {
    if losses.iter().any(|loss| !loss.is_finite()) {
        return f64::NAN;
    }
    let weighted = |(token, &loss): (usize, &f32)| {
        weights.get(token).map_or(f64::from(loss), |&weight| f64::from(loss) * f64::from(weight))
    };
    let losses: Vec<f64> = losses.iter().enumerate().map(weighted).collect();
    let mut total = 0.0;
    for losses in losses.chunks(256) {
        let mut lanes = [0.0f64; 32];
        for losses in losses.chunks(32) {
            lanes.iter_mut().zip(losses).for_each(|(lane, &loss)| *lane += loss);
        }
        let mut width = 16;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        total += lanes[0];
    }
    total
}
