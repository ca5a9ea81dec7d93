//! Rotary position embedding (Su et al. 2021) in the half-split form of Llama: element i of a head is rotated with
//! element i + R/2 by the angle position·frequency(i), R being the elements of a head that are rotated, its first.

use super::Real;
use crate::rope::RopeTable;

fn rotate<T: Real>(
    x: &mut [T],
    row: usize,
    heads: usize,
    head_dim: usize,
    positions: &[u32],
    table: &RopeTable<T>,
    direction: T,
) {
    let half = table.half;
    for (x, &position) in x.chunks_exact_mut(row).zip(positions) {
        let at = position as usize * half;
        for head in x[..heads * head_dim].chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (cos, sin) = (table.cos[at + i], direction * table.sin[at + i]);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    }
}

/// Rotates the first `heads` heads of every row in place.
pub fn rope<T: Real>(
    x: &mut [T], // [M, row], row ≥ heads·D
    row: usize,
    heads: usize,
    head_dim: usize,   // D, at least R
    positions: &[u32], // [M]
    table: &RopeTable<T>,
) {
    rotate(x, row, heads, head_dim, positions, table, T::ONE);
}

/// The gradient: the transpose, which is the inverse where no attention factor scales the rotation.
pub fn rope_inverse<T: Real>(
    x: &mut [T],
    row: usize,
    heads: usize,
    head_dim: usize,
    positions: &[u32],
    table: &RopeTable<T>,
) {
    rotate(x, row, heads, head_dim, positions, table, -T::ONE);
}
