// Areas of one tile have one range.
#![allow(clippy::single_range_in_vec_init)]

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
fn tiles_of_areas_have_their_columns_and_rows_once() {
    let (stride, first, second) = (9, [0..2, 2..5], [6..8]);
    let (rows, others) = ([0..4, 4..7, 8..10], [1..10]);
    let mut matrix = vec![0; 10 * stride];
    let [tiles, more] = grid(&mut matrix, stride, [(&rows, &first), (&others, &second)]);
    assert_eq!((tiles.len(), more.len()), (6, 1));
    for (i, mut tile) in tiles.into_iter().chain(more).enumerate() {
        let expected = if i < 6 { (&rows[i / 2], &first[i % 2]) } else { (&others[0], &second[0]) };
        assert_eq!((&tile.rows, &tile.columns), expected);
        for row in 0..tile.rows.len() {
            tile.row(row).iter_mut().for_each(|x| *x += i + 1);
        }
    }
    for (i, x) in matrix.iter().enumerate() {
        let within = |of: &[Range<usize>], at| of.iter().position(|range| range.contains(&at));
        let (row, column) = (i / stride, i % stride);
        let in_first = within(&rows, row).zip(within(&first, column)).map(|(row, column)| 2 * row + column + 1);
        let in_second = within(&others, row).zip(within(&second, column)).map(|_| 7);
        assert_eq!(*x, in_first.or(in_second).unwrap_or(0), "{row}, {column}");
    }
}

#[test]
#[should_panic(expected = "tiles of columns 2..4 of 5")]
fn tiles_of_areas_do_not_overlap() {
    grid(&mut [0; 10], 5, [(&[0..2], &[0..3]), (&[0..1], &[2..4])]);
}

#[test]
#[should_panic(expected = "tiles out of bounds")]
fn tiles_of_areas_lie_in_the_matrix() {
    grid(&mut [0; 10], 5, [(&[1..3], &[0..5])]);
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
