/// The reason why a matrix could not be quantized or put together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Nf4Error {
    #[error("NF4 block size {found}: expected a power of two from 32 to 4096 (64 is usual)")]
    BlockSize { found: usize },
    #[error("nested block size {found}: expected a power of two (256 is usual)")]
    NestedBlockSize { found: usize },
    #[error("a matrix of {rows} x {cols} has more elements than this machine can count")]
    TooLarge { rows: usize, cols: usize },
    /// `part` is the name of the array at fault: `weight`, `codes`, `absmax` …
    #[error("{part} of a {rows} x {cols} NF4 matrix has {found} entries, expected {expected}")]
    Length { part: &'static str, rows: usize, cols: usize, found: usize, expected: usize },
    #[error("{part}[{index}] is {value}: NF4 stores finite numbers only")]
    NotFinite { part: &'static str, index: usize, value: f32 },
    /// Magnitudes so near the end of f32's range that a block's scale, stored in 8 bits, would be infinite.
    #[error("block {block} has absmax {absmax:e}, which double quantization turns into {dequantized}: switch it off")]
    AbsmaxOverflow { block: usize, absmax: f32, dequantized: f32 },
}
