//! f32 or bf16 to NF4.

use super::code::{ZERO_CODE, dynamic_code, dynamic_map_signed, nf4_code, normalize};
use super::matrix::{Absmax, NESTED_BLOCK_SIZE, check_shape};
use super::{Nf4Error, Nf4Matrix, Nf4Options};
use half::bf16;

impl Nf4Matrix {
    /// Quantizes a row-major `[rows, cols]` weight.
    ///
    /// Refused: another length, a block size that is no power of two from 32 to 4096, a NaN or an infinity (with its
    /// index in `weight`), and magnitudes near 3e38 whose scale double quantization cannot represent.
    pub fn quantize(weight: &[f32], rows: usize, cols: usize, options: &Nf4Options) -> Result<Self, Nf4Error> {
        quantize_from(weight, rows, cols, options, <[f32]>::copy_from_slice)
    }

    /// [`quantize`](Self::quantize) of the same values in f32, one block at a time in f32.
    pub fn quantize_bf16(weight: &[bf16], rows: usize, cols: usize, options: &Nf4Options) -> Result<Self, Nf4Error> {
        quantize_from(weight, rows, cols, options, |block, weight| {
            block.iter_mut().zip(weight).for_each(|(x, w)| *x = w.to_f32());
        })
    }
}

fn quantize_from<T>(
    weight: &[T],
    rows: usize,
    cols: usize,
    options: &Nf4Options,
    load: impl Fn(&mut [f32], &[T]),
) -> Result<Nf4Matrix, Nf4Error> {
    let block_size = options.block_size;
    let len = check_shape(rows, cols, block_size)?;
    if weight.len() != len {
        return Err(Nf4Error::Length { part: "weight", rows, cols, found: weight.len(), expected: len });
    }
    let mut codes = vec![0; len.div_ceil(2)];
    let mut absmax = Vec::with_capacity(len.div_ceil(block_size));
    let mut buffer = vec![0.0; block_size];
    // A block is an even number of elements, so each begins a new byte.
    for (b, (codes, weight)) in codes.chunks_mut(block_size / 2).zip(weight.chunks(block_size)).enumerate() {
        let block = &mut buffer[..weight.len()];
        load(block, weight);
        let max = max_magnitude(block);
        if !max.is_finite() {
            let (i, &value) = block.iter().enumerate().find(|(_, x)| !x.is_finite()).expect("one is not finite");
            return Err(Nf4Error::NotFinite { part: "weight", index: b * block_size + i, value });
        }
        normalize(block, max);
        pack(block, codes);
        absmax.push(max);
    }
    let absmax = if options.double_quant { Absmax::double_quantized(&absmax)? } else { Absmax::F32(absmax) };
    Ok(Nf4Matrix::from_valid(rows, cols, block_size, codes, absmax))
}

/// The largest magnitude; infinite or NaN if any element is. Magnitudes order as their bits do, and an integer
/// maximum, unlike a float one, neither loses a NaN nor resists vectorizing.
fn max_magnitude(block: &[f32]) -> f32 {
    f32::from_bits(block.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max))
}

fn pack(normalized: &[f32], codes: &mut [u8]) {
    let (pairs, odd) = normalized.as_chunks::<2>();
    for (byte, [high, low]) in codes.iter_mut().zip(pairs) {
        *byte = nf4_code(*high) << 4 | nf4_code(*low);
    }
    if let ([last], Some(byte)) = (odd, codes.last_mut()) {
        *byte = nf4_code(*last) << 4 | ZERO_CODE;
    }
}

impl Absmax {
    /// The second level over the absmax `[blocks]` of the first, in f32, as [`Nf4Matrix::quantize`] stores it. Refused:
    /// magnitudes near 3e38, which 8 bits cannot represent.
    pub fn double_quantized(absmax: &[f32]) -> Result<Self, Nf4Error> {
        let sum: f64 = absmax.iter().map(|&a| f64::from(a)).sum();
        let offset = (sum / absmax.len().max(1) as f64) as f32;
        let map = dynamic_map_signed();
        let mut codes = Vec::with_capacity(absmax.len());
        let mut nested_absmax = Vec::with_capacity(absmax.len().div_ceil(NESTED_BLOCK_SIZE));
        for block in absmax.chunks(NESTED_BLOCK_SIZE) {
            let mut block: Vec<f32> = block.iter().map(|a| a - offset).collect();
            let max = max_magnitude(&block);
            normalize(&mut block, max);
            codes.extend(block.iter().map(|&x| dynamic_code(map, x)));
            nested_absmax.push(max);
        }
        let nested_map = Box::new(*map);
        let quantized =
            Self::DoubleQuantized { codes, nested_absmax, nested_block_size: NESTED_BLOCK_SIZE, nested_map, offset };
        for (block, &absmax) in absmax.iter().enumerate() {
            let dequantized = quantized.at(block);
            if !dequantized.is_finite() {
                return Err(Nf4Error::AbsmaxOverflow { block, absmax, dequantized });
            }
        }
        Ok(quantized)
    }
}
