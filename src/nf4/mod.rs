//! NF4 storage: 4-bit codes under one scale per block, the scales optionally in 8 bits under scales of their own
//! (double quantization). The format of bitsandbytes, element for element.
//!
//! - **Blocks** run over the row-major *flattened* matrix and know nothing of rows; the last one may be short.
//! - **Codes**: element `2j` is the high nibble of byte `j`, element `2j + 1` the low one. The unused nibble after an
//!   odd number of elements is 7 (zero).
//! - **Quantize**: `absmax` is a block's largest magnitude; a code is the number of [`THRESHOLDS`] that
//!   `x * (1 / absmax)` exceeds, so a tie takes the lower code. Blocks of zeros are all 7. Where `1 / absmax`
//!   overflows (absmax < 2⁻¹²⁸, subnormal) `x` is divided by absmax instead.
//! - **Double quantization**: `offset` is the mean of all absmax, summed in f64 and rounded to f32; `absmax − offset`
//!   is quantized in blocks of 256 to the [signed dynamic map](dynamic_map_signed) by [`dynamic_code`].
//! - **Dequantize**: `absmax = map[code] * nested_absmax + offset`, two roundings; `weight = CODE[code] * absmax`, one
//!   rounding to f32, then one to bf16 where bf16 is asked for. Every operation here is a correctly rounded IEEE one:
//!   Rust never contracts a multiplication and an addition into a fused one.
//!
//! NaN and infinities have no code: [`Nf4Matrix::quantize`] refuses them with [`Nf4Error::NotFinite`] and the index.
//! Nothing here depends on the number of threads or on the processor.

mod code;
mod dequantize;
mod error;
mod matrix;
mod quantize;

pub(crate) use code::normalize;
pub use code::{CODE, THRESHOLDS, ZERO_CODE, dynamic_code, dynamic_map_signed, dynamic_map_unsigned};
pub use error::Nf4Error;
pub use matrix::{Absmax, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};
