//! Gradients of the rows of an embedding table, of all of them or of some.

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

/// [`embedding_backward`] of the rows of some ids alone, in their order.
pub fn embedding_backward_of_rows<T: Real>(
    dout: &[T],  // [M, H]
    ids: &[u32], // [M]
    rows: &[u32],
    scale: T,
    drows: &mut [T], // [rows, H]
    h: usize,
) {
    for (dout, id) in dout.chunks_exact(h).zip(ids) {
        if let Some(row) = rows.iter().position(|row| row == id) {
            axpy(scale, dout, &mut drows[row * h..][..h]);
        }
    }
}
