//! Quantization to NF4. The format: [`crate::nf4`].

use super::check::Operation;
use super::nf4::{self, AbsmaxMut, Float};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;

/// Quantizes `weight` `[n, k]`, row-major. `codes` is `[ceil(n * k / 2)]`; absmax comes out in row-major order. The
/// values must be finite: a block with a NaN or an infinity gets that absmax.
pub fn nf4_quantize<T: Float>(
    weight: View<'_, T>,
    n: usize,
    k: usize,
    block_size: usize,
    codes: ViewMut<'_, u8>,
    absmax: AbsmaxMut<'_>,
    stream: Stream,
) -> Result<()> {
    let operation = Operation { name: "nf4_quantize", shape: format!("N {n}, K {k}, block {block_size}") };
    let (count, blocks) = nf4::blocks(&operation, n, k, block_size)?;
    operation.length("weight", weight.len(), count)?;
    operation.length("codes", codes.len(), count.div_ceil(2))?;
    let mut args = sys::qk_nf4_quantize_args {
        struct_size: size_of::<sys::qk_nf4_quantize_args>() as u32,
        dtype: T::DTYPE,
        count: operation.dimension("N * K", count)?,
        block_size: block_size as u32,
        reserved: 0,
        weight: weight.address().cast(),
        nested_map: std::ptr::null(),
        codes: codes.address(),
        absmax: std::ptr::null_mut(),
        absmax_codes: std::ptr::null_mut(),
        nested_absmax: std::ptr::null_mut(),
        offset: std::ptr::null_mut(),
    };
    match &absmax {
        AbsmaxMut::F32(absmax) => {
            operation.length("absmax", absmax.len(), blocks)?;
            args.absmax = absmax.address();
        }
        AbsmaxMut::DoubleQuantized { absmax, nested_map, codes, nested_absmax, offset } => {
            operation.length("absmax", absmax.len(), blocks)?;
            operation.length("nested code", nested_map.len(), 256)?;
            operation.length("absmax codes", codes.len(), blocks)?;
            operation.length("nested absmax", nested_absmax.len(), blocks.div_ceil(sys::QK_NESTED_BLOCK as usize))?;
            operation.length("offset", offset.len(), 1)?;
            args.absmax = absmax.address();
            args.nested_map = nested_map.address();
            args.absmax_codes = codes.address();
            args.nested_absmax = nested_absmax.address();
            args.offset = offset.address();
        }
    }
    // SAFETY: every pointer is of a view whose length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_nf4_quantize(&args, stream.as_raw())) })
}
