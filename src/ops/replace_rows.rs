//! Rows that take the place of some of a table.

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// `table[rows[i]]` = `values[i]`, of a table `[vocab, h]` and values `[rows, h]`. No row is named twice; one that is
/// not below `vocab` is left out.
pub fn replace_rows(
    rows: View<'_, u32>,
    values: View<'_, bf16>,
    vocab: usize,
    h: usize,
    table: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let shape = format!("{} rows of a table of {vocab}, H {h}", rows.len());
    let operation = Operation { name: "replace_rows", shape };
    operation.length("the values", values.len(), operation.size(&[rows.len(), h])?)?;
    operation.length("the table", table.len(), operation.size(&[vocab, h])?)?;
    let args = sys::qk_replace_rows_args {
        struct_size: struct_size::<sys::qk_replace_rows_args>(),
        reserved: 0,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        num_rows: operation.dimension("the number of rows", rows.len())?,
        rows: rows.address(),
        values: values.address().cast(),
        table: table.address().cast(),
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return. The rows' numbers are the
    // caller's: the kernel writes none outside of the table.
    operation.status(unsafe { call!(qk_replace_rows(&args, stream.as_raw())) })
}
