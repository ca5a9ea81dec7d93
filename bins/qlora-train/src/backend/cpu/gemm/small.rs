//! Small products inside a task of an operation that is parallel already.

use super::WIDTH;
use super::pack::Scaled;
use super::panels::{Lanes, compute, widest};
use super::product::{Left, Product, Right};
use super::tiles::split;
use pulp::Arch;

/// Steps that are summed on their own.
const CHUNK: usize = 128;

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl<'a> Mat<'a> {
    /// `rows` rows of `cols` values, `stride` values from one row to the next.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, stride, transposed: false }
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }
}

/// `dst = alpha·a·b`, or `dst += alpha·a·b` with `accumulate`, by the calling thread alone: for small products inside a
/// task. `dst` holds `a.rows` rows, `stride` values apart.
pub fn matmul(dst: &mut [f32], stride: usize, accumulate: bool, alpha: f32, a: Mat, b: Mat) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    let left = match a.transposed {
        false => Left::Rows { data: a.data, stride: a.stride },
        true => Left::Columns { data: a.data, stride: a.stride },
    };
    let values = Scaled { data: b.data, stride: b.stride, factor: alpha };
    let right = if b.transposed { Right::Turned(&values) } else { Right::upright(&values) };
    let product = Product { left, k: a.cols, right, chunk: CHUNK };
    let arch = Arch::new();
    let lanes = arch.dispatch(Lanes);
    let mut panel = [0.0; CHUNK * WIDTH];
    for mut tile in split(dst, stride, a.rows, 0..b.cols, widest(lanes), 1) {
        compute(arch, lanes, &mut tile, 0, &mut panel, accumulate, &[product]);
    }
}
