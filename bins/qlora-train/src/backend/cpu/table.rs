//! The embedding and the output layer: frozen, trained, with rows of their own, or in the files of the base.

use super::memory::Held;
use super::operands::{CpuParam, Dense, Matrix, OwnRows};
use super::table_on_disk::TableOnDisk;
use crate::backend::{MaybeTrained, TableShape};
use crate::base::RowsOnDisk;
use crate::error::Result;
use std::ops::Range;

/// The embedding or the output layer.
pub enum CpuTable {
    Frozen(Held<Dense>),
    Trained {
        param: CpuParam,
        rows: usize,
        cols: usize,
    },
    /// Frozen but for the rows of `tokens`, in order, whose values are `[tokens, cols]`
    Rows {
        dense: Held<Dense>,
        tokens: Vec<u32>,
        param: CpuParam,
    },
    /// In the files of the base
    OnDisk(TableOnDisk),
}

/// The gradient of a table: of all its rows, of those of some tokens, or empty.
pub struct TableGradient<'a> {
    pub data: &'a mut [f32],
    pub tokens: Option<&'a [u32]>,
}

impl TableGradient<'_> {
    pub fn none() -> Self {
        Self { data: &mut [], tokens: None }
    }
}

/// The rows of a table, which threads share.
#[derive(Clone, Copy)]
pub enum TableRows<'a> {
    InMemory(Matrix<'a>),
    OnDisk(&'a RowsOnDisk),
}

impl TableRows<'_> {
    /// Hands over a matrix that has `row`, and the number of the row in it.
    pub(super) fn with(&self, row: usize, use_row: impl FnOnce(&Matrix, usize)) -> Result<()> {
        match self {
            Self::InMemory(matrix) => use_row(matrix, row),
            Self::OnDisk(stored) => {
                let dense = Dense { tensor: stored.read(row..row + 1, None)?, cols: stored.columns() };
                use_row(&Matrix::Dense(&dense), 0);
            }
        }
        Ok(())
    }
}

impl CpuTable {
    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Frozen(dense) | Self::Rows { dense, .. } => dense.cols,
            Self::Trained { cols, .. } => *cols,
            Self::OnDisk(table) => table.cols,
        }
    }

    pub(super) fn rows(&self) -> TableRows<'_> {
        TableRows::InMemory(match self {
            Self::Frozen(dense) => Matrix::Dense(dense),
            Self::Trained { param, rows, cols } => Matrix::F32 { data: &param.value, rows: *rows, cols: *cols },
            Self::Rows { dense, tokens, param } => Matrix::Rows(OwnRows { dense, tokens, data: &param.value }),
            Self::OnDisk(table) => return TableRows::OnDisk(table.stored()),
        })
    }

    /// Hands over all rows in order: in one part, or in those that are read from disk.
    pub(super) fn each_part(&self, use_part: &mut dyn FnMut(Range<usize>, &Matrix)) -> Result<()> {
        if let Self::OnDisk(table) = self {
            return table.each_part(use_part);
        }
        if let TableRows::InMemory(matrix) = self.rows() {
            use_part(0..self.vocab(), &matrix);
        }
        Ok(())
    }

    /// The values and the gradient, which is empty where it is frozen, of a table in memory.
    pub(super) fn parts(&mut self) -> (Matrix<'_>, TableGradient<'_>) {
        match self {
            Self::Frozen(dense) => (Matrix::Dense(dense), TableGradient::none()),
            Self::Trained { param, rows, cols } => {
                let (data, gradient) = param.parts();
                (Matrix::F32 { data, rows: *rows, cols: *cols }, TableGradient { data: gradient, tokens: None })
            }
            Self::Rows { dense, tokens, param } => {
                let (tokens, (data, gradient)) = (&tokens[..], param.parts());
                let rows = OwnRows { dense, tokens, data };
                (Matrix::Rows(rows), TableGradient { data: gradient, tokens: Some(tokens) })
            }
            Self::OnDisk(_) => unreachable!("a table of which anything is trained is in memory"),
        }
    }
}

impl TableShape for CpuTable {
    fn vocab(&self) -> usize {
        match self {
            Self::Frozen(dense) | Self::Rows { dense, .. } => dense.rows(),
            Self::Trained { rows, .. } => *rows,
            Self::OnDisk(table) => table.vocab,
        }
    }

    fn trained_rows(&self) -> usize {
        match self {
            Self::Frozen(_) | Self::OnDisk(_) => 0,
            Self::Trained { rows, .. } => *rows,
            Self::Rows { tokens, param, .. } => param.training.as_ref().map_or(0, |_| tokens.len()),
        }
    }
}

impl MaybeTrained<CpuParam> for CpuTable {
    fn param(&self) -> Option<&CpuParam> {
        match self {
            Self::Frozen(_) | Self::OnDisk(_) => None,
            Self::Trained { param, .. } | Self::Rows { param, .. } => Some(param),
        }
    }

    fn param_mut(&mut self) -> Option<&mut CpuParam> {
        match self {
            Self::Frozen(_) | Self::OnDisk(_) => None,
            Self::Trained { param, .. } | Self::Rows { param, .. } => Some(param),
        }
    }
}
