//! The table by which an update finds its tensors.

use super::adamw::{Tensors, table_len};
use crate::error::Result;

impl Tensors<'_> {
    /// The table that the device reads, to be uploaded once.
    pub fn table(&self) -> Result<Vec<u64>> {
        let operation = self.operation("adamw_table");
        let count = self.described.len() as u32;
        let mut table = vec![0u64; table_len(&self.lengths())];
        let room = table.len() * 8;
        // SAFETY: an array of `count` structs, and a table of `room` bytes, aligned to 8; no device memory is touched.
        let status = unsafe { call!(qk_adamw_table(self.described.as_ptr(), count, table.as_mut_ptr().cast(), room)) };
        operation.status(status)?;
        Ok(table)
    }
}
