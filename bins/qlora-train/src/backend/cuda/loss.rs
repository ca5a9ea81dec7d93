//! The output layer and the loss.

use super::Cuda;
use super::memory::{Memory, fetch};
use super::operands::{CudaBuffer, CudaTable};
use crate::backend::dims::Dims;
use crate::error::Result;
use crate::refuse;
use qlora_kernels::device::{Buffer, ReadbackStaging, ViewMut};
use qlora_kernels::ops::cross_entropy::{self, CrossEntropy, LossState, Shape};
use qlora_kernels::ops::logits::{OutputLayer, logits};

/// Tokens whose logits exist at one time, at most as many as a batch has.
const CHUNK: usize = cross_entropy::CHUNK;

/// Tokens whose logits are computed together.
const LOGITS: usize = 16;

/// What the loss needs beside its operands.
pub struct LossMemory {
    /// `[tokens]`
    losses: Buffer<f32>,
    state: Buffer<u64>,
    workspace: Buffer<u8>,
    /// Where the state is read; none while planning.
    outbox: Option<ReadbackStaging<u64>>,
    /// `[vocab]` of every token whose logits are computed together; made when there is one
    logits: Vec<Buffer<f32>>,
}

impl LossMemory {
    pub fn new(memory: &Memory, dims: &Dims) -> Result<Self> {
        let &Dims { tokens, hidden, vocab, training, .. } = dims;
        let shape = Shape { m: tokens, h: hidden, vocab, supervised: tokens, chunk: CHUNK };
        let workspace = cross_entropy::workspace_bytes(&shape, training)?;
        Ok(Self {
            losses: memory.take("losses", tokens)?,
            state: memory.take("losses", cross_entropy::STATE_LEN)?,
            workspace: memory.take("logits of the loss", workspace)?,
            outbox: memory.outbox(cross_entropy::STATE_LEN)?,
            logits: Vec::new(),
        })
    }
}

impl Cuda {
    pub(super) fn cross_entropy(
        &mut self,
        x: &CudaBuffer,
        head: &CudaTable,
        weight: f32,
        dx: Option<&mut CudaBuffer>,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, vocab) = (self.tokens(), head.vocab);
        let targets = &self.batch.targets;
        if let Some(target) = targets.iter().find(|&&target| target >= 0 && target as usize >= vocab) {
            refuse!("token id {target} is outside the vocabulary of {vocab}");
        }
        let supervised = targets.iter().filter(|&&target| target >= 0).count();
        let input = CrossEntropy {
            shape: Shape { m, h: head.hidden, vocab, supervised, chunk: CHUNK },
            gradient_scale: weight,
            weights: None,
            hidden: x.rows(m),
            head: head.data.view(),
            targets: self.on_device.targets.view().first(m),
        };
        let LossMemory { losses, state, workspace, outbox, .. } = &mut self.loss;
        let dhidden = dx.map(|dx| dx.rows_mut(m));
        let losses = losses.view_mut().first(m);
        cross_entropy::cross_entropy(&input, losses, state.view_mut(), dhidden, workspace.view_mut(), stream)?;
        fetch(&self.memory, outbox, state)
    }

    /// The sum of the last losses, NaN if one is not finite.
    pub(super) fn read_loss(&mut self) -> Result<f64> {
        let Some(outbox) = &mut self.loss.outbox else { return Ok(0.0) };
        let words = outbox.wait()?;
        let found = LossState::from_words([words[0], words[1]]);
        Ok(if found.not_finite.is_some() { f64::NAN } else { found.sum })
    }

    /// In f32, as they are summed; the output layer is read once for [`LOGITS`] tokens.
    pub(super) fn logits_of(&mut self, x: &CudaBuffer, head: &CudaTable, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        let (m, h, vocab) = (self.tokens(), head.hidden, head.vocab);
        while self.loss.logits.len() < tokens.len().min(LOGITS) {
            self.loss.logits.push(self.memory.take("logits", vocab)?);
        }
        let Some(stream) = self.memory.stream() else { return Ok(vec![vec![0.0; vocab]; tokens.len()]) };
        let layer = OutputLayer { m, h, vocab, hidden: x.rows(m), head: head.data.view() };
        let mut found = Vec::with_capacity(tokens.len());
        for tokens in tokens.chunks(LOGITS) {
            let rows: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
            let buffers = &mut self.loss.logits[..rows.len()];
            let mut outputs: Vec<ViewMut<'_, f32>> = buffers.iter_mut().map(Buffer::view_mut).collect();
            logits(&layer, &rows, &mut outputs, stream)?;
            for buffer in buffers.iter() {
                found.push(self.memory.download(buffer)?);
            }
        }
        Ok(found)
    }
}
