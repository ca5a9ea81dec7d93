//! Rows of single tokens of the embedding and the output layer (`trainable_token_indices`). The table that products
//! read has them in bf16, as all others; beside it they are in f32, with a gradient, and go to the table again after
//! each update.

use super::Cuda;
use super::operands::{CudaTable, OwnRows};
use crate::backend::{Residency, StateFormat, Weights};
use crate::error::Result;
use crate::files::tensor::{HostTensor, StoredType};
use qlora_kernels::ops;

/// The plan's lines, of the rows and of their gradients.
const LINES: [&str; 2] = ["rows of single tokens", "gradients of rows of single tokens"];

impl Cuda {
    /// A table in which these rows have values of their own: those that `read` gives, or the table's. Without `states`
    /// they are not trained.
    pub(super) fn with_own_rows(
        &mut self,
        name: &'static str,
        [vocab, hidden]: [usize; 2],
        residency: Residency,
        stored: StoredType,
        tokens: &[u32],
        states: Option<StateFormat>,
        read: &mut dyn FnMut() -> Result<(HostTensor, Option<Vec<f32>>)>,
    ) -> Result<CudaTable> {
        let mut values = Vec::new();
        let mut table = self.table(name, vocab, hidden, residency, stored, &mut || {
            let (mut tensor, own) = read()?;
            match own {
                Some(own) => {
                    tensor.replace_rows(hidden, tokens, &own);
                    values = own;
                }
                None => values = tensor.rows_f32(hidden, tokens),
            }
            Ok(tensor)
        })?;
        if states.is_some() {
            let len = tokens.len() * hidden;
            let param = self.trained(LINES, len, states, false, &mut || Ok(std::mem::take(&mut values)))?;
            let tokens = self.memory.upload(LINES[0], tokens.len(), Some(tokens))?;
            table.rows = Some(Box::new(OwnRows { tokens, param }));
        }
        Ok(table)
    }

    /// Puts rows that are trained in the table that products read.
    pub(super) fn put_own_rows(&mut self, table: &mut CudaTable) -> Result<()> {
        let CudaTable { data, vocab, hidden, rows: Some(own) } = table else { return Ok(()) };
        if self.memory.is_dry_run() {
            return Ok(());
        }
        let OwnRows { tokens, param } = &**own;
        let (rows, values) = (tokens.view(), param.working.view());
        Ok(ops::replace_rows(rows, values, *vocab, *hidden, data.view_mut(), self.memory.stream())?)
    }
}
