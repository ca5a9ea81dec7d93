//! The ggml tensor types that are read or written, and their values as f32.
//!
//! A block holds 32 consecutive elements of a row; those of 256 are in `k_quants.rs`. With d and m stored as f16:
//!
//! | type | bytes of a block | element i |
//! |---|---|---|
//! | Q8_0 | d, 32 × i8 | `d · q[i]` |
//! | Q4_1 | d, m, 16 × u8 | `d · q + m`; q is the low nibble of byte i for i < 16, otherwise the high nibble of byte i
//! − 16
//! |

use super::ensure;
use super::k_quants::{self, SUPER_BLOCK};
use crate::bail_usage;
use crate::error::{Error, Result};
use half::{bf16, f16};

const BLOCK: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_1,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    pub fn from_code(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => bail_usage!(
                "ggml type {other} is not supported (expected F32 0, F16 1, Q4_1 3, Q5_0 6, Q8_0 8, Q4_K 12, Q5_K 13, Q6_K \
                 14 or BF16 30)"
            ),
        })
    }

    pub(super) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The name that llama.cpp gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Bf16 => "BF16",
        }
    }

    /// Elements of one block.
    pub fn block_size(self) -> usize {
        self.block().0
    }

    /// (elements, bytes) of one block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_1 => (BLOCK, 2 + 2 + BLOCK / 2),
            Self::Q5_0 => (BLOCK, 2 + 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4K => (SUPER_BLOCK, 2 + 2 + 12 + SUPER_BLOCK / 2),
            Self::Q5K => (SUPER_BLOCK, 2 + 2 + 12 + SUPER_BLOCK / 8 + SUPER_BLOCK / 2),
            Self::Q6K => (SUPER_BLOCK, SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + SUPER_BLOCK / 16 + 2),
        }
    }

    /// Bytes of a tensor of this shape (outermost dimension first). Blocks never straddle rows.
    pub fn byte_length(self, shape: &[usize]) -> Result<usize> {
        let (elements, bytes) = self.block();
        let row = *shape.last().ok_or_else(|| Error::Refused("a tensor without dimensions".to_owned()))?;
        ensure!(row.is_multiple_of(elements), "rows of {row} values in {self:?} (expected a multiple of {elements})");
        shape
            .iter()
            .try_fold(1usize, |product, &length| product.checked_mul(length))
            .and_then(|count| (count / elements).checked_mul(bytes))
            .ok_or_else(|| Error::Refused(format!("a tensor of shape {shape:?} is too large")))
    }

    /// The values of whole blocks, in order. `data` comes from a tensor whose length was checked by `byte_length`.
    pub fn to_f32(self, data: &[u8]) -> Vec<f32> {
        let half_at = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let (elements, bytes) = self.block();
        let mut values = Vec::with_capacity(data.len() / bytes * elements);
        for block in data.chunks_exact(bytes) {
            match self {
                Self::F32 => values.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => values.push(half_at(block, 0)),
                Self::Bf16 => values.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q8_0 => {
                    let scale = half_at(block, 0);
                    values.extend(block[2..].iter().map(|&q| scale * f32::from(q as i8)));
                }
                Self::Q5_0 => k_quants::decode_q5_0(block, &mut values),
                Self::Q4K => k_quants::decode_with_minimums(block, 4, &mut values),
                Self::Q5K => k_quants::decode_with_minimums(block, 5, &mut values),
                Self::Q6K => k_quants::decode_q6_k(block, &mut values),
                Self::Q4_1 => {
                    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
                    let value = |q: u8| scale * f32::from(q) + minimum;
                    values.extend(block[4..].iter().map(|&pair| value(pair & 15)));
                    values.extend(block[4..].iter().map(|&pair| value(pair >> 4)));
                }
            }
        }
        values
    }
}

/// The row of a Hugging Face matrix of heads of `head_dim` rows that llama.cpp stores at `row` for interleaved RoPE:
/// the two halves of a head alternate.
pub fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let within = row % head_dim;
    row - within + within % 2 * (head_dim / 2) + within / 2
}

/// Undoes the row order in which llama.cpp stores q and k for interleaved RoPE: row `2i + j` of a head (pair i, half j)
/// belongs at row `j · head_dim/2 + i`, where Hugging Face's rotate-half RoPE expects it.
///
/// `values`: `[heads · head_dim, columns]`, row-major.
pub fn undo_interleaved_rows(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head_dim = values.len() / columns / heads;
    let half_dim = head_dim / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..half_dim {
                let row = head * head_dim + 2 * pair + half;
                out.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

/// Little-endian bf16, rounded to nearest, ties to even.
pub fn to_bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests;
