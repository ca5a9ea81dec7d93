//! What the operations work on: buffers, stored matrices, trainable tensors.

use crate::backend::OptimizerState;
use crate::files::tensor::{Tensor16, TensorData};
use half::slice::HalfFloatSliceExt;

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

    /// Elements `first..first + out.len()` of the flattened matrix as f32, exactly.
    #[inline(always)]
    pub(super) fn widen(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match &self.tensor.data {
            // Written out so that it takes the caller's vector width; a bf16 is the upper half of an f32.
            TensorData::Bf16(values) => {
                let widen = |x: &half::bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
                out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = widen(x));
            }
            TensorData::F16(values) => values[range].convert_to_f32_slice(out),
            TensorData::F32(values) => out.copy_from_slice(&values[range]),
        }
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
