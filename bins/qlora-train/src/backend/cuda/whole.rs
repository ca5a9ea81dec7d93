//! Gradients of the modules that are trained whole, or in some rows: norms, and the embedding. That of the output layer
//! comes with the loss.

use super::Cuda;
use super::operands::{CudaBuffer, CudaTable, CudaVector, TableParts};
use crate::backend::{BufferShape, MaybeTrained};
use crate::error::Result;
use qlora_kernels::ops::norm_gradient::workspace_bytes;
use qlora_kernels::ops::{self, NormGradient};
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

impl Cuda {
    /// Room for the sums over tokens of a norm's weight of `width` elements, which may be as wide as a head and that of
    /// all of them.
    pub(super) fn reserve_norm_gradient(&mut self, width: usize) -> Result<()> {
        let parts = if width == self.dims.head_dim { self.dims.heads } else { 1 };
        self.reserve_sums(workspace_bytes(self.dims.tokens, parts, width))
    }

    /// `dW[id] += scale · dout` of each token, or of those whose rows are trained.
    pub(super) fn embedding_gradient(
        &mut self,
        tokens: &Range<usize>,
        dout: &CudaBuffer,
        scale: f32,
        table: &mut CudaTable,
    ) -> Result<()> {
        let (vocab, h, stream) = (table.vocab, table.hidden, self.memory.stream());
        let TableParts { rows, gradient: Some(gradient), .. } = table.parts() else { return Ok(()) };
        let (ids, dout) = (self.on_device.input_ids.rows(tokens), dout.apart(tokens)?);
        match rows {
            None => ops::embedding_backward(ids, dout, vocab, h, scale, gradient, stream)?,
            Some(rows) => ops::embedding_backward_of_rows(ids, dout, rows, vocab, h, scale, gradient, stream)?,
        }
        Ok(())
    }

    /// `dw += Σ dy ∘ x / rms(x)`
    pub(super) fn norm_gradient(
        &mut self,
        tokens: &Range<usize>,
        dy: &CudaBuffer,
        x: &CudaBuffer,
        eps: f32,
        weight: &mut CudaVector,
    ) -> Result<()> {
        self.gradient_of_parts(tokens, [dy, x], eps, 0..x.width(), weight)
    }

    /// The gradients of the weights of the norms of queries and keys, where they are trained.
    pub(super) fn head_norm_gradients(
        &mut self,
        tokens: &Range<usize>,
        dqkv: &CudaBuffer,
        qkv: &CudaBuffer,
        eps: f32,
        shape: AttentionShape,
        weights: &mut [&mut CudaVector; 2],
    ) -> Result<()> {
        let (queries, keys) = (shape.out(), shape.kv_heads * shape.head_dim);
        for (weight, columns) in weights.iter_mut().zip([0..queries, queries..queries + keys]) {
            self.gradient_of_parts(tokens, [dqkv, qkv], eps, columns, weight)?;
        }
        Ok(())
    }

    /// The gradient of the weight of a norm of each part of these columns that is as wide as it is; `dy` and `x` are
    /// the matrices, in this order.
    fn gradient_of_parts(
        &mut self,
        tokens: &Range<usize>,
        [dy, x]: [&CudaBuffer; 2],
        eps: f32,
        columns: Range<usize>,
        weight: &mut CudaVector,
    ) -> Result<()> {
        let stream = self.memory.stream();
        let Some((_, Some(gradient))) = weight.param_mut().map(|param| param.for_gradient()) else { return Ok(()) };
        let (m, parts) = (tokens.len(), columns.len() / gradient.len());
        let ((dy, lddy), (x, ld)) = (dy.strided(tokens)?, x.strided(tokens)?);
        let norm = NormGradient { m, parts, column: columns.start, ld, lddy, eps, dy, x };
        Ok(ops::norm_gradient(&norm, gradient, self.gradients.view_mut(), stream)?)
    }
}
