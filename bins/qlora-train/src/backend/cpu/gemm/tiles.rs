//! Column tiles of a row-major matrix that several threads write at once.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// Rows `rows` and columns `columns` of a matrix; no other tile made with it holds any of them.
pub struct Tile<'a, T = f32> {
    first: *mut T,
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    stride: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is the exclusive borrow of its elements, which may move to another thread.
unsafe impl<T: Send> Send for Tile<'_, T> {}

impl<T> Tile<'_, T> {
    /// Row `rows.start + i` of the matrix, within the tile's columns.
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows.len(), "row {i} of a tile of {}", self.rows.len());
        // SAFETY: `split` checked that the whole tile lies inside the borrowed matrix, and handed out its elements
        // once; the tile is borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.stride), self.columns.len()) }
    }
}

/// Cuts columns `columns` of the first `rows` rows of `matrix` into tiles of `width` columns, each of all rows where
/// there are enough of them for `threads`; the last ones that do not come out even are cut into rows as well.
pub fn split<'a, T>(
    matrix: &'a mut [T],
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    width: usize,
    threads: usize,
) -> Vec<Tile<'a, T>> {
    assert!(rows > 0 && !columns.is_empty() && columns.end <= stride, "tiles of columns {columns:?}");
    assert!((rows - 1) * stride + columns.end <= matrix.len(), "tiles out of bounds");
    let first = matrix.as_mut_ptr();
    let panels = columns.len().div_ceil(width);
    let uneven = panels % threads;
    let pieces = if uneven == 0 { 1 } else { (2 * threads).div_ceil(uneven) };
    let piece = rows.div_ceil(pieces).next_multiple_of(MIN_ROWS);
    let mut tiles = Vec::with_capacity(panels + uneven * pieces);
    for panel in 0..panels {
        let start = columns.start + panel * width;
        let columns = start..(start + width).min(columns.end);
        let step = if panel < panels - uneven { rows } else { piece };
        for row in (0..rows).step_by(step) {
            // SAFETY: inside the matrix, by the assertions above.
            let first = unsafe { first.add(row * stride + start) };
            let rows = row..(row + step).min(rows);
            tiles.push(Tile { first, rows, columns: columns.clone(), stride, matrix: PhantomData });
        }
    }
    tiles
}

/// Rows of a piece at least: preparing a panel costs as much as multiplying a few rows with it.
const MIN_ROWS: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_element_once() {
        for (rows, stride, columns, threads) in
            [(1, 1, 0..1, 1), (512, 150, 7..139, 2), (100, 64, 0..64, 16), (97, 700, 0..576, 5)]
        {
            let mut matrix = vec![0.0; rows * stride];
            for mut tile in split(&mut matrix, stride, rows, columns.clone(), 64, threads) {
                for i in 0..tile.rows.len() {
                    tile.row(i).iter_mut().for_each(|x| *x += 1.0);
                }
            }
            for (i, x) in matrix.iter().enumerate() {
                assert_eq!(*x, f32::from(columns.contains(&(i % stride)) as u8), "{i}");
            }
        }
    }
}
