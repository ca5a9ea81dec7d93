//! Operands of the operations beside buffers: stored matrices and trainable tensors.

use super::memory::Held;
use super::streaming::OnDisk;
use crate::backend::weights::quantize;
use crate::backend::{OptimizerState, Quantization, TableShape};
use crate::error::Result;
use crate::files::tensor::{HostTensor, TensorData, WeightSource};
use half::slice::HalfFloatSliceExt;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use std::sync::Arc;

/// `[rows, cols]` as stored in the checkpoint.
pub struct Dense {
    pub(super) tensor: HostTensor,
    pub(super) cols: usize,
}

impl TableShape for Held<Dense> {
    fn vocab(&self) -> usize {
        self.rows()
    }
}

impl Dense {
    /// Only its shape, for a dry run.
    pub(super) fn unread(rows: usize, cols: usize) -> Self {
        Self { tensor: HostTensor { shape: vec![rows, cols], data: TensorData::Bf16(Vec::new()) }, cols }
    }

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

/// A frozen linear weight.
pub enum CpuWeight {
    Nf4(Nf4Matrix),
    Dense(Dense),
    OnDisk(Arc<OnDisk>),
    /// In a dry run
    Unread,
}

impl CpuWeight {
    /// The weight of `n` rows of `k` columns called `name`, from what the checkpoint stores of it.
    pub fn new(name: &str, n: usize, k: usize, quantization: Quantization, stored: WeightSource) -> Result<Self> {
        match (stored, quantization) {
            (WeightSource::Nf4(matrix), _) => Ok(Self::Nf4(matrix)),
            (WeightSource::Random(random), _) => Ok(Self::Nf4(random.into_matrix())),
            (WeightSource::Tensor(tensor), Quantization::None) => Ok(Self::Dense(Dense { tensor, cols: k })),
            (WeightSource::Tensor(tensor), Quantization::Nf4 { block_size, double_quant }) => {
                quantize(name, n, k, &tensor, &Nf4Options { block_size, double_quant }).map(Self::Nf4)
            }
        }
    }

    pub fn bytes(&self) -> u64 {
        match self {
            CpuWeight::Nf4(matrix) => matrix.bytes() as u64,
            CpuWeight::Dense(dense) => dense.bytes(),
            // Counted with the layers that are in memory.
            CpuWeight::OnDisk(_) => 0,
            CpuWeight::Unread => 0,
        }
    }
}

/// A trainable tensor. Empty in a dry run.
pub struct CpuParam {
    pub(super) value: Held<Vec<f32>>,
    pub(super) training: Option<Training>,
}

/// The gradient and optimizer states of a tensor that is trained.
pub(super) struct Training {
    pub gradient: Held<Vec<f32>>,
    pub state: Held<OptimizerState>,
}

impl CpuParam {
    /// The values and the gradient, which is there where gradients are computed.
    pub(super) fn parts(&mut self) -> (&[f32], &mut [f32]) {
        let training = self.training.as_mut().expect("gradients are of tensors that are trained");
        (&self.value, &mut training.gradient)
    }

    /// The accumulated gradient; empty where the tensor is not trained.
    pub fn gradient(&self) -> &[f32] {
        self.training.as_ref().map_or(&[], |training| &training.gradient)
    }
}
