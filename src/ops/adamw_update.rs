//! One update of all tensors.

use super::adamw::Tensors;
use crate::device::{Stream, View};
use crate::error::Result;

impl Tensors<'_> {
    /// One update. With `state`, gradients are scaled as it says, and nothing is updated if it names a tensor.
    pub fn update(
        &mut self,
        table: View<'_, u64>,
        rates: View<'_, f32>,
        state: Option<View<'_, u64>>,
        stream: Stream,
    ) -> Result<()> {
        let operation = self.operation("adamw_update");
        let adamw = self.describe(&operation, table, rates, state)?;
        // SAFETY: as in `gradient_norm`; the exclusive borrow keeps other updates of these tensors away.
        operation.status(unsafe { call!(qk_adamw_update(&adamw, stream.as_raw())) })
    }
}
