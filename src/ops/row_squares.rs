//! The sums of the squares of a weight's rows, of which the norms that magnitudes (DoRA) take the place of are made.

use super::check::{Operation, struct_size};
use super::linear::Weight;
use super::operand::Operands;
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use crate::sys;

/// `squares` `[n]` = the sum of the squares of each row of a weight `[n, k]`, of elements that are rounded to bf16 as
/// the products have them.
pub fn row_squares(weight: &Weight<'_>, k: usize, squares: ViewMut<'_, f32>, stream: Stream) -> Result<()> {
    let n = squares.len();
    let operation = Operation { name: "row_squares", shape: format!("N {n}, K {k}") };
    let mut operands = Operands::default();
    let (nf4, dense) = operands.weight(&operation, weight, n, k)?;
    let args = sys::qk_row_squares_args {
        struct_size: struct_size::<sys::qk_row_squares_args>(),
        reserved: 0,
        n: operation.dimension("N", n)?,
        k: operation.dimension("K", k)?,
        nf4,
        dense,
        squares: squares.address(),
    };
    // SAFETY: every length was checked against the shape; `args` and what it points to in host memory are read before
    // the return.
    operation.status(unsafe { call!(qk_row_squares(&args, stream.as_raw())) })
}
