//! The L2 norm of all gradients, its clipping, and the first tensor that is not finite.

use super::adamw::{STATE_LEN, Tensors};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;

impl Tensors<'_> {
    /// `state` `[STATE_LEN]` = a [`GradientState`](super::adamw::GradientState): the norm, its clipping to `max_norm`
    /// (0: none), the first tensor that is not finite. `workspace` is `[workspace_len]`.
    pub fn gradient_norm(
        &self,
        table: View<'_, u64>,
        rates: View<'_, f32>,
        max_norm: f64,
        state: ViewMut<'_, u64>,
        workspace: ViewMut<'_, u64>,
        stream: Stream,
    ) -> Result<()> {
        let operation = self.operation("gradient_norm");
        let adamw = self.describe(&operation, table, rates, None)?;
        operation.length("the gradients' state", state.len(), STATE_LEN)?;
        operation.check(max_norm >= 0.0, || format!("max_norm is {max_norm}, expected at least 0"))?;
        operation.length("the workspace", workspace.len(), self.workspace_len())?;
        let (to, room) = (state.address().cast(), workspace.address().cast());
        // SAFETY: lengths were checked here and in `new`; that the table is of these tensors is the caller's promise,
        // kept by whoever uploads what `table` gave. Structs are read before the return.
        operation.status(unsafe {
            call!(qk_gradient_norm(&adamw, max_norm, to, room, workspace.len() * 8, stream.as_raw()))
        })
    }
}
