//! The 8-bit absmax of an NF4 weight, from one [`Layout`](super::nf4::Layout) to the other.

use super::check::Operation;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;

/// `out` `[columns, rows]` = transpose of `input` `[rows, columns]`: absmax codes between the two layouts.
pub fn absmax_transpose(
    input: View<'_, u8>,
    out: ViewMut<'_, u8>,
    rows: usize,
    columns: usize,
    stream: Stream,
) -> Result<()> {
    let operation = Operation { name: "absmax_transpose", shape: format!("{rows} rows, {columns} columns") };
    let count = rows.checked_mul(columns).ok_or_else(|| operation.argument("too many elements".into()))?;
    operation.length("input", input.len(), count)?;
    operation.length("out", out.len(), count)?;
    let (rows, columns) = (operation.dimension("rows", rows)?, operation.dimension("columns", columns)?);
    // SAFETY: both views have rows * columns elements; a `View` and a `ViewMut` do not overlap.
    operation
        .status(unsafe { call!(qk_absmax_transpose(input.address(), out.address(), rows, columns, stream.as_raw())) })
}
