//! Rows of bf16, dense or further apart than they are wide: behind the columns of one matrix there is then room for
//! those of another.

use super::check::Operation;
use super::operand;
use crate::device::{View, ViewMut};
use crate::error::Result;
use half::bf16;

/// Rows that a call reads: of a view they are dense.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(super) view: View<'a, bf16>,
    stride: Option<usize>,
}

/// Rows that a call writes, and nothing between them: of a view they are dense.
#[derive(Debug)]
pub struct RowsMut<'a> {
    pub(super) view: ViewMut<'a, bf16>,
    stride: Option<usize>,
}

impl<'a> Rows<'a> {
    /// Rows `stride` elements apart. The last one may end with its columns.
    pub fn apart(view: View<'a, bf16>, stride: usize) -> Self {
        Self { view, stride: Some(stride) }
    }

    /// The stride as the C interface takes it, for m rows of `columns` elements each; an error if there are too few
    /// elements.
    pub(super) fn check(&self, operation: &Operation, what: &str, m: usize, columns: usize) -> Result<i64> {
        check(operation, what, self.view.len(), self.stride, m, columns)
    }

    /// Rows of `columns` elements each.
    pub(super) fn count(&self, columns: usize) -> usize {
        count(self.view.len(), self.stride, columns)
    }

    /// Elements from the start of one row of `columns` elements to that of the next.
    pub(super) fn stride(&self, columns: usize) -> usize {
        self.stride.unwrap_or(columns)
    }
}

impl<'a> RowsMut<'a> {
    /// Rows `stride` elements apart. The last one may end with its columns.
    pub fn apart(view: ViewMut<'a, bf16>, stride: usize) -> Self {
        Self { view, stride: Some(stride) }
    }

    /// The stride as the C interface takes it, for m rows of `columns` elements each; an error if there are too few
    /// elements.
    pub(super) fn check(&self, operation: &Operation, what: &str, m: usize, columns: usize) -> Result<i64> {
        check(operation, what, self.view.len(), self.stride, m, columns)
    }

    /// Rows of `columns` elements each.
    pub(super) fn count(&self, columns: usize) -> usize {
        count(self.view.len(), self.stride, columns)
    }
}

impl<'a> From<View<'a, bf16>> for Rows<'a> {
    fn from(view: View<'a, bf16>) -> Self {
        Self { view, stride: None }
    }
}

impl<'a> From<ViewMut<'a, bf16>> for RowsMut<'a> {
    fn from(view: ViewMut<'a, bf16>) -> Self {
        Self { view, stride: None }
    }
}

fn count(len: usize, stride: Option<usize>, columns: usize) -> usize {
    match stride {
        None | Some(0) => len.checked_div(columns).unwrap_or(0),
        Some(stride) => len.div_ceil(stride),
    }
}

fn check(
    operation: &Operation,
    what: &str,
    len: usize,
    stride: Option<usize>,
    m: usize,
    columns: usize,
) -> Result<i64> {
    match stride {
        None => operation.length(what, len, operation.size(&[m, columns])?)?,
        Some(stride) => operand::rows(operation, what, len, m, columns, stride)?,
    }
    operation.dimension("the stride", stride.unwrap_or(0))
}
