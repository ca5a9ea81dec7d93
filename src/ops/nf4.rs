//! NF4 weights as operations read and write them. The format: [`crate::nf4`].

use super::check::Operation;
use crate::device::{Element, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// Order of the first-level absmax of an `[N, K]` weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Flat `[N * K / block_size]`, as stored.
    RowMajor,
    /// `[K / block_size, N]`: what the kernels read fastest; K is a multiple of the block size.
    Transposed,
}

/// The scales of a weight, in arrays of u8 and of f32; `blocks = ceil(N * K / block_size)`.
#[derive(Clone, Copy, Debug)]
pub enum Absmax<Bytes, Floats> {
    /// `[blocks]`
    F32(Floats),
    /// `absmax = nested_map[code] * nested_absmax[block / 256] + offset`, two roundings.
    DoubleQuantized {
        /// `[blocks]`
        codes: Bytes,
        /// `[ceil(blocks / 256)]`
        nested_absmax: Floats,
        /// `[256]`
        nested_map: Floats,
        /// `[1]`
        offset: Floats,
    },
}

/// An NF4 weight `[n, k]` in arrays of u8 and of f32: views of device memory ([`Weight`]), or those that own it.
#[derive(Clone, Copy, Debug)]
pub struct Arrays<Bytes, Floats> {
    /// N, out features
    pub n: usize,
    /// K, in features
    pub k: usize,
    /// A power of two, 32 to 4096.
    pub block_size: usize,
    /// Order of the absmax.
    pub layout: Layout,
    /// `[ceil(n * k / 2)]`, the first code of a pair in the high nibble
    pub codes: Bytes,
    /// The scales, in f32 or double-quantized.
    pub absmax: Absmax<Bytes, Floats>,
}

/// An NF4 weight `[n, k]` in device memory, as operations read it.
pub type Weight<'a> = Arrays<View<'a, u8>, View<'a, f32>>;

impl<Bytes, Floats> Arrays<Bytes, Floats> {
    /// The weight in other arrays, such as views of these.
    pub fn map<'a, B, F>(&'a self, bytes: impl Fn(&'a Bytes) -> B, floats: impl Fn(&'a Floats) -> F) -> Arrays<B, F> {
        let absmax = match &self.absmax {
            Absmax::F32(absmax) => Absmax::F32(floats(absmax)),
            Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset } => Absmax::DoubleQuantized {
                codes: bytes(codes),
                nested_absmax: floats(nested_absmax),
                nested_map: floats(nested_map),
                offset: floats(offset),
            },
        };
        let Self { n, k, block_size, layout, .. } = *self;
        Arrays { n, k, block_size, layout, codes: bytes(&self.codes), absmax }
    }
}

/// The destination of the scales of quantizing.
#[derive(Debug)]
pub enum AbsmaxMut<'a> {
    /// `[blocks]`
    F32(ViewMut<'a, f32>),
    DoubleQuantized {
        /// `[blocks]`: scratch, the first-level absmax in f32
        absmax: ViewMut<'a, f32>,
        /// `[256]`, ascending: the 8-bit map
        nested_map: View<'a, f32>,
        /// `[blocks]`
        codes: ViewMut<'a, u8>,
        /// `[ceil(blocks / 256)]`
        nested_absmax: ViewMut<'a, f32>,
        /// `[1]`
        offset: ViewMut<'a, f32>,
    },
}

/// bf16 or f32.
pub trait Float: Element {
    const DTYPE: u32;
}

impl Float for bf16 {
    const DTYPE: u32 = sys::QK_BF16;
}

impl Float for f32 {
    const DTYPE: u32 = sys::QK_F32;
}

impl<'a> Weight<'a> {
    /// Checks every part against the shape and returns the C interface's description, good for `'a`.
    pub(super) fn describe(&self, operation: &Operation) -> Result<sys::qk_nf4> {
        let (count, blocks) = blocks(operation, self.n, self.k, self.block_size)?;
        operation.length("codes", self.codes.len(), count.div_ceil(2))?;
        operation.check(self.layout == Layout::RowMajor || self.k.is_multiple_of(self.block_size), || {
            format!("transposed absmax needs K divisible by the block size {}", self.block_size)
        })?;
        let mut weight = sys::qk_nf4 {
            struct_size: size_of::<sys::qk_nf4>() as u32,
            layout: match self.layout {
                Layout::RowMajor => sys::QK_ABSMAX_ROW_MAJOR,
                Layout::Transposed => sys::QK_ABSMAX_TRANSPOSED,
            },
            n: operation.dimension("N", self.n)?,
            k: operation.dimension("K", self.k)?,
            block_size: self.block_size as u32,
            reserved: 0,
            codes: self.codes.address(),
            absmax_codes: std::ptr::null(),
            absmax: std::ptr::null(),
            nested_absmax: std::ptr::null(),
            nested_map: std::ptr::null(),
            offset: std::ptr::null(),
        };
        match &self.absmax {
            Absmax::F32(absmax) => {
                operation.length("absmax", absmax.len(), blocks)?;
                weight.absmax = absmax.address();
            }
            Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset } => {
                let nested = blocks.div_ceil(sys::QK_NESTED_BLOCK as usize);
                operation.length("absmax codes", codes.len(), blocks)?;
                operation.length("nested absmax", nested_absmax.len(), nested)?;
                operation.length("nested code", nested_map.len(), 256)?;
                operation.length("offset", offset.len(), 1)?;
                weight.absmax_codes = codes.address();
                weight.nested_absmax = nested_absmax.address();
                weight.nested_map = nested_map.address();
                weight.offset = offset.address();
            }
        }
        Ok(weight)
    }
}

/// Elements and blocks of a checked shape.
pub(super) fn blocks(operation: &Operation, n: usize, k: usize, block_size: usize) -> Result<(usize, usize)> {
    operation.check(block_size.is_power_of_two() && (32..=4096).contains(&block_size), || {
        format!("the block size is {block_size}, expected a power of two from 32 to 4096")
    })?;
    let count = n.checked_mul(k).filter(|&count| count > 0 && count <= (i64::MAX / 16) as usize);
    let count = count.ok_or_else(|| operation.argument("N and K must be at least 1, and N * K countable".into()))?;
    Ok((count, count.div_ceil(block_size)))
}
