//! What the operations work on: buffers, stored matrices, trainable tensors.

use crate::backend::OptimizerState;
use crate::checkpoint::{Tensor16, TensorData};
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// `[capacity, width]`; operations use the rows of the current batch.
pub struct CpuBuffer {
    pub(super) data: Vec<f32>,
    pub(super) width: usize,
}

/// `[rows, cols]` as stored in the checkpoint.
pub struct Dense {
    pub(super) tensor: Tensor16,
    pub(super) cols: usize,
}

impl Dense {
    pub(super) fn rows(&self) -> usize {
        self.tensor.shape[0]
    }

    pub(super) fn bytes(&self) -> u64 {
        self.tensor.bytes().len() as u64
    }

    pub(super) fn widen_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        widen(&self.tensor, rows.start * self.cols..rows.end * self.cols, out);
    }
}

pub struct CpuParam {
    pub(super) value: Vec<f32>,
    pub(super) gradient: Vec<f32>,
    pub(super) state: Option<OptimizerState>,
}

impl CpuParam {
    /// The accumulated gradient; empty where the tensor is not trained.
    pub fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    pub(super) fn bytes(&self) -> u64 {
        let floats = self.value.len() + self.gradient.len();
        (floats * size_of::<f32>()) as u64 + self.state.as_ref().map_or(0, OptimizerState::bytes)
    }
}

/// The rows of the current batch.
pub(super) fn rows(buffer: &CpuBuffer, tokens: usize) -> &[f32] {
    &buffer.data[..tokens * buffer.width]
}

pub(super) fn rows_mut(buffer: &mut CpuBuffer, tokens: usize) -> &mut [f32] {
    &mut buffer.data[..tokens * buffer.width]
}

/// A range of a stored tensor as f32, exactly.
fn widen(tensor: &Tensor16, range: Range<usize>, out: &mut [f32]) {
    match &tensor.data {
        TensorData::Bf16(values) => values[range].convert_to_f32_slice(out),
        TensorData::F16(values) => values[range].convert_to_f32_slice(out),
        TensorData::F32(values) => out.copy_from_slice(&values[range]),
    }
}
