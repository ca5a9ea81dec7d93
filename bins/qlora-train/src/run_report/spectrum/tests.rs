use super::*;
use qlora_kernels::rng::RngStream;

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| 2.0 * stream.uniform() - 1.0).collect()
}

#[test]
fn they_are_those_of_the_product_written_out() {
    for (n, r, k) in [(9, 4, 7), (70, 5, 45), (3, 5, 40)] {
        let (a, b) = (random(r * k, 1), random(n * r, 2));
        let of = |x: &[f32], rows, columns| DMatrix::from_row_slice(rows, columns, x).map(f64::from);
        let mut expected: Vec<f64> = (of(&b, n, r) * of(&a, r, k) * 1.5).singular_values().iter().copied().collect();
        expected.sort_by(|one, other| other.total_cmp(one));
        let found = singular_values(&a, &b, r, 1.5);
        assert_eq!(found.len(), r);
        for (one, other) in found.iter().zip(&expected) {
            assert!((one - other).abs() < 1e-9, "{found:?} {expected:?}");
        }
        let norm = (of(&b, n, r) * of(&a, r, k) * 1.5).norm();
        assert!((norm_of(&found) - norm).abs() < 1e-9 * norm);
    }
}

#[test]
fn a_new_adapter_changes_nothing_and_one_direction_is_one_value() {
    assert_eq!(singular_values(&random(12, 1), &[0.0; 15], 3, 2.0), [0.0; 3]);
    let (a, b) = ([1.0, 2.0, 2.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0]);
    let found = singular_values(&a, &b, 2, 1.0);
    assert!((found[0] - 15.0).abs() < 1e-9 && found[1].abs() < 1e-6, "{found:?}");
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(singular_values(&[bad; 2], &[1.0; 2], 1, 1.0), [0.0; 0]);
    }
    assert_eq!(singular_values(&[], &[], 0, 1.0), [0.0; 0]);
}
