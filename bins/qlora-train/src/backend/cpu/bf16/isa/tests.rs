use super::super::drawn::{by_every_kind, values};
use super::super::pairs::pair;
use super::*;

/// Whole tiles and parts of tiles, products and sums that are subnormal too. A processor without the instructions
/// has nothing to compare, and a line says so.
#[test]
fn products_equal_their_twins_bit_for_bit() {
    for (name, hardware, twin) in
        [("AVX-512-BF16", Isa::avx512_bf16(), Isa::SCALAR), ("AMX", Isa::amx(), Isa::AMX_TWIN)]
    {
        let Some(hardware) = hardware else {
            println!("not run: this processor has no {name}");
            continue;
        };
        for (rows, pairs, width) in [
            (1, 1, 16),
            (7, 9, 64),
            (16, 16, 16),
            (17, 5, 32),
            (25, 8, 16),
            (13, 3, 32),
            (17, 40, 48),
            (33, 50, 48),
            (64, 256, 64),
            (512, 288, 64),
        ] {
            let stride = 2 * pairs + 6;
            for scale in [0, -60, -64] {
                let scaled = |x: bf16| bf16::from_f32(x.to_f32() * 2f32.powi(scale));
                let left: Vec<bf16> = values(rows * stride, 1).into_iter().map(scaled).collect();
                let right: Vec<bf16> = values(2 * pairs * width, 2).into_iter().map(scaled).collect();
                let panel: Vec<u32> = right.as_chunks::<2>().0.iter().map(|x| pair(x[0], x[1])).collect();
                for add in [false, true] {
                    let run = |isa| {
                        let mut sums = vec![0.5 * 2f32.powi(scale) * 2f32.powi(scale); rows * WIDTH];
                        multiply(isa, &left, stride, rows, &panel, width, &mut sums, add);
                        sums.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                    };
                    let what = format!("{rows} x {pairs} pairs x {width}, 2^{scale}, {name}");
                    assert!(run(hardware) == run(twin), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_product_is_the_sum_of_exact_products() {
    let (rows, pairs) = (3, 21);
    let (left, right) = (values(rows * 2 * pairs, 3), values(2 * pairs * 16, 4));
    let panel: Vec<u32> =
        (0..pairs * 16).map(|i| pair(right[i / 16 * 32 + i % 16], right[i / 16 * 32 + 16 + i % 16])).collect();
    for (isa, row) in by_every_kind(&[0, 1, 2]) {
        let mut sums = vec![0.0; rows * WIDTH];
        multiply(isa, &left, 2 * pairs, rows, &panel, 16, &mut sums, false);
        for column in 0..16 {
            let terms: Vec<f64> =
                (0..2 * pairs).map(|k| left[row * 2 * pairs + k].to_f64() * right[k * 16 + column].to_f64()).collect();
            let (exact, size) = (terms.iter().sum::<f64>(), terms.iter().map(|x| x.abs()).sum::<f64>());
            let found = f64::from(sums[row * WIDTH + column]);
            // Each of the 2·pairs additions rounds once, to 2⁻²⁴ of a partial sum.
            assert!((found - exact).abs() <= 2.0 * pairs as f64 * size * f64::from(f32::EPSILON) / 2.0);
        }
    }
}

/// Whole blocks of rows and parts of one, products and sums that are subnormal too.
#[test]
fn rows_as_they_lie_give_what_a_panel_of_them_gives() {
    let Some(isa) = Isa::avx512_bf16() else {
        let mut sums = [7.0; WIDTH];
        let (left, right) = (values(2, 1), values(2 * WIDTH, 2));
        assert!(!multiply_rows(Isa::SCALAR, &left, 2, 1, &right, WIDTH, 1, &mut sums) && sums == [7.0; WIDTH]);
        return;
    };
    for (rows, pairs, right_stride) in
        [(1, 1, 64), (5, 9, 100), (12, 16, 64), (16, 128, 200), (29, 33, 72), (64, 2, 64)]
    {
        let stride = 2 * pairs + 6;
        for scale in [0, -60, -64] {
            let scaled = |x: bf16| bf16::from_f32(x.to_f32() * 2f32.powi(scale));
            let left: Vec<bf16> = values(rows * stride, 1).into_iter().map(scaled).collect();
            let right: Vec<bf16> = values(2 * pairs * right_stride, 2).into_iter().map(scaled).collect();
            let at = |row: usize, column: usize| right[row * right_stride + column];
            let panel: Vec<u32> = (0..pairs * WIDTH)
                .map(|i| pair(at(i / WIDTH * 2, i % WIDTH), at(i / WIDTH * 2 + 1, i % WIDTH)))
                .collect();
            let (mut found, mut expected) = (vec![7.0; rows * WIDTH], vec![7.0; rows * WIDTH]);
            multiply(Isa::SCALAR, &left, stride, rows, &panel, WIDTH, &mut expected, false);
            assert!(multiply_rows(isa, &left, stride, rows, &right, right_stride, pairs, &mut found));
            assert!(found == expected, "{rows} x {pairs} pairs, 2^{scale}");
        }
    }
}
