//! The output layer and the loss.

use super::operands::{CudaBuffer, CudaTable};
use super::{Cuda, zeros};
use crate::backend::cpu::Dims;
use crate::error::{Error, Result};
use crate::refuse;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::cuda::cross_entropy::{self, CrossEntropy, LossState, Shape};
use qlora_kernels::cuda::linear::{self, Input, Segment, Weight};
use qlora_kernels::cuda::{Buffer, Device};

/// Tokens whose logits exist at one time, at most as many as a batch has.
const CHUNK: usize = cross_entropy::CHUNK;

/// What the loss needs beside its operands.
pub struct LossMemory {
    /// `[tokens]`
    losses: Buffer<f32>,
    state: Buffer<u64>,
    workspace: Buffer<u8>,
    /// `[vocab]`, of one token
    logits: Buffer<bf16>,
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
            logits: zeros(device, held, "logits", vocab)?,
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

    /// Rounded to bf16, as all that comes out of a linear layer.
    pub(super) fn logits_of(&mut self, x: &CudaBuffer, head: &CudaTable, token: usize) -> Result<Vec<f32>> {
        let (k, n) = (head.hidden, head.vocab);
        let x = x.rows(self.tokens()).skip(token * k).first(k);
        let input = Input { m: 1, k, x, ldx: k, s: None, dropout: None };
        let y = self.loss.logits.view_mut();
        let weight = Weight::Dense(head.data.view());
        let mut segment = [Segment { n, weight, lora: None, bias: None, y, ldy: n }];
        linear::forward(&input, &mut segment, self.empty.view_mut(), self.device.stream())?;
        Ok(self.device.download(&self.loss.logits)?.to_f32_vec())
    }
}
