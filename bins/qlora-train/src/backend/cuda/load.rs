//! Frozen weights, from the checkpoint to the device.

use super::operands::{AbsmaxMemory, Nf4Memory};
use super::{Cuda, CudaTable, CudaVector, CudaWeight};
use crate::backend::{Quantization, quantize};
use crate::checkpoint::{StoredWeight, Tensor16, TensorData};
use crate::error::Result;
use crate::refuse;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::cuda::absmax_transpose;
use qlora_kernels::cuda::nf4::Layout;
use qlora_kernels::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};

/// In bf16; other types are rounded to it.
fn to_bf16(tensor: Tensor16) -> Vec<bf16> {
    match tensor.data {
        TensorData::Bf16(values) => values,
        _ => rounded(&tensor.into_f32()),
    }
}

pub(super) fn rounded(values: &[f32]) -> Vec<bf16> {
    let mut rounded = vec![bf16::ZERO; values.len()];
    rounded.convert_from_f32_slice(values);
    rounded
}

impl Cuda {
    /// Quantised on the host, as on every device.
    pub(super) fn load_weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        stored: StoredWeight,
    ) -> Result<CudaWeight> {
        let matrix = match (stored, quantization) {
            (StoredWeight::Nf4(matrix), _) => matrix,
            (StoredWeight::Tensor(tensor), Quantization::Nf4 { block_size, double_quant }) => {
                quantize(name, n, k, &tensor, &Nf4Options { block_size, double_quant })?
            }
            (StoredWeight::Tensor(tensor), Quantization::None) => {
                let values = to_bf16(tensor);
                assert_eq!(values.len(), n * k, "weight");
                return Ok(CudaWeight::Dense(self.upload(name, &values)?));
            }
        };
        Ok(CudaWeight::Nf4(self.load_nf4(name, &matrix)?))
    }

    /// The kernels know one set of 16 values and one size of nested blocks: those of NF4 as bitsandbytes writes it.
    fn load_nf4(&mut self, name: &str, matrix: &Nf4Matrix) -> Result<Nf4Memory> {
        const INSTEAD: &str = "quantise the original 16-bit model instead, or use `--device cpu`";
        if *matrix.code() != CODE {
            refuse!(
                "{name}: the checkpoint brings 16 values of its own (quant_map), expected those of NF4 on cuda: {INSTEAD}"
            );
        }
        let (n, k, block_size) = (matrix.rows(), matrix.cols(), matrix.block_size());
        // With whole blocks in a row, those of one column of blocks lie together: what the kernels read fastest.
        let mut layout = if k.is_multiple_of(block_size) { Layout::Transposed } else { Layout::RowMajor };
        let absmax = match matrix.absmax() {
            Absmax::F32(absmax) => {
                let blocks = k / block_size;
                let ordered: Vec<f32> = match layout {
                    Layout::RowMajor => absmax.clone(),
                    Layout::Transposed => (0..absmax.len()).map(|i| absmax[i % n * blocks + i / n]).collect(),
                };
                AbsmaxMemory::F32(self.upload(name, &ordered)?)
            }
            Absmax::DoubleQuantised { codes, nested_absmax, nested_block_size, nested_code, offset } => {
                if *nested_block_size != NESTED_BLOCK_SIZE {
                    refuse!(
                        "{name}: found nested blocks of {nested_block_size}, expected {NESTED_BLOCK_SIZE} on cuda: \
                         {INSTEAD}"
                    );
                }
                let mut ordered = self.upload(name, codes)?;
                // Their kernel counts in 32 bits.
                if codes.len() > i32::MAX as usize {
                    layout = Layout::RowMajor;
                }
                if layout == Layout::Transposed {
                    let stored = self.device.upload(codes)?;
                    let stream = self.device.stream();
                    absmax_transpose(stored.view(), ordered.view_mut(), n, k / block_size, stream)?;
                }
                AbsmaxMemory::DoubleQuantised {
                    codes: ordered,
                    nested_absmax: self.upload(name, nested_absmax)?,
                    nested_code: self.upload(name, nested_code.as_slice())?,
                    offset: self.upload(name, &[*offset])?,
                }
            }
        };
        Ok(Nf4Memory { n, k, block_size, layout, codes: self.upload(name, matrix.codes())?, absmax })
    }

    pub(super) fn load_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        tensor: Tensor16,
    ) -> Result<CudaTable> {
        let values = to_bf16(tensor);
        assert_eq!(values.len(), vocab * hidden, "table");
        Ok(CudaTable { data: self.upload(name, &values)?, vocab, hidden })
    }

    pub(super) fn load_vector(&mut self, name: &'static str, len: usize, values: &[f32]) -> Result<CudaVector> {
        assert_eq!(values.len(), len, "vector");
        Ok(CudaVector { f32: self.upload(name, values)?, bf16: self.upload(name, &rounded(values))? })
    }
}
