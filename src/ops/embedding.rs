//! Rows of the embedding table.

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// `out` `[m, h]` = `scale`, finite and not 0, times the rows of `table` `[vocab, h]` that `ids` `[m]` name; a row
/// whose id is not below `vocab` becomes NaN.
pub fn embedding(
    ids: View<'_, u32>,
    table: View<'_, bf16>,
    vocab: usize,
    h: usize,
    scale: f32,
    out: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let m = ids.len();
    let operation = Operation { name: "embedding", shape: format!("M {m}, H {h}, vocabulary {vocab}") };
    operation.length("the table", table.len(), operation.size(&[vocab, h])?)?;
    operation.length("out", out.len(), operation.size(&[m, h])?)?;
    let args = sys::qk_embedding_args {
        struct_size: struct_size::<sys::qk_embedding_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        ids: ids.address(),
        table: table.address().cast(),
        out: out.address().cast(),
        scale,
        reserved2: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_embedding(&args, stream.as_raw())) })
}
