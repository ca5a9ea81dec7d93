//! Values to compute with, and sums in double precision to compare with.

use half::bf16;

/// Values in (-size, size), cut to bf16; the same on every machine.
pub fn values(count: usize, size: f32, mut seed: u32) -> Vec<bf16> {
    let mut next = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        bf16::from_f32(((seed >> 8) as f32 / 8388608.0 - 1.0) * size)
    };
    (0..count).map(|_| next()).collect()
}

/// `scale · left[i] · right[i]`
pub fn products<'a>(
    left: impl IntoIterator<Item = &'a bf16>,
    right: impl IntoIterator<Item = &'a bf16>,
    scale: f32,
) -> impl Iterator<Item = f64> {
    left.into_iter().zip(right).map(move |(l, r)| l.to_f64() * r.to_f64() * f64::from(scale))
}

/// Column `column` of a row-major matrix of `columns` columns.
pub fn column<T>(matrix: &[T], columns: usize, column: usize) -> impl Iterator<Item = &T> {
    matrix[column..].iter().step_by(columns)
}

/// The largest |error| / bound that was seen. A bound is the error of f32 sums of that many terms in any order, and
/// that of rounding the stored value; 2⁻²³ a term, because tensor cores cut where f32 rounds.
#[derive(Default)]
pub struct Worst(pub f64);

impl Worst {
    pub fn compare_bf16(&mut self, found: bf16, terms: impl Iterator<Item = f64>) {
        self.compare(found.to_f64(), 2f64.powi(-8), terms);
    }

    pub fn compare_f32(&mut self, found: f32, terms: impl Iterator<Item = f64>) {
        self.compare(f64::from(found), 2f64.powi(-24), terms);
    }

    fn compare(&mut self, found: f64, rounding: f64, terms: impl Iterator<Item = f64>) {
        let (mut sum, mut size, mut count) = (0.0, 0.0, 0);
        for term in terms {
            sum += term;
            size += term.abs();
            count += 1;
        }
        let error = (found - sum).abs() / (sum.abs() * rounding + f64::from(count) * size * 2f64.powi(-23));
        // Not a number counts as infinitely wrong.
        self.0 = self.0.max(if error.is_nan() { f64::INFINITY } else { error });
    }
}
