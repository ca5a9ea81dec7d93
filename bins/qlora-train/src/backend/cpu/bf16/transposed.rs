//! Rows of tokens as the left operand of a product along tokens.

use super::gemm::PAIRS;
use super::isa::{Isa, LANES};
use super::layout;
use super::stored::Rows;
use half::bf16;

/// The first `columns` values of `tokens` rows, transposed: rows of `stride` pairs. A token that an odd number of them
/// leaves without a pair is beside zeros; what is beyond the last pair is never read. `band` holds `[LANES, 2 · PAIRS]`
/// values.
pub fn transpose(
    isa: Isa,
    rows: Rows,
    tokens: usize,
    columns: usize,
    out: &mut [u32],
    stride: usize,
    band: &mut [bf16],
) {
    let band: &mut [u32] = bytemuck::cast_slice_mut(band);
    let pairs = tokens.div_ceil(2);
    for column in (0..columns).step_by(PAIRS) {
        let width = PAIRS.min(columns - column);
        for first in (0..pairs).step_by(LANES) {
            let count = LANES.min(pairs - first);
            for (i, out) in band.chunks_exact_mut(width).take(count).enumerate() {
                let row = 2 * (first + i);
                let values = |row| &rows.data[row * rows.stride + column..][..width];
                match row + 1 < tokens {
                    true => layout::interleave(isa, values(row), values(row + 1), out),
                    false => out.iter_mut().zip(values(row)).for_each(|(out, x)| *out = u32::from(x.to_bits())),
                }
            }
            let row = |i: usize| bytemuck::cast_slice(&band[i.min(count - 1) * width..][..width]);
            layout::transpose(isa, &std::array::from_fn(row), &mut out[column * stride + first..], stride);
        }
    }
}

#[cfg(test)]
mod tests;
