//! Soft caps of scores and logits: x becomes `cap · tanh(x / cap)`, whose slope is `1 − tanh²(x / cap)`.

use super::elementwise::exp;
use super::gemm::simd::vectorized;

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// A value under its cap.
#[inline(always)]
pub fn capped(cap: f32, x: f32) -> f32 {
    cap * tanh(x / cap)
}

/// The slope at a value that [`capped`] gave.
#[inline(always)]
pub fn slope_of_capped(cap: f32, capped: f32) -> f32 {
    let tanh = capped / cap;
    1.0 - tanh * tanh
}

vectorized! {
    /// Caps every value.
    pub fn cap_values<'a>(cap: f32, values: &'a mut [f32]) {
        for x in values {
            *x = capped(cap, *x);
        }
    }
}

vectorized! {
    /// The slopes at values that [`cap_values`] has capped.
    pub fn slopes_of_capped<'a>(cap: f32, capped: &'a [f32], slopes: &'a mut [f32]) {
        for (x, slope) in capped.iter().zip(slopes) {
            *slope = slope_of_capped(cap, *x);
        }
    }
}

/// Caps a row of scores and returns their slopes, for as many as a tile has; without a cap nothing changes.
pub fn cap_scores<const TILE: usize>(soft_cap: Option<f32>, scores: &mut [f32]) -> Option<[f32; TILE]> {
    let cap = soft_cap?;
    let mut slopes = [0.0; TILE];
    cap_values(cap, scores);
    slopes_of_capped(cap, scores, &mut slopes);
    Some(slopes)
}

/// Gradients of capped values as those of the values.
pub fn times(gradients: &mut [f32], slopes: &[f32]) {
    gradients.iter_mut().zip(slopes).for_each(|(gradient, slope)| *gradient *= slope);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within 2⁻²² of the cap; the slope within 2⁻²⁰.
    #[test]
    fn values_and_slopes_are_those_of_f64() {
        for cap in [0.5f32, 30.0, 50.0] {
            let values: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.05).collect();
            let mut capped = values.clone();
            let mut found = vec![f32::NAN; values.len()];
            cap_values(cap, &mut capped);
            slopes_of_capped(cap, &capped, &mut found);
            for ((x, capped), slope) in values.iter().zip(&capped).zip(&found) {
                let tanh = (f64::from(*x) / f64::from(cap)).tanh();
                let unit = 2f64.powi(-22);
                assert!((f64::from(*capped) - f64::from(cap) * tanh).abs() <= f64::from(cap) * unit, "{x} {capped}");
                assert!((f64::from(*slope) - (1.0 - tanh * tanh)).abs() <= 4.0 * unit, "{x} {slope}");
            }
        }
    }

    #[test]
    fn what_is_beyond_every_cap_is_the_cap_and_has_no_slope() {
        let mut scores = [f32::INFINITY, f32::NEG_INFINITY, 1e30, f32::NAN];
        let slopes = cap_scores::<4>(Some(30.0), &mut scores).unwrap();
        assert!(scores[..3] == [30.0, -30.0, 30.0] && slopes[..3] == [0.0; 3]);
        assert!(scores[3].is_nan() && slopes[3].is_nan());
        let mut same = [-1e30, 7.0];
        assert!(cap_scores::<2>(None, &mut same).is_none() && same == [-1e30, 7.0]);
    }
}
