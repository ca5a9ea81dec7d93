use super::super::drawn::values;
use super::super::pairs::Places;
use super::*;

#[test]
fn rows_are_transposed_whatever_their_length() {
    for len in [1, 15, 16, 17, 48, 61] {
        let stride = 64;
        // Rows that begin between two pairs too.
        let numbers = values(16 * (2 * len + 1), 7);
        let rows: [&[bf16]; 16] = std::array::from_fn(|i| &numbers[i * (2 * len + 1)..][..2 * len]);
        for isa in [Isa::avx512_bf16().unwrap_or(Isa::SCALAR), Isa::SCALAR] {
            let mut out = vec![0; len * stride];
            transpose(isa, &rows, &mut out, stride);
            for j in 0..len {
                for (i, row) in rows.iter().enumerate() {
                    assert_eq!(out[j * stride + i], pair(row[2 * j], row[2 * j + 1]), "{isa:?}, {len}: {i}, {j}");
                }
            }
        }
    }
}

#[test]
fn rows_are_paired_whatever_their_number_and_width() {
    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for (count, columns, tile, pairs) in
        [(2, 5, 16, 1), (6, 64, 16, 5), (4, 64, 64, 2), (8, 40, 48, 4), (2, 33, 16, 3), (4, 48, 48, 2), (6, 16, 16, 3)]
    {
        let stride = columns + 3;
        let rows = values(count * stride, 9);
        for isa in [isa, Isa::SCALAR] {
            let mut out = vec![7; columns.next_multiple_of(tile) * pairs];
            pair_rows(isa, &rows, stride, count, columns, Panel { data: &mut out, places: Places { pairs, tile } });
            for row in (0..count).step_by(2) {
                for column in 0..columns {
                    let at = (column / tile * pairs + row / 2) * tile + column % tile;
                    let expected = pair(rows[row * stride + column], rows[(row + 1) * stride + column]);
                    assert_eq!(std::mem::replace(&mut out[at], 7), expected, "{isa:?}: {count} x {columns}");
                }
            }
            assert!(out.iter().all(|&x| x == 7), "{isa:?}: {count} x {columns} writes more");
        }
    }
}

#[test]
fn codes_and_rows_are_those_of_the_twin() {
    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    let code: [f32; 16] = std::array::from_fn(|i| i as f32 / 7.5 - 1.0);
    for (bytes, block) in [(0usize, 64usize), (16, 32), (80, 64), (33, 16), (256, 64), (100, 4096)] {
        let codes: Vec<u8> = (0..bytes).map(|i| (i * 37 + 5) as u8).collect();
        let absmax: Vec<f32> = (0..(2 * bytes).div_ceil(block)).map(|i| 0.3 + i as f32 * 0.01).collect();
        let run = |isa| {
            let mut out = vec![bf16::ZERO; 2 * bytes];
            dequantize(isa, &code, &absmax, block, &codes, &mut out);
            out
        };
        let value = |i: usize| {
            let byte = codes[i / 2];
            let index = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            bf16::from_f32(code[usize::from(index)] * absmax[i / block])
        };
        let expected: Vec<bf16> = (0..2 * bytes).map(value).collect();
        assert!(run(isa) == expected && run(Isa::SCALAR) == expected, "{bytes} bytes in blocks of {block}");
    }
    for len in [0, 2, 16, 30, 48, 128, 130, 576, 1000] {
        let (low, high) = (values(len, 5), values(len, 6));
        let run = |isa| {
            let mut out = vec![0; len];
            interleave(isa, &low, &high, &mut out);
            out
        };
        let expected: Vec<u32> = low.iter().zip(&high).map(|(&low, &high)| pair(low, high)).collect();
        assert!(run(isa) == expected && run(Isa::SCALAR) == expected, "{len}");
    }
}
