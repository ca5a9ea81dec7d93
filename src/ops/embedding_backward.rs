//! The gradient of the rows of an embedding table. Formula: [`crate::reference::embedding_backward`].

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// `dtable` `[vocab, h]` += `scale`, finite and not 0, times the rows of `dout` `[m, h]`, each to that of its id, token
/// by token in order. An id that is not below `vocab` is left out.
pub fn embedding_backward(
    ids: View<'_, u32>,
    dout: View<'_, bf16>,
    vocab: usize,
    h: usize,
    scale: f32,
    dtable: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    let m = ids.len();
    let operation = Operation { name: "embedding_backward", shape: format!("M {m}, H {h}, vocabulary {vocab}") };
    operation.length("dout", dout.len(), operation.size(&[m, h])?)?;
    operation.length("the gradient of the table", dtable.len(), operation.size(&[vocab, h])?)?;
    let args = sys::qk_embedding_backward_args {
        struct_size: struct_size::<sys::qk_embedding_backward_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        ids: ids.address(),
        dout: dout.address().cast(),
        dtable: dtable.address(),
        scale,
        reserved2: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_embedding_backward(&args, stream.as_raw())) })
}
