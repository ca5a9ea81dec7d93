//! Singular values of an adapter's change of a weight, from A and B alone: those of B·A are the roots of the
//! eigenvalues of an r × r matrix made of the Gram matrices A·Aᵀ and Bᵀ·B.

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// In lanes: one sum after the other would wait for each addition.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += product(a, b);
        }
    }
    sums.into_iter().chain(a_rest.iter().zip(b_rest).map(|(&a, &b)| product(a, b))).sum()
}

/// `x · xᵀ` of rows of so many columns.
fn gram_of_rows(x: &[f32], columns: usize) -> DMatrix<f64> {
    let rows: Vec<&[f32]> = x.chunks_exact(columns).collect();
    let r = rows.len();
    let upper: Vec<Vec<f64>> =
        (0..r).into_par_iter().map(|i| (i..r).map(|j| dot(rows[i], rows[j])).collect()).collect();
    DMatrix::from_fn(r, r, |i, j| if i <= j { upper[i][j - i] } else { upper[j][i - j] })
}

/// Singular values, largest first, of `scale · B · A`: A is `[r, k]`, B is `[n, r]`, both row-major.
pub fn singular_values(a: &[f32], b: &[f32], r: usize, scale: f64) -> Vec<f64> {
    if r == 0 || a.is_empty() || b.is_empty() || a.iter().chain(b).any(|value| !value.is_finite()) {
        return Vec::new();
    }
    let gram_a = gram_of_rows(a, a.len() / r);
    let columns: Vec<f32> = (0..r).flat_map(|column| b.iter().skip(column).step_by(r).copied()).collect();
    let gram_b = gram_of_rows(&columns, b.len() / r);
    // A root of Bᵀ·B, transposed: Cholesky's where no column of B depends on others, which costs far less.
    let root = match gram_b.clone().cholesky() {
        Some(factors) => factors.l().transpose(),
        None => {
            let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(gram_b);
            // What is below zero is rounding.
            DMatrix::from_fn(r, r, |i, j| eigenvectors[(j, i)] * eigenvalues[i].max(0.0).sqrt())
        }
    };
    let product = &root * gram_a * root.transpose();
    let mut squares: Vec<f64> = product.symmetric_eigenvalues().iter().map(|value| value.max(0.0)).collect();
    squares.sort_by(|one, other| other.total_cmp(one));
    squares.into_iter().map(|square| scale.abs() * square.sqrt()).collect()
}

/// The Frobenius norm of which these are the singular values.
pub fn norm_of(singular_values: &[f64]) -> f64 {
    singular_values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::rng::Stream;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed, 1);
        (0..len).map(|_| 2.0 * stream.uniform() - 1.0).collect()
    }

    #[test]
    fn they_are_those_of_the_product_written_out() {
        for (n, r, k) in [(9, 4, 7), (70, 5, 45), (3, 5, 40)] {
            let (a, b) = (random(r * k, 1), random(n * r, 2));
            let of = |x: &[f32], rows, columns| DMatrix::from_row_slice(rows, columns, x).map(f64::from);
            let mut expected: Vec<f64> =
                (of(&b, n, r) * of(&a, r, k) * 1.5).singular_values().iter().copied().collect();
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
}
