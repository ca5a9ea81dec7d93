//! Weights in NF4, from their source to the device.
//!
//! One that is stored in 16 or 32 bits is quantized on the device: its pieces come through pinned memory, and its codes
//! are written where they stay. The host takes over where the absmax of all blocks is there in f32, a sixty-fourth of
//! the values: the mean that double quantization begins with is a sum in their order.

use super::memory::{DeviceMemory, ON_THE_WAY};
use super::operands::Nf4Memory;
use super::pinned::WeightArray;
use super::{Cuda, CudaWeight};
use crate::backend::weights::{ReadPieces, quantize};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::random::RandomNf4;
use crate::files::tensor::{HostTensor, PIECE, TensorData, WeightSource};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::device::{Buffer, UploadStaging};
use qlora_kernels::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Error, Nf4Matrix, Nf4Options};
use qlora_kernels::ops::nf4::{self, AbsmaxMut, Float, Layout};
use qlora_kernels::ops::{absmax_transpose, nf4_quantize};
use qlora_kernels::weights::{Nf4Weight, transposed};
use std::sync::Arc;

#[cfg(all(test, feature = "emulation"))]
mod tests;

/// The plan's line.
const NAME: &str = "NF4 weights";

/// A weight that is being quantized.
struct Quantizing<'a> {
    memory: &'a DeviceMemory,
    staging: &'a mut UploadStaging<u8>,
    block_size: usize,
    /// Elements that are done
    done: usize,
    /// Room for a piece in f32
    piece: Buffer<u8>,
    /// `[ceil(N * K / 2)]`
    codes: Buffer<u8>,
    /// `[blocks]`
    absmax: Buffer<f32>,
}

impl Quantizing<'_> {
    fn tensor(&mut self, tensor: &HostTensor) -> Result<()> {
        match &tensor.data {
            TensorData::Bf16(values) => values.chunks(PIECE).try_for_each(|part| self.part(part)),
            TensorData::F16(values) => values.chunks(PIECE).try_for_each(|part| self.part(&part.to_f32_vec())),
            TensorData::F32(values) => values.chunks(PIECE).try_for_each(|part| self.part(part)),
        }
    }

    /// At most [`PIECE`] elements, as many as whole blocks have unless they are the last.
    fn part<T: Float + Pod>(&mut self, values: &[T]) -> Result<()> {
        let (first, len) = (self.done, values.len());
        assert!(first.is_multiple_of(self.block_size), "a piece begins with a block");
        self.staging.upload(bytemuck::cast_slice(values), &mut self.piece)?;
        let weight = self.piece.view().first(size_of_val(values)).cast::<T>();
        let codes = self.codes.view_mut().skip(first / 2).first(len.div_ceil(2));
        let absmax = self.absmax.view_mut().skip(first / self.block_size).first(len.div_ceil(self.block_size));
        let stream = self.memory.stream();
        nf4_quantize(weight, 1, len, self.block_size, codes, AbsmaxMut::F32(absmax), stream)?;
        self.done += len;
        Ok(())
    }
}

impl Cuda {
    /// Takes the same memory whatever `read` gives, so that a plan need not know. In a dry run nothing is read.
    pub(super) fn quantized_nf4(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        options: &Nf4Options,
        read: &mut ReadPieces<'_>,
    ) -> Result<CudaWeight> {
        let (count, blocks) = (n * k, (n * k).div_ceil(options.block_size));
        let room = size_of::<f32>() * count.min(PIECE);
        let (memory, pieces) = (&self.memory, &mut self.pieces);
        let staging = pieces.reserve(memory, room)?;
        let codes = memory.alloc_at(self.weights_end, NAME, count.div_ceil(2))?;
        let (piece, absmax) = (memory.alloc(ON_THE_WAY, room)?, memory.alloc(ON_THE_WAY, blocks)?);
        let Some(staging) = staging else {
            drop((piece, absmax));
            return self.with_scales([n, k], options, codes, None);
        };
        let block_size = options.block_size;
        let mut quantizing = Quantizing { memory, staging, block_size, done: 0, piece, codes, absmax };
        let mut whole = None;
        read(&mut |source| match source {
            WeightSource::Tensor(tensor) => {
                check_len([n, k], name, quantizing.done + tensor.elements(), |found| found <= count)?;
                quantizing.tensor(&tensor)
            }
            other => {
                whole = Some(other);
                Ok(())
            }
        })?;
        let Quantizing { done, piece, codes, absmax, .. } = quantizing;
        drop(piece);
        if let Some(whole) = whole {
            drop(absmax);
            return self.put_nf4(name, [n, k], options, codes, whole);
        }
        check_len([n, k], name, done, |found| found == count)?;
        let scales = memory.download(&absmax)?;
        drop(absmax);
        if scales.iter().any(|absmax| !absmax.is_finite()) {
            return Err(not_finite(name, read));
        }
        let scales = match options.double_quant {
            true => Absmax::double_quantized(&scales),
            false => Ok(Absmax::F32(scales)),
        };
        match scales {
            Ok(scales) => self.with_scales([n, k], options, codes, Some(&scales)),
            Err(cause) => bail_usage!("{name}: {cause}"),
        }
    }

    /// A weight whose source is settled; none: a dry run.
    pub(super) fn load_nf4(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        options: &Nf4Options,
        source: Option<WeightSource>,
    ) -> Result<CudaWeight> {
        let codes = self.memory.alloc_at(self.weights_end, NAME, (n * k).div_ceil(2))?;
        match source {
            None => self.with_scales([n, k], options, codes, None),
            Some(source) => self.put_nf4(name, [n, k], options, codes, source),
        }
    }

    /// Puts what the source has into `codes`. 16-bit weights are quantized on the host here.
    fn put_nf4(
        &mut self,
        name: &str,
        [n, k]: [usize; 2],
        options: &Nf4Options,
        mut codes: Buffer<u8>,
        source: WeightSource,
    ) -> Result<CudaWeight> {
        let matrix = match source {
            WeightSource::Nf4(matrix) => matrix,
            WeightSource::Tensor(tensor) => quantize(name, n, k, &tensor, options)?,
            WeightSource::Random(random) => {
                self.keep_pattern(&random)?;
                if let (Some(device), Some((_, pattern))) = (self.memory.device(), &self.pattern) {
                    device.repeat(&mut codes, pattern, random.first)?;
                }
                return self.with_scales([n, k], options, codes, Some(&random.absmax));
            }
        };
        check(name, &matrix, options)?;
        assert_eq!(matrix.codes().len(), codes.len(), "{name}");
        self.memory.write(&mut codes, matrix.codes())?;
        self.with_scales([n, k], options, codes, Some(matrix.absmax()))
    }

    /// Keeps the pattern that random weights repeat on the device, beside the arena: a plan reads no weight and does
    /// not count it.
    fn keep_pattern(&mut self, random: &RandomNf4) -> Result<()> {
        let known = self.pattern.as_ref().is_some_and(|(bytes, _)| Arc::ptr_eq(bytes, &random.bytes));
        if let (false, Some(device)) = (known, self.memory.device()) {
            self.pattern = Some((random.bytes.clone(), device.upload(&random.bytes)?));
        }
        Ok(())
    }

    /// A weight whose codes are there; `scales` while running.
    fn with_scales(
        &self,
        [n, k]: [usize; 2],
        &Nf4Options { block_size, double_quant }: &Nf4Options,
        codes: Buffer<u8>,
        scales: Option<&Absmax>,
    ) -> Result<CudaWeight> {
        let (memory, end, blocks) = (&self.memory, self.weights_end, (n * k).div_ceil(block_size));
        let layout = Nf4Weight::fastest_layout(n, k, block_size);
        let absmax = if double_quant {
            let parts = scales.map(|absmax| match absmax {
                Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset, .. } => {
                    (&codes[..], &nested_absmax[..], nested_map.as_slice(), [*offset])
                }
                Absmax::F32(_) => unreachable!("checked"),
            });
            let stored = parts.as_ref().map(|parts| parts.0);
            let codes = match layout {
                Layout::RowMajor => memory.upload_at(end, NAME, blocks, stored)?,
                Layout::Transposed => {
                    let stored = memory.upload(ON_THE_WAY, blocks, stored)?;
                    let mut ordered = memory.alloc_at(end, NAME, blocks)?;
                    if memory.device().is_some() {
                        let (stored, ordered) = (stored.view(), ordered.view_mut());
                        absmax_transpose(stored, ordered, n, k / block_size, memory.stream())?;
                    }
                    ordered
                }
            };
            nf4::Absmax::DoubleQuantized {
                codes: WeightArray::Device(codes),
                nested_absmax: WeightArray::Device(memory.upload_at(
                    end,
                    NAME,
                    blocks.div_ceil(NESTED_BLOCK_SIZE),
                    parts.as_ref().map(|parts| parts.1),
                )?),
                nested_map: WeightArray::Device(memory.upload_at(
                    end,
                    NAME,
                    256,
                    parts.as_ref().map(|parts| parts.2),
                )?),
                offset: WeightArray::Device(memory.upload_at(
                    end,
                    NAME,
                    1,
                    parts.as_ref().map(|parts| &parts.3[..]),
                )?),
            }
        } else {
            let ordered = scales.map(|absmax| match (absmax, layout) {
                (Absmax::F32(absmax), Layout::RowMajor) => absmax.clone(),
                (Absmax::F32(absmax), Layout::Transposed) => transposed(absmax, n),
                (Absmax::DoubleQuantized { .. }, _) => unreachable!("checked"),
            });
            nf4::Absmax::F32(WeightArray::Device(memory.upload_at(end, NAME, blocks, ordered.as_deref())?))
        };
        let codes = WeightArray::Device(codes);
        Ok(CudaWeight::Nf4(Box::new(Nf4Memory { n, k, block_size, layout, codes, absmax })))
    }
}

/// Refuses a weight with a wrong number of elements, in the words of quantizing it as a whole.
fn check_len([rows, cols]: [usize; 2], name: &str, found: usize, is_right: impl Fn(usize) -> bool) -> Result<()> {
    if !is_right(found) {
        let cause = Nf4Error::Length { part: "weight", rows, cols, found, expected: rows * cols };
        bail_usage!("{name}: {cause}");
    }
    Ok(())
}

/// The refusal of a weight with values that are not finite, of which the first is looked for where it came from.
fn not_finite(name: &str, read: &mut ReadPieces<'_>) -> Error {
    let mut before = 0;
    let looked = read(&mut |source| {
        let WeightSource::Tensor(tensor) = source else { return Ok(()) };
        if let Some((index, value)) = tensor.find_not_finite() {
            let cause = Nf4Error::NotFinite { part: "weight", index: before + index, value };
            bail_usage!("{name}: {cause}");
        }
        before += tensor.elements();
        Ok(())
    });
    let changed = || Error::Failed(format!("{name}: a value was not finite when it was read first, and is now"));
    looked.err().unwrap_or_else(changed)
}

/// The kernels know one set of 16 values and one size of nested blocks: those of NF4 as bitsandbytes writes it. How a
/// weight is held was said before it was read.
fn check(name: &str, matrix: &Nf4Matrix, options: &Nf4Options) -> Result<()> {
    const INSTEAD: &str = "quantize the original 16-bit model instead, or use `--device cpu`";
    if *matrix.code() != CODE {
        bail_usage!(
            "{name}: the checkpoint brings 16 values of its own (quant_map), expected those of NF4 on cuda: {INSTEAD}"
        );
    }
    let (block_size, double_quant) = match matrix.absmax() {
        Absmax::DoubleQuantized { nested_block_size, .. } if *nested_block_size != NESTED_BLOCK_SIZE => bail_usage!(
            "{name}: found nested blocks of {nested_block_size}, expected {NESTED_BLOCK_SIZE} on cuda: {INSTEAD}"
        ),
        absmax => (matrix.block_size(), matches!(absmax, Absmax::DoubleQuantized { .. })),
    };
    if (block_size, double_quant) != (options.block_size, options.double_quant) {
        let kind = |block_size: usize, double: bool| {
            format!("blocks of {block_size}, {}", if double { "absmax in 8 bits" } else { "absmax in f32" })
        };
        bail_usage!(
            "{name}: found {}, expected {} as the other weights have: {INSTEAD}",
            kind(block_size, double_quant),
            kind(options.block_size, options.double_quant)
        );
    }
    Ok(())
}
