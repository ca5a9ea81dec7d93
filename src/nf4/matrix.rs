//! The matrix and its parts.

use super::{CODE, Nf4Error};

/// Entries of absmax under one nested absmax in what [`Nf4Matrix::quantize`] makes.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// Options of quantizing to NF4. The default is bitsandbytes': blocks of 64, double quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nf4Options {
    /// Elements under one absmax: a power of two from 32 to 4096.
    pub block_size: usize,
    /// Stores absmax in 8 bits (0.127 bits a weight at block size 64) rather than in f32 (0.5).
    pub double_quant: bool,
}

impl Default for Nf4Options {
    fn default() -> Self {
        Self { block_size: 64, double_quant: true }
    }
}

/// The scales, one for each block in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    F32(Vec<f32>),
    /// `absmax[b] = nested_map[codes[b]] * nested_absmax[b / nested_block_size] + offset`
    DoubleQuantized {
        codes: Vec<u8>,
        nested_absmax: Vec<f32>,
        nested_block_size: usize,
        nested_map: Box<[f32; 256]>,
        offset: f32,
    },
}

impl Absmax {
    #[inline]
    pub(super) fn at(&self, block: usize) -> f32 {
        match self {
            Absmax::F32(absmax) => absmax[block],
            Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } => {
                nested_map[usize::from(codes[block])] * nested_absmax[block / nested_block_size] + offset
            }
        }
    }

    fn strided(&self, first: usize, stride: usize, out: &mut [f32]) {
        let blocks = (first..).step_by(stride);
        match self {
            Absmax::F32(absmax) => out.iter_mut().zip(blocks).for_each(|(out, block)| *out = absmax[block]),
            Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } => {
                // A shift in place of a division, which would take longer than all the rest.
                let shift = nested_block_size.is_power_of_two().then(|| nested_block_size.trailing_zeros());
                for (out, block) in out.iter_mut().zip(blocks) {
                    let nested = shift.map_or_else(|| block / nested_block_size, |shift| block >> shift);
                    *out = nested_map[usize::from(codes[block])] * nested_absmax[nested] + offset;
                }
            }
        }
    }

    fn range(&self, mut first: usize, out: &mut [f32]) {
        match self {
            Absmax::F32(absmax) => out.copy_from_slice(&absmax[first..][..out.len()]),
            Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } => {
                let mut rest = out;
                while !rest.is_empty() {
                    let nested = first / nested_block_size;
                    let count = ((nested + 1) * nested_block_size - first).min(rest.len());
                    let (part, after) = rest.split_at_mut(count);
                    for (absmax, code) in part.iter_mut().zip(&codes[first..]) {
                        *absmax = nested_map[usize::from(*code)] * nested_absmax[nested] + offset;
                    }
                    first += count;
                    rest = after;
                }
            }
        }
    }
}

/// A weight of a linear layer in NF4: rows are its N out features, columns its K in features.
///
/// ```
/// use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
///
/// let weight: Vec<f32> = (0..6 * 40).map(|i| (i as f32 * 0.37).sin()).collect();
/// let nf4 = Nf4Matrix::quantize(&weight, 6, 40, &Nf4Options::default())?;
/// let mut third_row = vec![0.0; 40];
/// nf4.dequantize_rows(2..3, &mut third_row);
/// assert_eq!(third_row, nf4.dequantize()[80..120]);
/// # Ok::<(), qlora_kernels::nf4::Nf4Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Matrix {
    rows: usize,
    cols: usize,
    block_size: usize,
    code: [f32; 16],
    codes: Vec<u8>,
    absmax: Absmax,
}

/// Checked `rows * cols` and block size.
pub(super) fn check_shape(rows: usize, cols: usize, block_size: usize) -> Result<usize, Nf4Error> {
    if !block_size.is_power_of_two() || !(32..=4096).contains(&block_size) {
        return Err(Nf4Error::BlockSize { found: block_size });
    }
    rows.checked_mul(cols).ok_or(Nf4Error::TooLarge { rows, cols })
}

impl Nf4Matrix {
    /// A matrix from stored arrays, such as those of a bitsandbytes checkpoint.
    ///
    /// `codes` `[ceil(rows * cols / 2)]`; `code` is the checkpoint's own 16-entry map ([`CODE`] for NF4); `absmax` has
    /// `ceil(rows * cols / block_size)` entries. Wrong lengths and sizes, and scales or maps that are not finite or
    /// whose combination is not, are errors.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        block_size: usize,
        code: [f32; 16],
        codes: Vec<u8>,
        absmax: Absmax,
    ) -> Result<Self, Nf4Error> {
        Self::check_parts(rows, cols, block_size, &code, codes.len(), &absmax)?;
        Ok(Self { rows, cols, block_size, code, codes, absmax })
    }

    /// Refuses what [`from_parts`](Self::from_parts) refuses: of the codes only their number matters, any are valid.
    pub fn check_parts(
        rows: usize,
        cols: usize,
        block_size: usize,
        code: &[f32; 16],
        codes: usize,
        absmax: &Absmax,
    ) -> Result<(), Nf4Error> {
        let len = check_shape(rows, cols, block_size)?;
        let blocks = len.div_ceil(block_size);
        let length = |part, found, expected| {
            if found == expected { Ok(()) } else { Err(Nf4Error::Length { part, rows, cols, found, expected }) }
        };
        length("codes", codes, len.div_ceil(2))?;
        finite("quant_map", code)?;
        match absmax {
            Absmax::F32(absmax) => {
                length("absmax", absmax.len(), blocks)?;
                finite("absmax", absmax)?;
            }
            Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } => {
                if !nested_block_size.is_power_of_two() {
                    return Err(Nf4Error::NestedBlockSize { found: *nested_block_size });
                }
                length("absmax", codes.len(), blocks)?;
                length("nested_absmax", nested_absmax.len(), blocks.div_ceil(*nested_block_size))?;
                finite("nested_quant_map", nested_map.as_slice())?;
                finite("nested_absmax", nested_absmax)?;
                finite("nested_offset", &[*offset])?;
            }
        }
        for block in 0..blocks {
            finite_at("dequantized absmax", block, absmax.at(block))?;
        }
        Ok(())
    }

    /// For parts that `quantize` made itself.
    pub(super) fn from_valid(rows: usize, cols: usize, block_size: usize, codes: Vec<u8>, absmax: Absmax) -> Self {
        Self { rows, cols, block_size, code: CODE, codes, absmax }
    }

    /// Out features, N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// In features, K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements: rows × cols.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements under one absmax.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks, each with one scale.
    pub fn blocks(&self) -> usize {
        self.len().div_ceil(self.block_size)
    }

    /// The 16 values that codes stand for: [`CODE`], unless a checkpoint brought its own.
    pub fn code(&self) -> &[f32; 16] {
        &self.code
    }

    /// Two codes a byte, the earlier in the high nibble, `[ceil(rows * cols / 2)]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The scales, `[ceil(rows * cols / block_size)]`, in f32 or double-quantized.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// The codes and the scales, whose allocations may then hold those of another matrix.
    pub fn into_parts(self) -> (Vec<u8>, Absmax) {
        (self.codes, self.absmax)
    }

    /// The scale of one block as dequantizing uses it: for double quantization a product and a sum, each rounded to
    /// f32. Panics when there is no such block.
    #[inline]
    pub fn absmax_at(&self, block: usize) -> f32 {
        self.absmax.at(block)
    }

    /// [`absmax_at`](Self::absmax_at) of the blocks from `first` on, as many as `out` has room for. Panics when there
    /// are fewer.
    pub fn absmax_range(&self, first: usize, out: &mut [f32]) {
        self.absmax.range(first, out);
    }

    /// [`absmax_at`](Self::absmax_at) of every `stride`-th block from `first` on, as many as `out` has room for: those
    /// of one column of blocks, where rows are whole blocks. Panics when there are fewer, or `stride` is 0.
    pub fn absmax_strided(&self, first: usize, stride: usize, out: &mut [f32]) {
        self.absmax.strided(first, stride, out);
    }

    /// Bytes of the arrays held: codes, absmax and, under double quantization, nested absmax and the 256-entry map.
    pub fn bytes(&self) -> usize {
        self.codes.len()
            + match &self.absmax {
                Absmax::F32(absmax) => size_of_val(absmax.as_slice()),
                Absmax::DoubleQuantized { codes, nested_absmax, nested_map, .. } => {
                    codes.len() + size_of_val(nested_absmax.as_slice()) + size_of_val(nested_map.as_slice())
                }
            }
    }

    /// The [`bytes`](Self::bytes) of a matrix of this shape. Never panics: `usize::MAX` where the number is too large,
    /// and a block size of 0 counts as 1.
    pub fn bytes_for(rows: usize, cols: usize, options: &Nf4Options) -> usize {
        let Some(len) = rows.checked_mul(cols) else { return usize::MAX };
        let blocks = len.div_ceil(options.block_size.max(1));
        let absmax = if options.double_quant {
            let nested = blocks.div_ceil(NESTED_BLOCK_SIZE).saturating_mul(size_of::<f32>());
            blocks.saturating_add(nested).saturating_add(size_of::<[f32; 256]>())
        } else {
            blocks.saturating_mul(size_of::<f32>())
        };
        len.div_ceil(2).saturating_add(absmax)
    }
}

fn finite_at(part: &'static str, index: usize, value: f32) -> Result<(), Nf4Error> {
    if value.is_finite() { Ok(()) } else { Err(Nf4Error::NotFinite { part, index, value }) }
}

fn finite(part: &'static str, values: &[f32]) -> Result<(), Nf4Error> {
    values.iter().enumerate().try_for_each(|(index, &value)| finite_at(part, index, value))
}
