//! The output layer and the loss.

use super::operands::{CudaBuffer, CudaTable};
use super::{Cuda, zeros};
use crate::backend::cpu::Dims;
use crate::error::{Error, Result};
use crate::refuse;
use qlora_kernels::cuda::cross_entropy::{self, CrossEntropy, LossState, Shape};
use qlora_kernels::cuda::logits::{OutputLayer, logits};
use qlora_kernels::cuda::{Buffer, Device, ViewMut};

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
    /// `[vocab]` of every token whose logits are computed together; made when there is one
    logits: Vec<Buffer<f32>>,
}

impl LossMemory {
    pub fn new(device: &Device, held: &mut u64, dims: &Dims) -> Result<Self> {
        let &Dims { tokens, hidden, vocab, training, .. } = dims;
        let shape = Shape { m: tokens, h: hidden, vocab, supervised: tokens, chunk: CHUNK };
        let workspace = cross_entropy::workspace_bytes(&shape, training)?;
        Ok(Self {
            losses: zeros(device, held, "losses", tokens)?,
            state: zeros(device, held, "losses", cross_entropy::STATE_LEN)?,
            workspace: zeros(device, held, "the logits of the loss", workspace)?,
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
    ) -> Result<f64> {
        let (m, vocab) = (self.tokens(), head.vocab);
        let targets = &self.batch.targets;
        if let Some(target) = targets.iter().find(|&&target| target >= 0 && target as usize >= vocab) {
            refuse!("token id {target} is outside the vocabulary of {vocab}");
        }
        let supervised = targets.iter().filter(|&&target| target >= 0).count();
        let input = CrossEntropy {
            shape: Shape { m, h: head.hidden, vocab, supervised, chunk: CHUNK },
            weight,
            hidden: x.rows(m),
            head: head.data.view(),
            targets: self.on_device.targets.view().first(m),
        };
        let LossMemory { losses, state, workspace, .. } = &mut self.loss;
        let dhidden = dx.map(|dx| dx.rows_mut(m));
        let losses = losses.view_mut().first(m);
        let stream = self.device.stream();
        cross_entropy::cross_entropy(&input, losses, state.view_mut(), dhidden, workspace.view_mut(), stream)?;
        let words = self.device.download(state)?;
        let found = LossState::from_words([words[0], words[1]]);
        match found.not_finite {
            None => Ok(found.sum),
            Some(row) => Err(self.not_finite(row)),
        }
    }

    /// Names the row of the batch that has no finite loss.
    fn not_finite(&self, row: usize) -> Error {
        let document = self.batch.boundaries.partition_point(|&begin| begin as usize <= row).max(1) - 1;
        Error::Failed(format!(
            "the loss of the token at position {} of row {} of the micro-batch (row {row} of the hidden states, target id {}) is \
             not finite; nothing was updated. A lower learning_rate is the usual cure",
            self.batch.positions[row], document, self.batch.targets[row]
        ))
    }

    /// In f32, as they are summed; the output layer is read once for [`LOGITS`] tokens.
    pub(super) fn logits_of(&mut self, x: &CudaBuffer, head: &CudaTable, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        let (m, h, vocab) = (self.tokens(), head.hidden, head.vocab);
        while self.loss.logits.len() < tokens.len().min(LOGITS) {
            let row = self.zeros("logits", vocab)?;
            self.loss.logits.push(row);
        }
        let layer = OutputLayer { m, h, vocab, hidden: x.rows(m), head: head.data.view() };
        let mut found = Vec::with_capacity(tokens.len());
        for tokens in tokens.chunks(LOGITS) {
            let rows: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
            let buffers = &mut self.loss.logits[..rows.len()];
            let mut outputs: Vec<ViewMut<'_, f32>> = buffers.iter_mut().map(Buffer::view_mut).collect();
            logits(&layer, &rows, &mut outputs, self.device.stream())?;
            for buffer in buffers.iter() {
                found.push(self.device.download(buffer)?);
            }
        }
        Ok(found)
    }
}
