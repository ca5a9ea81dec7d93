use super::super::drawn::values;
use super::super::pairs::{Places, pair};
use super::super::stored::scratch_len;
use super::*;
use qlora_kernels::nf4::Nf4Options;

/// Even and odd numbers of blocks, parts of blocks, other sizes of blocks, more rows than have their sums together,
/// than are looked up together, scales that make subnormal values; one row and several.
#[test]
fn dot_products_are_those_of_the_values_in_the_order_of_their_codes() {
    for (rows, cols, block_size, size) in [
        (3, 32, 32, 1.0),
        (5, 224, 32, 1.0),
        (60, 576, 64, 1.0),
        (5, 64, 64, 1.0),
        (3, 96, 64, 1.0),
        (9, 17_408, 64, 1.0),
        (3, 92, 32, 1.0),
        (4, 128, 64, 1e-37),
    ] {
        let weight: Vec<f32> = (0..rows * cols).map(|i| size * (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
        let x = values(dots::FEW * cols, 9);
        let mut scratch = vec![7; scratch_len(cols)];
        for double_quant in [true, false] {
            let options = Nf4Options { block_size, double_quant };
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
            let isa = Isa::detect().unwrap_or(Isa::SCALAR);
            for columns in [0..cols, 0..32, 32.min(cols / 2)..cols - cols % 32] {
                let k = columns.len();
                let is_ordered = block_size == 64 && [cols, columns.start, k].iter().all(|len| len % 64 == 0);
                let ordered = |values: &[bf16]| {
                    let mut out = values.to_vec();
                    if is_ordered {
                        dots::in_order_of_codes(values, &mut out);
                    }
                    out
                };
                let dot = |row: usize, x: &[bf16]| {
                    let mut values = vec![bf16::ZERO; k];
                    matrix.read(isa, row, columns.clone(), &mut values);
                    0.5 + dots::dot(isa, &ordered(x), &ordered(&values))
                };
                for (rows, few) in [(0..rows, 1), (1..rows, 2), (0..rows, 3), (rows - 1..rows, dots::FEW)] {
                    let x: Vec<&[bf16]> = x.chunks(cols).take(few).map(|x| &x[columns.clone()]).collect();
                    for isa in [isa, Isa::SCALAR] {
                        let mut sums = vec![0.5; few * WIDTH];
                        matrix.dots(isa, rows.clone(), columns.clone(), &x, &mut sums, &mut scratch);
                        for (x, sums) in x.iter().zip(sums.chunks(WIDTH)) {
                            let expected: Vec<f32> = rows.clone().map(|row| dot(row, x)).collect();
                            let (found, beyond) = sums.split_at(rows.len());
                            assert_eq!(
                                found, expected,
                                "{rows:?} x {cols} / {block_size}, {columns:?}, {few}, {isa:?}"
                            );
                            assert!(beyond.iter().all(|sum| *sum == 0.5), "nothing beyond the rows");
                        }
                    }
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
