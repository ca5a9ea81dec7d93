//! Operands of one product that computes all segments of a linear layer, and the sizes of what they are put together
//! in.

use super::rows::Rows;
use crate::device::{View, ViewMut};
use crate::sys;
use half::bf16;

/// Operands of a product `[m, n]`, whose f32 sums over k are rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Columns of the product
    pub n: usize,
    /// Terms of each sum, those of the low-rank part included
    pub k: usize,
    /// `[m, k]`, rows `ldx` apart
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[n, k]`, or `[k, n]` in dX, rows `ldw` apart
    pub w: View<'a, bf16>,
    /// Elements from row to row of w, at least its columns.
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

/// Scratch of a product. One made of a view has no room for X.
#[derive(Debug)]
pub struct Workspace<'a> {
    pub(super) scratch: ViewMut<'a, bf16>,
    pub(super) has_room: bool,
}

impl<'a> Workspace<'a> {
    /// For an X, or the dY of dX, in rows of a multiple of 8 elements that have room for S, or T, behind their columns.
    /// A product puts it there, and does not copy X: what lies between the rows is written, though X is a view. The
    /// segments' dY are then columns of one matrix, one behind the other.
    pub fn with_room(scratch: ViewMut<'a, bf16>) -> Self {
        Self { scratch, has_room: true }
    }
}

impl<'a> From<ViewMut<'a, bf16>> for Workspace<'a> {
    fn from(scratch: ViewMut<'a, bf16>) -> Self {
        Self { scratch, has_room: false }
    }
}

/// The struct that the C library writes a product into.
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

/// True if S or T lies behind the columns of X or dY, in the same rows.
pub(super) fn follows(low_rank: Option<Rows<'_>>, r: usize, x: View<'_, bf16>, ldx: usize, columns: usize) -> bool {
    low_rank.is_some_and(|low_rank| {
        low_rank.view.address() == x.address().wrapping_add(columns) && low_rank.stride(r) == ldx
    }) && ldx.is_multiple_of(8)
}

/// True if W has to be put together: it is not a single weight of bf16 without a low-rank term.
pub(super) fn joins_w(segments: &[(usize, usize)], columns: usize, is_dense: bool) -> bool {
    columns > 0 || segments.len() > 1 || !is_dense
}
