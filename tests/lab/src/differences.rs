//! Central finite differences of functions of f64 slices, with an error bound rather than a tolerance.

use qlora_kernels::rng::RngStream;

/// The step, a power of two. Test inputs are multiples of 2⁻²⁰ below 2⁵, so `x ± STEP` and `x ± 2·STEP` are exact.
pub const STEP: f64 = 1.0 / 2048.0;

/// Multiples of 2⁻²⁰, uniform in (−limit, limit).
pub fn values(stream: &mut RngStream, count: usize, limit: f64) -> Vec<f64> {
    let mut next = || ((f64::from(stream.uniform()) * 2.0 - 1.0) * limit * 1048576.0).trunc() / 1048576.0;
    (0..count).map(|_| next()).collect()
}

pub fn absolute(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.abs()).collect()
}

pub fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Σ |xᵢ|
pub fn magnitude(x: &[f64]) -> f64 {
    x.iter().map(|x| x.abs()).sum()
}

/// Bounds for the error of a difference quotient of `L(x) = Σ cᵢ·yᵢ(x)`.
pub struct ErrorOf {
    /// At least |∂⁵L/∂x⁵| within two steps of x, for any one element of x; 0 where L is affine in each of them.
    pub fifth_derivative: f64,
    /// At least the rounding error of computing L once, in units of 2⁻⁵³.
    pub rounding: f64,
}

impl ErrorOf {
    /// D = (8·(L(x+h) − L(x−h)) − (L(x+2h) − L(x−2h))) / 12h.
    ///
    /// - Truncation: the Taylor remainders h⁵/5!·L⁽⁵⁾ of the four terms, (2·8 + 2·2⁵)/(12·5!) = 1/18: h⁴·L⁽⁵⁾/18.
    /// - Rounding: four evaluations weighted (8 + 8 + 1 + 1)/12h: 1.5·e/h for an error e of one. The gradient under
    ///   test is a sum of at most as many rounded products as L and is multiplied by no 1/h: a second e.
    fn bound(&self) -> f64 {
        let unit = self.rounding / 9007199254740992.0;
        STEP.powi(4) / 18.0 * self.fifth_derivative + (1.5 / STEP + 1.0) * unit
    }
}

/// Asserts that `gradient` is the gradient of Σ c·y(x) at `x`.
pub fn check_gradient(
    what: &str,
    gradient: &[f64],
    x: &[f64],
    c: &[f64],
    y: impl Fn(&[f64]) -> Vec<f64>,
    error_of: ErrorOf,
) {
    assert_eq!(gradient.len(), x.len(), "{what}");
    let bound = error_of.bound();
    // A bound that lets a wrong sign or a lost term pass would check nothing.
    assert!(bound < 1e-6 * magnitude(c).max(1.0), "{what}: bound {bound:e}");
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        let mut at = |steps: f64| {
            moved[i] = x[i] + steps * STEP;
            let y = y(&moved);
            moved[i] = x[i];
            y
        };
        let (far_below, below, above, far_above) = (at(-2.0), at(-1.0), at(1.0), at(2.0));
        let difference: f64 =
            (0..c.len()).map(|j| c[j] * (8.0 * (above[j] - below[j]) - (far_above[j] - far_below[j]))).sum();
        let quotient = difference / (12.0 * STEP);
        let error = (gradient[i] - quotient).abs();
        assert!(error <= bound, "{what}[{i}] is {}, by differences {quotient}: {error:e} > {bound:e}", gradient[i]);
    }
}

/// `after − before`: the sum that an operation has added to its output.
pub fn added(after: &[f64], before: &[f64]) -> Vec<f64> {
    after.iter().zip(before).map(|(a, b)| a - b).collect()
}
