//! One tensor in memory, in the floating type it is stored in.

use super::random::RandomNf4;
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use qlora_kernels::nf4::Nf4Matrix;
use rayon::prelude::*;
use safetensors::Dtype;

// Stored bytes are little-endian and are read straight into place.
const _: () = assert!(cfg!(target_endian = "little"), "only little-endian hosts are supported");

/// Elements of a piece of a weight that is read in pieces: whole blocks of NF4, and whole parts of its norm.
pub const PIECE: usize = 1 << 20;

/// Elements whose squares are summed one after the other, for a norm.
const SQUARES: usize = 1 << 16;

/// The three types that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    Bf16,
    F16,
    F32,
}

impl StoredType {
    pub fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::BF16 => Some(Self::Bf16),
            Dtype::F16 => Some(Self::F16),
            Dtype::F32 => Some(Self::F32),
            _ => None,
        }
    }

    pub fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    /// The name in config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Elements in row-major order, as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    F32(Vec<f32>),
}

/// A tensor as stored: 16-bit, or f32 where the checkpoint is f32.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: TensorData,
}

impl HostTensor {
    pub fn stored_type(&self) -> StoredType {
        match self.data {
            TensorData::Bf16(_) => StoredType::Bf16,
            TensorData::F16(_) => StoredType::F16,
            TensorData::F32(_) => StoredType::F32,
        }
    }

    /// The number of its elements.
    pub(crate) fn elements(&self) -> usize {
        match &self.data {
            TensorData::Bf16(values) => values.len(),
            TensorData::F16(values) => values.len(),
            TensorData::F32(values) => values.len(),
        }
    }

    /// Sums of the squares of its elements, over [`SQUARES`] elements each. The sums over all [pieces](PIECE) are the
    /// same as over the whole.
    pub(crate) fn squares(&self) -> Vec<f64> {
        match &self.data {
            TensorData::Bf16(values) => values.par_chunks(SQUARES).map(|part| squares(part, bf16::to_f32)).collect(),
            TensorData::F16(values) => values.par_chunks(SQUARES).map(|part| squares(part, f16::to_f32)).collect(),
            TensorData::F32(values) => values.par_chunks(SQUARES).map(|part| squares(part, |value| value)).collect(),
        }
    }

    /// Exact: both 16-bit types are subsets of f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            TensorData::Bf16(values) => values.to_f32_vec(),
            TensorData::F16(values) => values.to_f32_vec(),
            TensorData::F32(values) => values.clone(),
        }
    }

    /// Values in f32, without a copy where the data is f32 already.
    pub fn into_f32(self) -> Vec<f32> {
        match self.data {
            TensorData::F32(values) => values,
            _ => self.to_f32(),
        }
    }

    /// The little-endian bytes as stored.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            TensorData::Bf16(values) => bytemuck::cast_slice(values),
            TensorData::F16(values) => bytemuck::cast_slice(values),
            TensorData::F32(values) => bytemuck::cast_slice(values),
        }
    }

    /// Rows of `columns` values in f32, exactly.
    pub fn rows_f32(&self, columns: usize, rows: &[u32]) -> Vec<f32> {
        let elements = rows.iter().flat_map(|&row| row as usize * columns..(row as usize + 1) * columns);
        match &self.data {
            TensorData::Bf16(values) => elements.map(|at| values[at].to_f32()).collect(),
            TensorData::F16(values) => elements.map(|at| values[at].to_f32()).collect(),
            TensorData::F32(values) => elements.map(|at| values[at]).collect(),
        }
    }

    /// Replaces rows of `columns` values, rounded to nearest, ties to even, to the stored type.
    pub fn replace_rows(&mut self, columns: usize, rows: &[u32], values: &[f32]) {
        for (&row, own) in rows.iter().zip(values.chunks_exact(columns)) {
            let range = row as usize * columns..(row as usize + 1) * columns;
            match &mut self.data {
                TensorData::Bf16(values) => {
                    values[range].iter_mut().zip(own).for_each(|(to, x)| *to = bf16::from_f32(*x));
                }
                TensorData::F16(values) => {
                    values[range].iter_mut().zip(own).for_each(|(to, x)| *to = f16::from_f32(*x));
                }
                TensorData::F32(values) => values[range].copy_from_slice(own),
            }
        }
    }

    /// Index and value of the first element that is NaN or infinite.
    pub(crate) fn find_not_finite(&self) -> Option<(usize, f32)> {
        match &self.data {
            TensorData::Bf16(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i].to_f32())),
            TensorData::F16(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i].to_f32())),
            TensorData::F32(values) => values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i])),
        }
    }

    /// Rounds f32 values (to nearest, ties to even) to the stored type.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>, stored: StoredType) -> Self {
        let data = match stored {
            StoredType::Bf16 => TensorData::Bf16(values.into_iter().map(bf16::from_f32).collect()),
            StoredType::F16 => TensorData::F16(values.into_iter().map(f16::from_f32).collect()),
            StoredType::F32 => TensorData::F32(values),
        };
        Self { shape, data }
    }
}

/// The sum of squares in lanes: one sum after the other would wait for each addition.
fn squares<T: Copy>(values: &[T], widen: impl Fn(T) -> f32) -> f64 {
    let square = |value: T| f64::from(widen(value)).powi(2);
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, &value)| *sum += square(value));
    }
    sums.into_iter().chain(rest.iter().map(|&value| square(value))).sum()
}

/// A linear weight as its source provides it.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightSource {
    Tensor(HostTensor),
    /// Quantized already: its maps and scales are used as they are.
    Nf4(Nf4Matrix),
    /// Random codes, of no checkpoint
    Random(RandomNf4),
}

impl WeightSource {
    /// The root of the sum of squares; none of codes that are drawn later.
    pub fn frobenius_norm(&self) -> Option<f64> {
        let sums: Vec<f64> = match self {
            Self::Tensor(tensor) => tensor.squares(),
            Self::Nf4(matrix) => (0..matrix.rows())
                .into_par_iter()
                .map(|row| {
                    let mut values = vec![0.0; matrix.cols()];
                    matrix.dequantize_rows(row..row + 1, &mut values);
                    squares(&values, |value| value)
                })
                .collect(),
            Self::Random(_) => return None,
        };
        Some(sums.into_iter().sum::<f64>().sqrt())
    }

    /// NF4 dequantized to f32, anything else as it is.
    pub fn into_tensor(self) -> HostTensor {
        let matrix = match self {
            Self::Tensor(tensor) => return tensor,
            Self::Nf4(matrix) => matrix,
            Self::Random(random) => random.into_matrix(),
        };
        let shape = vec![matrix.rows(), matrix.cols()];
        HostTensor { shape, data: TensorData::F32(matrix.dequantize()) }
    }
}

/// An element type whose slices widen to f32.
pub(super) trait Element: Pod {
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Element for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Element for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Element for f32 {
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests;
