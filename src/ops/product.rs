//! Operands of one product that computes all segments of a linear layer, and the sizes of what they are put together
//! in.

use crate::device::View;
use crate::sys;
use half::bf16;

/// Operands of a product `[m, n]`, whose f32 sums over k are rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    pub n: usize,
    pub k: usize,
    /// `[m, k]`, rows `ldx` apart
    pub x: View<'a, bf16>,
    pub ldx: usize,
    /// `[n, k]`, or `[k, n]` in dX, rows `ldw` apart
    pub w: View<'a, bf16>,
    pub ldw: usize,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
}

impl Product<'_> {
    /// # Safety
    ///
    /// `product` is what the C library wrote for m tokens, and what it names lives, and is not written, for the
    /// lifetime.
    pub(super) unsafe fn of_c(product: &sys::qk_product, m: usize, w_is_k_by_n: bool) -> Self {
        let of = |value: i64| usize::try_from(value).expect("a dimension that the library wrote");
        let (n, k, ldx, ldw) = (of(product.n), of(product.k), of(product.ldx), of(product.ldw));
        let len =
            |rows: usize, stride: usize, columns: usize| rows.checked_sub(1).map_or(0, |last| last * stride + columns);
        let w_len = if w_is_k_by_n { len(k, ldw, n) } else { len(n, ldw, k) };
        // SAFETY: the caller's promise; the lengths are those of the product's operands.
        let view = |address: *const std::ffi::c_void, len| unsafe { View::from_raw_parts(address.cast(), len) };
        let bias = (!product.bias.is_null()).then(|| view(product.bias, n));
        Self { n, k, x: view(product.x, len(m, ldx, k)), ldx, w: view(product.w, w_len), ldw, bias }
    }
}

/// What the C library writes a product into.
pub(super) fn unwritten() -> sys::qk_product {
    sys::qk_product {
        struct_size: size_of::<sys::qk_product>() as u32,
        reserved: 0,
        n: 0,
        k: 0,
        x: std::ptr::null(),
        ldx: 0,
        w: std::ptr::null(),
        ldw: 0,
        bias: std::ptr::null(),
    }
}

/// Elements of a part of the workspace: the next one begins at a multiple of 256 bytes.
pub(super) fn part(elements: usize) -> usize {
    elements.next_multiple_of(128)
}

/// Elements from row to row of what is put together.
pub(super) fn stride(columns: usize) -> usize {
    columns.next_multiple_of(8)
}

/// All features, and the columns of S and T, of segments of (n, r).
pub(super) fn sizes(segments: &[(usize, usize)]) -> (usize, usize) {
    let n = segments.iter().map(|(n, _)| n).sum();
    (n, segments.iter().map(|(_, r)| r.next_multiple_of(8)).sum())
}

/// Whether W has to be put together: it is not a single weight of bf16 without a low-rank term.
pub(super) fn joins_w(segments: &[(usize, usize)], columns: usize, is_dense: bool) -> bool {
    columns > 0 || segments.len() > 1 || !is_dense
}
