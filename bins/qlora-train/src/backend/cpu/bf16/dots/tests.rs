use super::super::drawn::values;
use super::*;

/// On a processor without the instructions this compares the twin with itself.
#[test]
fn a_dot_product_is_that_of_the_twin_and_the_sum_of_its_terms() {
    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for len in [0, 2, 30, 128, 130, 576, 1000] {
        let (low, high) = (values(len, 5), values(len, 6));
        let found = dot(isa, &low, &high);
        assert_eq!(found, dot(Isa::SCALAR, &low, &high), "{len}");
        let terms = low.iter().zip(&high).map(|(x, y)| x.to_f64() * y.to_f64());
        let (exact, size) = terms.fold((0.0, 0.0f64), |(sum, size), x| (sum + x, size + x.abs()));
        assert!((f64::from(found) - exact).abs() <= len as f64 * size * f64::from(f32::EPSILON), "{len}");
    }
}

#[test]
fn dot_products_with_many_rows_are_those_with_each() {
    let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
    for (len, rows) in [(64, 0), (64, 15), (64, 16), (128, 33), (96, 17), (30, 47), (2, 16), (576, 33)] {
        let stride = len + 6;
        let (x, all) = (values(len, 7), values(rows * stride + len, 8));
        let before = |row: usize| row as f32 / 7.0;
        let mut sums: Vec<f32> = (0..rows).map(before).collect();
        dots(isa, &all, stride, &x, &mut sums);
        for (row, sum) in sums.iter().enumerate() {
            let alone = before(row) + dot(Isa::SCALAR, &x, &all[row * stride..][..len]);
            assert_eq!(sum.to_bits(), alone.to_bits(), "row {row} of {rows}, {len}");
        }
    }
}

#[test]
fn codes_give_up_the_first_of_each_four_values_before_the_second() {
    let count = 2 * 128 + 64;
    let numbers: Vec<bf16> = (0..count).map(|i| bf16::from_bits(i as u16)).collect();
    let mut found = vec![bf16::ZERO; count];
    in_order_of_codes(&numbers, &mut found);
    for (first, len) in [(0, 128), (128, 128), (256, 64)] {
        for i in 0..len {
            let expected = first + i % (len / 4) * 4 + i / (len / 4);
            assert_eq!(usize::from(found[first + i].to_bits()), expected, "{first} + {i}");
        }
    }
}
