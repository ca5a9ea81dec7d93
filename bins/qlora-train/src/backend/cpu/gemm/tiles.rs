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
        // SAFETY: `split` or `grid` checked that the whole tile lies inside the borrowed matrix, and handed out its
        // elements once; the tile is borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(i * self.stride), self.columns.len()) }
    }
}

/// Cuts columns `columns` of the first `rows` rows of `matrix` into tiles of `width` columns, and these into rows where
/// that keeps `threads` busier.
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
    let layout = Layout::best(rows, panels, threads);
    let mut tiles = Vec::with_capacity(layout.tiles(rows, panels));
    for panel in 0..panels {
        let start = columns.start + panel * width;
        let columns = start..(start + width).min(columns.end);
        let step = if panel < layout.whole { rows } else { layout.piece };
        for row in (0..rows).step_by(step) {
            // SAFETY: inside the matrix, by the assertions above.
            let first = unsafe { first.add(row * stride + start) };
            let rows = row..(row + step).min(rows);
            tiles.push(Tile { first, rows, columns: columns.clone(), stride, matrix: PhantomData });
        }
    }
    tiles
}

/// Rows and columns of an area, in the ranges of its tiles.
pub type Area<'a> = (&'a [Range<usize>], &'a [Range<usize>]);

/// Cuts areas of `matrix`, each of these rows and of these columns, which follow one another, into tiles: a row of
/// tiles after the other.
pub fn grid<'a, T, const N: usize>(matrix: &'a mut [T], stride: usize, areas: [Area; N]) -> [Vec<Tile<'a, T>>; N] {
    let mut column = 0;
    for (rows, columns) in areas {
        for columns in columns {
            assert!(column <= columns.start && columns.start < columns.end, "tiles of columns {columns:?} of {stride}");
            column = columns.end;
        }
        let mut row = 0;
        for rows in rows {
            assert!(row <= rows.start && rows.start < rows.end, "tiles of rows {rows:?}");
            row = rows.end;
        }
        assert!(column <= stride && row <= matrix.len() / stride, "tiles out of bounds");
    }
    let first = matrix.as_mut_ptr();
    areas.map(|(rows, columns)| {
        let mut tiles = Vec::with_capacity(rows.len() * columns.len());
        for rows in rows {
            for columns in columns {
                // SAFETY: inside the matrix, by the assertions above.
                let first = unsafe { first.add(rows.start * stride + columns.start) };
                tiles.push(Tile { first, rows: rows.clone(), columns: columns.clone(), stride, matrix: PhantomData });
            }
        }
        tiles
    })
}

/// Columns of a tile where rows are few and a tile may have any number of columns up to `width`: as many tiles for each
/// thread.
pub fn even_width(columns: usize, width: usize, threads: usize) -> usize {
    let tiles = columns.div_ceil(width).next_multiple_of(threads);
    columns.div_ceil(tiles).max(MIN_COLUMNS).min(width)
}

/// Columns of such a tile at least: fewer would not be worth another thread.
const MIN_COLUMNS: usize = 16;

/// Cut of panels of columns into rows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Layout {
    /// Panels that stay whole, the first ones
    whole: usize,
    /// Rows of the pieces of the others
    piece: usize,
}

/// Rows that a piece has a multiple of: whole blocks of sums in registers.
const PIECE_ROWS: usize = 24;
/// Rows that could be multiplied in the time that a panel takes to be prepared, which every tile does.
pub const PREPARATION: usize = 12;

impl Layout {
    /// The layout that threads which take one tile after the other finish first; of several, that of the fewest tiles.
    fn best(rows: usize, panels: usize, threads: usize) -> Self {
        let cut = |whole: usize| {
            let pieces = (PIECE_ROWS..rows + PIECE_ROWS).step_by(PIECE_ROWS);
            pieces.map(move |piece| Self { whole, piece: piece.min(rows) })
        };
        let even = Self { whole: panels, piece: rows };
        let all = cut(panels - panels % threads).chain(cut(0)).chain([even]);
        all.min_by_key(|layout| (layout.rounds(rows, panels, threads), layout.tiles(rows, panels))).unwrap_or(even)
    }

    fn tiles(self, rows: usize, panels: usize) -> usize {
        self.whole + (panels - self.whole) * rows.div_ceil(self.piece)
    }

    /// Time until the last thread is done, in rows of a tile: the whole panels first, then the pieces.
    fn rounds(self, rows: usize, panels: usize, threads: usize) -> usize {
        let pieces = self.tiles(rows, panels) - self.whole;
        self.whole.div_ceil(threads) * (rows + PREPARATION) + pieces.div_ceil(threads) * (self.piece + PREPARATION)
    }
}

#[cfg(test)]
mod tests;
