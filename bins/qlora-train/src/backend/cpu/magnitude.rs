//! DoRA: magnitudes of outputs, and the norms of rows that they take the place of. ‖W + s·B·A‖² is
//! ‖W‖² + 2s·⟨W·Aᵀ, B⟩ + s²·⟨B·A·Aᵀ, B⟩ row by row, so that no matrix of the weight's size is made.

use super::Cpu;
use super::elementwise::dot;
use super::gemm::PANEL;
use super::gemm::pack::Stored;
use super::gemm::panels::multiply;
use super::gemm::product::{Left, Product, Right};
use super::operands::{CpuVector, CpuWeight};
use crate::backend::{LinearGroup, Lora, Segment};
use crate::bail_usage;
use crate::error::Result;
use rayon::prelude::*;

/// Tokens whose part of a sum over tokens is summed on its own.
const TOKENS: usize = 256;
/// Rows of a task.
const ROWS: usize = 16;
/// Columns that are read at one time.
const COLUMNS: usize = 256;

/// ‖W‖² of each row of a weight `[n, k]`.
pub fn row_squares(name: &str, weight: &CpuWeight, n: usize, k: usize) -> Result<Vec<f32>> {
    if let CpuWeight::OnDisk(_) = weight {
        bail_usage!(
            "`use_dora`: {name} stays on disk, and the norms of its rows would be read there again and again; expected \
                 `weights: resident`"
        );
    }
    let mut squares = vec![0.0; n];
    squares.par_chunks_mut(ROWS).enumerate().for_each(|(part, squares)| {
        let (first, mut sums, mut values) = (part * ROWS, [0.0f64; ROWS], vec![0.0; ROWS * COLUMNS]);
        for column in (0..k).step_by(COLUMNS) {
            let width = COLUMNS.min(k - column);
            weight.read(first..first + squares.len(), column..column + width, &mut values, COLUMNS);
            for (sum, row) in sums.iter_mut().zip(values.chunks(COLUMNS)).take(squares.len()) {
                *sum += row[..width].iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            }
        }
        squares.iter_mut().zip(sums).for_each(|(square, sum)| *square = sum as f32);
    });
    Ok(squares)
}

/// The norms of every layer of the group that has magnitudes.
pub fn refresh(group: &mut LinearGroup<Cpu>) {
    let k = group.k;
    for Segment { n, weight, lora, .. } in &mut group.segments {
        let Some(Lora { r, scale, a, b, magnitude: Some(magnitude), .. }) = lora else { continue };
        let (n, r, a, b, s) = (*n, *r, &a.value[..], &b.value[..], f64::from(*scale));
        let mut panels = vec![0.0; rayon::current_num_threads() * PANEL];
        // A · Wᵀ, `[r, N]`
        let mut aw = vec![0.0; r * n];
        let product = Product::new(Left::Rows { data: a, stride: k }, k, Right::Turned(&**weight));
        multiply(&mut panels, &mut aw, n, r, 0..n, false, &[product]);
        let rows: Vec<&[f32]> = a.chunks_exact(k).collect();
        let gram: Vec<f64> =
            (0..r * r).into_par_iter().map(|at| f64::from(dot::<16>(rows[at / r], rows[at % r]))).collect();
        let CpuVector::Frozen(norms) = &mut magnitude.norms else { unreachable!("norms are not trained") };
        let squares: &[f32] = &magnitude.squares;
        norms.par_iter_mut().enumerate().for_each(|(row, norm)| {
            let b = &b[row * r..][..r];
            let mut square = f64::from(squares[row]);
            for (i, &bi) in b.iter().enumerate() {
                square += 2.0 * s * f64::from(bi) * f64::from(aw[i * n + row]);
                let along = b.iter().zip(&gram[i * r..]).map(|(&bj, gram)| f64::from(bj) * gram).sum::<f64>();
                square += s * s * f64::from(bi) * along;
            }
            *norm = square.max(0.0).sqrt() as f32;
        });
    }
}

/// A layer's columns of rows of `ΣN` values, its bias, and its magnitudes.
struct Part<'a> {
    first: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    m: &'a [f32],
    /// The gradient of `m` so far
    gradient: &'a [f32],
    norms: &'a [f32],
}

impl Part<'_> {
    /// m / norm; a row of zeros stays one.
    fn factor(&self, i: usize) -> f32 {
        if self.norms[i] > 0.0 { self.m[i] / self.norms[i] } else { 0.0 }
    }

    fn bias(&self, i: usize) -> f32 {
        self.bias.map_or(0.0, |bias| bias[i])
    }
}

fn parts(group: &LinearGroup<Cpu>) -> Vec<Part<'_>> {
    let mut first = 0;
    let mut parts = Vec::new();
    for segment in &group.segments {
        if let Some(Lora { magnitude: Some(magnitude), .. }) = &segment.lora {
            let bias = segment.bias.as_ref().map(|bias| &bias[..]);
            let (m, gradient) = (&magnitude.m.value[..], magnitude.m.gradient());
            parts.push(Part { first, n: segment.n, bias, m, gradient, norms: &magnitude.norms });
        }
        first += segment.n;
    }
    parts
}

/// A number of an activation.
pub trait Number: Copy + Into<f32> + Send + Sync {
    fn of(x: f32) -> Self;
}

impl Number for f32 {
    fn of(x: f32) -> Self {
        x
    }
}

impl Number for half::bf16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// `y = m / norm ∘ (y − bias) + bias`
pub fn forward<T: Number>(group: &LinearGroup<Cpu>, y: &mut [T]) {
    let parts = parts(group);
    y.par_chunks_exact_mut(group.n()).with_min_len(ROWS).for_each(|row| {
        for part in &parts {
            for (i, y) in row[part.first..][..part.n].iter_mut().enumerate() {
                let bias = part.bias(i);
                *y = T::of(part.factor(i) * ((*y).into() - bias) + bias);
            }
        }
    });
}

/// `dm += Σ dY ∘ (Z − bias) / norm`, then `Z = m / norm ∘ dY`; where a layer has no magnitudes, `Z = dY`.
pub fn backward<T: Number>(group: &mut LinearGroup<Cpu>, dy: &[T], z: &mut [T]) {
    let width = group.n();
    let mut gradients: Vec<Vec<f32>> = Vec::new();
    for part in parts(group) {
        // Each sum of some tokens is added to all before it, so that a batch that is cut has the bits of the whole.
        let mut gradient = part.gradient.to_vec();
        gradient.par_iter_mut().enumerate().with_min_len(ROWS).for_each(|(i, gradient)| {
            let column = part.first + i;
            for (dy, z) in dy.chunks(TOKENS * width).zip(z.chunks(TOKENS * width)) {
                let values = dy.iter().skip(column).step_by(width).zip(z.iter().skip(column).step_by(width));
                let sum: f32 = values.map(|(&dy, &z)| dy.into() * (z.into() - part.bias(i))).sum();
                *gradient += if part.norms[i] > 0.0 { sum / part.norms[i] } else { 0.0 };
            }
        });
        gradients.push(gradient);
    }
    let all = parts(group);
    z.par_chunks_exact_mut(width).zip(dy.par_chunks_exact(width)).with_min_len(ROWS).for_each(|(z, dy)| {
        z.copy_from_slice(dy);
        for part in &all {
            let columns = z[part.first..][..part.n].iter_mut().enumerate();
            columns.for_each(|(i, z)| *z = T::of(part.factor(i) * (*z).into()));
        }
    });
    drop(all);
    let magnitudes = group.segments.iter_mut().filter_map(|segment| segment.lora.as_mut()?.magnitude.as_mut());
    magnitudes.zip(gradients).for_each(|(magnitude, gradient)| magnitude.m.parts().1.copy_from_slice(&gradient));
}
