//! NF4 weights in device memory.
//!
//! [`Nf4Weight`] puts a weight into memory of this library, also for an engine whose other memory is its own
//! (`examples/rust-engine`). One that keeps the arrays itself has them as [`nf4::Arrays`]; so does the trainer of this
//! repository, whose memory plan is a run without a device, and whose arrays may wait in host memory. What an array
//! holds and in which order is said here for all: [`Nf4Weight::fastest_layout`], [`transposed`].

use crate::device::{Buffer, Device};
use crate::error::{CudaError, Result};
use crate::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix};
use crate::ops::absmax_transpose;
use crate::ops::nf4::{self, Layout};

/// The row-major absmax `[n, K / block_size]` of n rows as [`Layout::Transposed`] has it, `[K / block_size, n]`. The
/// 8-bit codes of double quantization have a kernel for it: [`absmax_transpose`](fn@absmax_transpose).
pub fn transposed(absmax: &[f32], n: usize) -> Vec<f32> {
    let in_row = absmax.len() / n.max(1);
    (0..absmax.len()).map(|i| absmax[i % n * in_row + i / n]).collect()
}

/// An NF4 weight `[n, k]` in device memory, which it owns.
pub struct Nf4Weight(nf4::Arrays<Buffer<u8>, Buffer<f32>>);

impl Nf4Weight {
    /// The layout that the kernels read fastest: transposed, where rows have whole blocks and few enough of them for 32
    /// bits.
    pub fn fastest_layout(n: usize, k: usize, block_size: usize) -> Layout {
        let few = (n * k).div_ceil(block_size) <= i32::MAX as usize;
        if k.is_multiple_of(block_size) && few { Layout::Transposed } else { Layout::RowMajor }
    }

    /// Copies `matrix` to the device and brings its absmax into `layout`. Refused: values or nested blocks other than
    /// those of NF4 as bitsandbytes writes it, which the kernels do not know, and a transposed layout of blocks that
    /// straddle rows.
    pub fn upload(device: &Device, matrix: &Nf4Matrix, layout: Layout) -> Result<Self> {
        let (n, k, block_size) = (matrix.rows(), matrix.cols(), matrix.block_size());
        if *matrix.code() != CODE {
            return Err(CudaError::Device("the matrix has 16 values of its own, expected those of NF4".into()));
        }
        if layout == Layout::Transposed && !k.is_multiple_of(block_size) {
            return Err(CudaError::Device(format!(
                "a transposed absmax needs K divisible by the block size: K is {k}, the block size {block_size}"
            )));
        }
        let in_row = k / block_size;
        let absmax = match (matrix.absmax(), layout) {
            (Absmax::F32(absmax), Layout::RowMajor) => nf4::Absmax::F32(device.upload(absmax)?),
            (Absmax::F32(absmax), Layout::Transposed) => nf4::Absmax::F32(device.upload(&transposed(absmax, n))?),
            (Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset }, layout) => {
                if *nested_block_size != NESTED_BLOCK_SIZE {
                    return Err(CudaError::Device(format!(
                        "the matrix has nested blocks of {nested_block_size}, expected {NESTED_BLOCK_SIZE}"
                    )));
                }
                let row_major = device.upload(codes)?;
                let codes = match layout {
                    Layout::RowMajor => row_major,
                    Layout::Transposed => {
                        let mut transposed = device.zeros(codes.len())?;
                        absmax_transpose(row_major.view(), transposed.view_mut(), n, in_row, device.stream())?;
                        transposed
                    }
                };
                nf4::Absmax::DoubleQuantized {
                    codes,
                    nested_absmax: device.upload(nested_absmax)?,
                    nested_map: device.upload(nested_map.as_slice())?,
                    offset: device.upload(&[*offset])?,
                }
            }
        };
        Ok(Self(nf4::Arrays { n, k, block_size, layout, codes: device.upload(matrix.codes())?, absmax }))
    }

    /// The weight as operations read it.
    pub fn view(&self) -> nf4::Weight<'_> {
        self.0.map(Buffer::view, Buffer::view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_absmax_has_the_blocks_of_one_column_together() {
        let row_major = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0];
        assert_eq!(transposed(&row_major, 2), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(transposed(&row_major, 6), row_major);
        assert_eq!(transposed(&[], 0), [0.0; 0]);
    }

    #[test]
    fn the_fastest_layout_needs_whole_blocks_and_few() {
        assert_eq!(Nf4Weight::fastest_layout(3, 128, 64), Layout::Transposed);
        assert_eq!(Nf4Weight::fastest_layout(3, 96, 64), Layout::RowMajor);
        assert_eq!(Nf4Weight::fastest_layout(1 << 26, 64 << 5, 64), Layout::RowMajor);
    }
}
