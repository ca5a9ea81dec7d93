//! Low-rank terms that begin with directions of the weight itself (PiSSA, OLoRA): W = residual + scale · B · A, and the
//! residual replaces the base.

use crate::config::InitLora;
use nalgebra::DMatrix;
use qlora_kernels::rng::RngStream;
use rayon::prelude::*;

/// A pair of factors: A `[r, K]` and B `[N, r]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

/// Columns per task in a product with a transposed weight.
const COLUMNS: usize = 64;
/// Maximum number of sweeps of the exact PiSSA: unsettled directions then belong to nearly equal singular values.
const SWEEPS: usize = 200;
/// Sweeps between two checks of the residual.
const LOOK: usize = 4;
/// Residual at which the exact PiSSA ends, relative to the largest singular value.
const SETTLED: f64 = 1e-6;

/// The factors that `init` takes from a weight `[n, k]` (formulas of PEFT 0.21). `None`: it uses no weight. `r` is at
/// most `n` and `k`.
pub fn factors(
    init: InitLora,
    weight: &[f32],
    [n, k]: [usize; 2],
    r: usize,
    scale: f32,
    stream: RngStream,
) -> Option<Factors> {
    let weight = Weight { data: weight, n, k };
    Some(match init {
        InitLora::Random => return None,
        InitLora::Olora => olora(&weight, r),
        InitLora::Pissa => pissa(&weight, r, scale, None, stream),
        InitLora::PissaIterations(sweeps) => pissa(&weight, r, scale, Some(sweeps), stream),
    })
}

/// `values += scale · B · A` in f32; `values` is `[N, K]`.
pub fn add_product(values: &mut [f32], k: usize, b: &[f32], r: usize, a: &[f32], scale: f32) {
    let rows = values.par_chunks_mut(k).zip(b.par_chunks(r));
    rows.for_each_init(
        || vec![0.0f32; k],
        |sum, (row, b)| {
            sum.fill(0.0);
            for (b, a) in b.iter().zip(a.chunks(k)) {
                sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
            row.iter_mut().zip(&*sum).for_each(|(value, sum)| *value += scale * sum);
        },
    );
}

/// A weight `[n, k]`, row-major.
struct Weight<'a> {
    data: &'a [f32],
    n: usize,
    k: usize,
}

impl Weight<'_> {
    /// `W · X`: `[n, q]`, of X `[k, q]`.
    fn times(&self, x: &[f32], q: usize) -> Vec<f32> {
        let mut y = vec![0.0; self.n * q];
        y.par_chunks_exact_mut(q).zip(self.data.par_chunks_exact(self.k)).for_each(|(y, row)| {
            for (w, x) in row.iter().zip(x.chunks_exact(q)) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
            }
        });
        y
    }

    /// `Wᵀ · Y`: `[k, q]`, of Y `[n, q]`.
    fn transposed_times(&self, y: &[f32], q: usize) -> Vec<f32> {
        let mut z = vec![0.0; self.k * q];
        z.par_chunks_mut(COLUMNS * q).enumerate().for_each(|(part, z)| {
            for (row, y) in self.data.chunks_exact(self.k).zip(y.chunks_exact(q)) {
                for (w, z) in row[part * COLUMNS..].iter().zip(z.chunks_exact_mut(q)) {
                    z.iter_mut().zip(y).for_each(|(z, y)| *z += w * y);
                }
            }
        });
        z
    }
}

/// Orthonormal columns that span the columns of `[rows, q]`, row-major.
fn orthonormal(values: &[f32], q: usize) -> Vec<f32> {
    let matrix = DMatrix::from_row_iterator(values.len() / q, q, values.iter().map(|&x| f64::from(x)));
    rows_of(&matrix.qr().q())
}

fn rows_of(matrix: &DMatrix<f64>) -> Vec<f32> {
    matrix.row_iter().flat_map(|row| row.iter().map(|&x| x as f32).collect::<Vec<_>>()).collect()
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// B = Q and A = R of W = Q · R, their first r columns and rows: these follow from the first r columns of W alone.
fn olora(weight: &Weight, r: usize) -> Factors {
    let first: Vec<f32> = weight.data.chunks_exact(weight.k).flat_map(|row| row[..r].iter().copied()).collect();
    let b = orthonormal(&first, r);
    let a = transposed(&weight.transposed_times(&b, r), r);
    Factors { a, b }
}

/// B = U · √(S / scale) and A = √(S / scale) · Vᵀ of the r largest singular values, found by subspace iteration: with
/// `sweeps` sweeps from r random columns, as torch's `svd_lowrank`; without a number, from more columns, until they are
/// settled.
fn pissa(weight: &Weight, r: usize, scale: f32, sweeps: Option<usize>, mut stream: RngStream) -> Factors {
    let &Weight { n, k, .. } = weight;
    let q = match sweeps {
        Some(_) => r,
        None => (r + r.max(10)).min(n).min(k),
    };
    // A sum of uniform numbers is near enough to a normal one for a subspace to begin with.
    let start: Vec<f32> = (0..k * q).map(|_| (0..4).map(|_| stream.uniform()).sum::<f32>() - 2.0).collect();
    let mut y = orthonormal(&weight.times(&start, q), q);
    let mut done = 0;
    loop {
        let last = sweeps.unwrap_or(SWEEPS);
        let until = if sweeps.is_some() { last } else { (done + LOOK).min(last) };
        while done < until {
            let z = orthonormal(&weight.transposed_times(&y, q), q);
            y = orthonormal(&weight.times(&z, q), q);
            done += 1;
        }
        let (u, s, v) = singular(weight, &y, q);
        if done == last || left(weight, &u, &s, &v, r) <= SETTLED * s[0] {
            let root = |i: usize| (s[i] / f64::from(scale)).sqrt();
            let b = (0..n).flat_map(|row| (0..r).map(move |i| (row, i))).map(|(row, i)| (u[(row, i)] * root(i)) as f32);
            let a =
                (0..r).flat_map(|i| (0..k).map(move |column| (i, column))).map(|(i, at)| (v[(at, i)] * root(i)) as f32);
            return Factors { a: a.collect(), b: b.collect() };
        }
    }
}

/// U `[n, q]`, S and V `[k, q]` of the part of the weight in the span of the orthonormal columns of `y`, largest first.
fn singular(weight: &Weight, y: &[f32], q: usize) -> (DMatrix<f64>, Vec<f64>, DMatrix<f64>) {
    let z = weight.transposed_times(y, q);
    let z = DMatrix::from_row_iterator(weight.k, q, z.iter().map(|&x| f64::from(x)));
    // Wᵀ · Y = V · S · Rᵀ, so that Y · R is U.
    let svd = z.svd(true, true);
    let (Some(v), Some(turn)) = (svd.u, svd.v_t) else { unreachable!("both were asked for") };
    let y = DMatrix::from_row_iterator(weight.n, q, y.iter().map(|&x| f64::from(x)));
    let u = y * turn.transpose();
    (u, svd.singular_values.iter().copied().collect(), v)
}

/// The residual: the largest ‖W · v − s · u‖ of the first r singular vectors.
fn left(weight: &Weight, u: &DMatrix<f64>, s: &[f64], v: &DMatrix<f64>, r: usize) -> f64 {
    let wv = weight.times(&rows_of(&v.columns(0, r).into_owned()), r);
    let wv = DMatrix::from_row_iterator(weight.n, r, wv.iter().map(|&x| f64::from(x)));
    (0..r).map(|i| (wv.column(i) - u.column(i) * s[i]).norm()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests;
