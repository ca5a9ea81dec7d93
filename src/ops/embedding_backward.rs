//! The gradient of the rows of an embedding table. Formulas: [`crate::reference::embedding_backward`],
//! [`crate::reference::embedding_backward_of_rows`].

use super::check::{Operation, struct_size};
use super::rows::Rows;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use std::ptr::null;

/// `dtable` `[vocab, h]` += `scale`, finite and not 0, times the rows of `dout` `[m, h]`, each to that of its id, token
/// by token in order. An id that is not below `vocab` is left out.
pub fn embedding_backward<'a>(
    ids: View<'_, u32>,
    dout: impl Into<Rows<'a>>,
    vocab: usize,
    h: usize,
    scale: f32,
    dtable: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    launch(ids, dout.into(), None, vocab, h, scale, dtable, stream)
}

/// [`embedding_backward`] of some rows alone: `drows` `[rows, h]` += those of the ids in `rows`, which ascend, each
/// once. They are at least one and below `vocab`; another id is left out.
pub fn embedding_backward_of_rows<'a>(
    ids: View<'_, u32>,
    dout: impl Into<Rows<'a>>,
    rows: View<'_, u32>,
    vocab: usize,
    h: usize,
    scale: f32,
    drows: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    launch(ids, dout.into(), Some(rows), vocab, h, scale, drows, stream)
}

fn launch(
    ids: View<'_, u32>,
    dout: Rows<'_>,
    rows: Option<View<'_, u32>>,
    vocab: usize,
    h: usize,
    scale: f32,
    dtable: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    let (m, num_rows) = (ids.len(), rows.map(|rows| rows.len()));
    let shape = match num_rows {
        None => format!("M {m}, H {h}, vocabulary {vocab}"),
        Some(rows) => format!("M {m}, H {h}, vocabulary {vocab}, {rows} of its rows"),
    };
    let operation = Operation { name: "embedding_backward", shape };
    let lddout = dout.check(&operation, "dout", m, h)?;
    operation.check(num_rows != Some(0), || "found no rows, expected at least one".to_owned())?;
    operation.length("the gradient of the table", dtable.len(), operation.size(&[num_rows.unwrap_or(vocab), h])?)?;
    let args = sys::qk_embedding_backward_args {
        struct_size: struct_size::<sys::qk_embedding_backward_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        ids: ids.address(),
        dout: dout.view.address().cast(),
        dtable: dtable.address(),
        scale,
        reserved2: 0,
        rows: rows.map_or(null(), |rows| rows.address()),
        num_rows: operation.dimension("the number of rows", num_rows.unwrap_or(0))?,
        lddout,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return. Ids and rows are the
    // caller's: the kernel writes no row that is not of the gradient.
    operation.status(unsafe { call!(qk_embedding_backward(&args, stream.as_raw())) })
}
