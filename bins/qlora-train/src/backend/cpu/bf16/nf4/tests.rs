use super::super::pairs::{Places, pair};
use super::*;
use qlora_kernels::nf4::Nf4Options;

#[test]
fn a_dot_product_is_that_of_the_values() {
    // Even and odd numbers of blocks, parts of blocks, other sizes of blocks, more rows than are looked up
    // together, a row with more blocks than that, scales that make subnormal values.
    for (rows, cols, block_size, size) in [
        (3, 32, 32, 1.0),
        (5, 224, 32, 1.0),
        (70, 576, 64, 1.0),
        (5, 64, 64, 1.0),
        (3, 96, 64, 1.0),
        (2, 17_408, 64, 1.0),
        (3, 92, 32, 1.0),
        (4, 128, 64, 1e-37),
    ] {
        let weight: Vec<f32> = (0..rows * cols).map(|i| size * (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
        let x: Vec<bf16> = (0..cols).map(|i| bf16::from_f32((i as f32 * 0.71).cos())).collect();
        for double_quant in [true, false] {
            let options = Nf4Options { block_size, double_quant };
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
            let isa = Isa::detect().unwrap_or(Isa::SCALAR);
            for columns in [0..cols, 0..32, 32.min(cols / 2)..cols - cols % 32] {
                let x = &x[columns.clone()];
                let (mut values, mut scratch) = (vec![bf16::ZERO; columns.len()], vec![bf16::NAN; cols]);
                let mut dot = |row: usize| {
                    matrix.read(isa, row, columns.clone(), &mut values);
                    0.5 + dots::dot(isa, x, &values)
                };
                for rows in [0..rows, 1..rows, rows - 1..rows] {
                    let expected: Vec<f32> = rows.clone().map(&mut dot).collect();
                    let mut found = vec![0.5; rows.len()];
                    matrix.dots(isa, rows.clone(), columns.clone(), x, &mut found, &mut scratch);
                    assert_eq!(found, expected, "{rows:?} x {cols} / {block_size}, {columns:?}");
                    let mut twin = vec![0.5; rows.len()];
                    matrix.dots(Isa::SCALAR, rows.clone(), columns.clone(), x, &mut twin, &mut scratch);
                    assert!(twin == expected, "{rows:?} x {cols} / {block_size}, {columns:?}");
                }
            }
        }
    }
}

/// Blocks of a panel's width and wider ones, more rows than are looked up together, an odd number of rows; matrices
/// and parts that no vector reads.
#[test]
fn pairs_of_rows_are_those_of_the_values() {
    for (rows, cols, block_size) in [(150, 192, 64), (5, 256, 128), (7, 4096, 4096), (6, 96, 32), (4, 65, 64)] {
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
        for double_quant in [true, false] {
            let options = Nf4Options { block_size, double_quant };
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
            let whole = matrix.dequantize();
            let value = |row: usize, column: usize| bf16::from_f32(whole[row * cols + column]);
            for (tile, first) in [(16, 0), (64, 1)] {
                for columns in [0..64, cols - 64..cols, 0..32] {
                    let pairs = (rows - first) / 2 + 1;
                    let mut panel = vec![7; 64 * pairs];
                    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
                    let data = Panel { data: &mut panel, places: Places { pairs, tile } };
                    let done = matrix.pair_rows(isa, first..rows, columns.clone(), data);
                    let read = isa != Isa::SCALAR && columns.len() == 64 && cols % block_size == 0 && block_size >= 64;
                    assert_eq!(done, if read { (rows - first) / 2 * 2 } else { 0 }, "{rows} x {cols} / {block_size}");
                    for (row, i) in (first..first + done).step_by(2).zip(0..) {
                        for (j, column) in columns.clone().enumerate() {
                            let found = std::mem::replace(&mut panel[(j / tile * pairs + i) * tile + j % tile], 7);
                            assert_eq!(found, pair(value(row, column), value(row + 1, column)), "{row}, {column}");
                        }
                    }
                    assert!(panel.iter().all(|&x| x == 7), "{rows} x {cols} / {block_size} writes more");
                }
            }
        }
    }
}

#[test]
fn values_are_the_dequantized_ones_rounded_once() {
    for (rows, cols, block_size) in [(7, 192, 64), (5, 37, 32), (3, 4096, 4096), (4, 90, 128)] {
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
        for double_quant in [true, false] {
            let options = Nf4Options { block_size, double_quant };
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
            let whole = matrix.dequantize();
            for columns in [0..cols, 1..cols - 2, cols / 3..cols / 2] {
                for row in 0..rows {
                    for isa in [Isa::detect().unwrap_or(Isa::SCALAR), Isa::SCALAR] {
                        let mut out = vec![bf16::NAN; columns.len()];
                        matrix.read(isa, row, columns.clone(), &mut out);
                        let expected = whole[row * cols..][columns.clone()].iter().map(|&x| bf16::from_f32(x));
                        assert!(out.iter().copied().eq(expected), "{rows} x {cols} / {block_size}");
                    }
                }
            }
        }
    }
}
