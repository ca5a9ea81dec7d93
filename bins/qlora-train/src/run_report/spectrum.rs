//! Singular values of an adapter's change of a weight, from A and B alone: those of B·A are the roots of the
//! eigenvalues of an r × r matrix made of the Gram matrices A·Aᵀ and Bᵀ·B.

use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// A dot product in lanes: a single sum would wait for each addition.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0.0; 16];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..sums.len() {
            sums[lane] += product(a[lane], b[lane]);
        }
    }
    sums.into_iter().chain(a_rest.iter().zip(b_rest).map(|(&a, &b)| product(a, b))).sum()
}

/// `x · xᵀ`, for rows of `columns` columns.
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
            // Negative values come from rounding.
            DMatrix::from_fn(r, r, |i, j| eigenvectors[(j, i)] * eigenvalues[i].max(0.0).sqrt())
        }
    };
    let product = &root * gram_a * root.transpose();
    let mut squares: Vec<f64> = product.symmetric_eigenvalues().iter().map(|value| value.max(0.0)).collect();
    squares.sort_by(|one, other| other.total_cmp(one));
    squares.into_iter().map(|square| scale.abs() * square.sqrt()).collect()
}

/// The Frobenius norm of a matrix with these singular values.
pub fn norm_of(singular_values: &[f64]) -> f64 {
    singular_values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests;
