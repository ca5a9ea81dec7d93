//! A product of the library, as a call describes it.

use crate::device::{View, ViewMut};
use crate::error::Result;
use crate::ops::check::Operation;
use crate::ops::operand::rows;
use half::bf16;

/// `y = x · wᵀ (+ y) (+ bias)`, or `x · w`; f32 sums, rounded once.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// M, rows of x and y
    pub m: usize,
    /// N, columns of y
    pub n: usize,
    /// K, columns of x
    pub k: usize,
    /// `[m, k]`, rows `ldx` apart
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[n, k]`, or `[k, n]`, rows `ldw` apart
    pub w: View<'a, bf16>,
    /// Elements from row to row of w, at least its columns.
    pub ldw: usize,
    /// w is `[k, n]`: the product is `x · w`.
    pub k_by_n: bool,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// `[m, n]`, rows `ldy` apart
    pub y: ViewMut<'a, bf16>,
    /// Elements from row to row of y, at least n.
    pub ldy: usize,
    /// Adds to what y holds.
    pub accumulate: bool,
}

impl Gemm<'_> {
    /// Checks every length against the shape.
    pub(super) fn check(&self) -> Result<Operation> {
        let &Self { m, n, k, ldx, ldw, ldy, k_by_n, .. } = self;
        let operation = Operation { name: "cublaslt_gemm", shape: format!("M {m}, N {n}, K {k}") };
        operation.check(n > 0 && k > 0, || "N and K must be at least 1".into())?;
        let (w_rows, w_columns) = if k_by_n { (k, n) } else { (n, k) };
        rows(&operation, "x", self.x.len(), m, k, ldx)?;
        rows(&operation, "w", self.w.len(), w_rows, w_columns, ldw)?;
        rows(&operation, "y", self.y.len(), m, n, ldy)?;
        if let Some(bias) = &self.bias {
            operation.length("bias", bias.len(), n)?;
        }
        Ok(operation)
    }
}
