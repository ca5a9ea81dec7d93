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

/// Columns of a tile where rows are few and a tile may have any number of columns up to `width`: as many tiles for each
/// thread.
pub fn even_width(columns: usize, width: usize, threads: usize) -> usize {
    let tiles = columns.div_ceil(width).next_multiple_of(threads);
    columns.div_ceil(tiles).max(MIN_COLUMNS).min(width)
}

/// Columns of such a tile at least: fewer would not be worth another thread.
const MIN_COLUMNS: usize = 16;

/// Where panels of columns are cut into rows.
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
const PREPARATION: usize = 12;

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
mod tests {
    use super::*;

    /// Share of `threads` that is busy until the last one is done, and the tiles, where each takes the next tile when
    /// it is done with one.
    fn busy(rows: usize, columns: usize, threads: usize) -> (f64, usize) {
        let mut matrix = vec![0u8; rows * columns];
        let tiles = split(&mut matrix, columns, rows, 0..columns, 64, threads);
        let mut ends = vec![0; threads];
        for tile in &tiles {
            let first = ends.iter_mut().min().expect("there are threads");
            *first += tile.columns.len() * (tile.rows.len() + PREPARATION);
        }
        let last = ends.into_iter().max().expect("there are threads");
        ((rows * columns) as f64 / (threads * last) as f64, tiles.len())
    }

    /// Linear layers of a Llama 3 8B and of SmolLM2-135M at 512 tokens, on as many cores as machines have.
    #[test]
    fn many_threads_are_busy() {
        for (columns, least) in [
            (4096, [0.95, 0.95, 0.95, 0.95, 0.9]),
            (14_336, [0.95, 0.95, 0.95, 0.95, 0.85]),
            (1024, [0.95, 0.95, 0.9, 0.75, 0.7]),
            (1536, [0.95, 0.9, 0.75, 0.7, 0.7]),
            (576, [0.9, 0.7, 0.7, 0.65, 0.55]),
        ] {
            for (threads, least) in [8, 16, 32, 64, 128].into_iter().zip(least) {
                let (busy, tiles) = busy(512, columns, threads);
                println!("N {columns}, {threads} threads: {tiles} tiles, {:.0}% busy", 100.0 * busy);
                assert!(busy >= least, "N {columns}, {threads} threads: {busy}");
                // A tile is work of at least a hundred microseconds at 100 GFLOP/s, beside which taking it is nothing.
                assert!(tiles <= 4 * threads.max(columns / 64), "N {columns}, {threads} threads: {tiles} tiles");
            }
        }
        // One token: as many columns for each thread.
        for (columns, threads) in [(576, 2), (4096, 64), (14_336, 64), (128_256, 128)] {
            let width = even_width(columns, 64, threads);
            let most = columns.div_ceil(width).div_ceil(threads) * width;
            assert!((columns as f64) / (most * threads) as f64 > 0.9, "N {columns}, {threads} threads: {width}");
        }
        assert_eq!((even_width(3, 64, 64), even_width(40, 64, 8)), (16, 16));
    }

    #[test]
    fn tiles_cover_every_element_once() {
        for (rows, stride, columns, threads) in
            [(1, 1, 0..1, 1), (512, 150, 7..139, 2), (100, 64, 0..64, 16), (97, 700, 0..576, 5), (23, 64, 0..64, 3)]
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
