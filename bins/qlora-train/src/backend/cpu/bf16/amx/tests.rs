use super::super::pairs::pair;
use super::*;
use qlora_kernels::rng::RngStream;

#[test]
fn the_twin_is_a_sum_of_products() {
    let mut stream = RngStream::new(1, 1);
    let mut value = || bf16::from_f32(stream.below(2001) as f32 / 500.0 - 2.0);
    let (rows, pairs, width) = (3, 37, 16);
    let left: Vec<bf16> = (0..rows * 2 * pairs).map(|_| value()).collect();
    let numbers: Vec<[bf16; 2]> = (0..pairs * width).map(|_| [value(), value()]).collect();
    let panel: Vec<u32> = numbers.iter().map(|x| pair(x[0], x[1])).collect();
    let mut sums = vec![1.0; rows * WIDTH];
    twin(&left, 2 * pairs, rows, &panel, width, &mut sums, true);
    for row in 0..rows {
        for column in 0..width {
            let terms: Vec<f64> = (0..2 * pairs)
                .map(|k| {
                    left[row * 2 * pairs + k].to_f64()
                        * numbers[(column / TILE * pairs + k / 2) * TILE + column % TILE][k % 2].to_f64()
                })
                .collect();
            let (exact, size) = (1.0 + terms.iter().sum::<f64>(), 1.0 + terms.iter().map(|x| x.abs()).sum::<f64>());
            let found = f64::from(sums[row * WIDTH + column]);
            assert!((found - exact).abs() <= 2.0 * pairs as f64 * size * f64::from(f32::EPSILON) / 2.0);
        }
    }
}

/// A processor whose tiles computed something else would be taken for one that has none.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_that_are_there_compute_what_the_twin_does() {
    assert_eq!(x86::permitted(), available());
}
