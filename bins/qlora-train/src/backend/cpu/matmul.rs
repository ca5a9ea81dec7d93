//! The one call into the `gemm` crate, behind views whose bounds are checked.

#![allow(unsafe_code)]

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

fn last_index(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    (rows - 1) * row_stride + (cols - 1) * col_stride
}

impl<'a> Mat<'a> {
    /// `rows` rows of `cols` values, `stride` values from one row to the next.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows > 0 && cols > 0 && last_index(rows, cols, stride, 1) < data.len(), "matrix view out of bounds");
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `dst = alpha·a·b`, or `dst += alpha·a·b` with `accumulate`. `dst` holds `a.rows` rows, `stride` values apart.
///
/// One thread; the order of every sum depends on the shapes alone.
pub fn matmul(dst: &mut [f32], stride: usize, accumulate: bool, alpha: f32, a: Mat, b: Mat) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner dimensions differ");
    assert!(stride >= n && last_index(m, n, stride, 1) < dst.len(), "destination out of bounds");
    // SAFETY: both operands were bounds-checked when their views were made, the destination above; rows of `dst` do
    // not overlap (stride ≥ n) and `dst` is borrowed mutably, so it aliases neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
