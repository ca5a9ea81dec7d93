//! Gradients of the rows of an embedding table.

use super::{Real, axpy};

/// `dTable[id] += scale·dOut` of each token in order. A token whose id the table does not have is left out.
pub fn embedding_backward<T: Real>(
    dout: &[T],  // [M, H]
    ids: &[u32], // [M]
    scale: T,
    dtable: &mut [T], // [V, H]
    h: usize,
) {
    for (dout, &id) in dout.chunks_exact(h).zip(ids) {
        if let Some(row) = dtable.chunks_exact_mut(h).nth(id as usize) {
            axpy(scale, dout, row);
        }
    }
}
