//! Operands of the operations beside buffers: stored matrices and trainable tensors.

use super::memory::Held;
use super::streaming::OnDisk;
use crate::backend::weights::quantize;
use crate::backend::{MaybeTrained, OptimizerState, Quantization};
use crate::error::Result;
use crate::files::tensor::{HostTensor, TensorData, WeightSource};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// `[rows, cols]` as stored in the checkpoint.
pub struct Dense {
    pub(super) tensor: HostTensor,
    pub(super) cols: usize,
}

/// The values of a table, which threads share.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    Dense(&'a Dense),
    /// `[rows, cols]`
    F32 {
        data: &'a [f32],
        rows: usize,
        cols: usize,
    },
    Rows(OwnRows<'a>),
}

/// A stored matrix in which the rows of `tokens`, in order, are those of `data` `[tokens, cols]`.
#[derive(Clone, Copy)]
pub struct OwnRows<'a> {
    pub dense: &'a Dense,
    pub tokens: &'a [u32],
    pub data: &'a [f32],
}

impl<'a> OwnRows<'a> {
    /// The values of a row that is none of the stored ones.
    pub fn own(&self, row: usize) -> Option<&'a [f32]> {
        let at = self.tokens.binary_search(&u32::try_from(row).ok()?).ok()?;
        Some(&self.data[at * self.dense.cols..][..self.dense.cols])
    }

    /// The first row from `rows.start` on that is none of the stored ones, or `rows.end`.
    pub fn next_own(&self, rows: &Range<usize>) -> usize {
        let first = self.tokens.partition_point(|&token| (token as usize) < rows.start);
        self.tokens.get(first).map_or(rows.end, |&token| (token as usize).min(rows.end))
    }
}

impl Matrix<'_> {
    /// A row in f32, exactly.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        match *self {
            Self::Dense(dense) => dense.widen(row * dense.cols, out),
            Self::F32 { data, cols, .. } => out.copy_from_slice(&data[row * cols..][..cols]),
            Self::Rows(rows) => match rows.own(row) {
                Some(values) => out.copy_from_slice(values),
                None => rows.dense.widen(row * rows.dense.cols, out),
            },
        }
    }
}

/// A norm's weight or a bias.
pub enum CpuVector {
    Frozen(Held<Vec<f32>>),
    Trained(Box<CpuParam>),
}

impl Deref for CpuVector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Frozen(values) => values,
            Self::Trained(param) => &param.value,
        }
    }
}

impl MaybeTrained<CpuParam> for CpuVector {
    fn param(&self) -> Option<&CpuParam> {
        match self {
            Self::Frozen(_) => None,
            Self::Trained(param) => Some(param),
        }
    }

    fn param_mut(&mut self) -> Option<&mut CpuParam> {
        match self {
            Self::Frozen(_) => None,
            Self::Trained(param) => Some(param),
        }
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

    /// The values, if they are stored in bf16.
    pub(super) fn values_in_bf16(&self) -> Option<&[bf16]> {
        match &self.tensor.data {
            TensorData::Bf16(values) => Some(values),
            TensorData::F16(_) | TensorData::F32(_) => None,
        }
    }

    /// Elements `first..first + out.len()` of the flattened matrix as f32, exactly.
    #[inline(always)]
    pub(super) fn widen(&self, first: usize, out: &mut [f32]) {
        let range = first..first + out.len();
        match &self.tensor.data {
            // Written out so that it takes the caller's vector width; a bf16 is the upper half of an f32.
            TensorData::Bf16(values) => {
                let widen = |x: &bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
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
    /// Values that products read in the place of its own
    pub(super) operand: Option<Held<Vec<f32>>>,
    pub(super) training: Option<Training>,
}

/// The gradient and optimizer states of a tensor that is trained.
pub(super) struct Training {
    pub gradient: Held<Vec<f32>>,
    pub state: Held<OptimizerState>,
}

impl CpuParam {
    /// The values that products read.
    pub(super) fn operand(&self) -> &[f32] {
        self.operand.as_ref().unwrap_or(&self.value)
    }

    /// The values that products read, and the gradient, which is there where gradients are computed.
    pub(super) fn parts(&mut self) -> (&[f32], &mut [f32]) {
        let training = self.training.as_mut().expect("gradients are of tensors that are trained");
        (self.operand.as_ref().unwrap_or(&self.value), &mut training.gradient)
    }

    /// The accumulated gradient; empty where the tensor is not trained.
    pub fn gradient(&self) -> &[f32] {
        self.training.as_ref().map_or(&[], |training| &training.gradient)
    }
}
