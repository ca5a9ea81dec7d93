//! Trainable tensors and their optimizer.

use super::{Operands, OptimizerState, StateFormat};
use crate::error::{Error, Result};
use qlora_kernels::device::Others;
use qlora_kernels::optim::AdamW;

/// One trainable tensor and how the optimizer treats it.
pub struct ParamUpdate<'a, P> {
    pub param: &'a mut P,
    pub settings: AdamW,
}

/// Trainable tensors. The model calls [`Backend::zero_gradients`](super::Backend::zero_gradients) and
/// [`Backend::update`](super::Backend::update).
pub trait Optimizer: Operands {
    /// `states` adds a gradient and the optimizer's states, in the format that it gives a tensor of this length. `init`
    /// is called at most once, and not at all in a dry run.
    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Param>;
    /// A tensor whose values operations read in f32 on every device, as the optimizer leaves them.
    fn param_in_f32(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Param> {
        self.param(len, states, init)
    }
    /// The current values.
    fn param_values(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// The optimizer's states; none where the tensor is not trained.
    fn optimizer_state(&self, param: &Self::Param) -> Result<Option<OptimizerState>>;
    /// Puts back what [`Self::param_values`] and [`Self::optimizer_state`] gave. Refuses values or states of another
    /// length or kind than the tensor has, and then changes nothing.
    fn restore(&mut self, param: &mut Self::Param, values: Vec<f32>, state: OptimizerState) -> Result<()>;
    /// Gives a tensor other values. Its gradient and the optimizer's states stay.
    fn set_values(&mut self, param: &mut Self::Param, values: Vec<f32>) -> Result<()>;
    /// Makes room for [`Self::set_operand`] in a tensor of `len` values, where products read these themselves.
    fn prepare_operand(&mut self, _param: &mut Self::Param, _len: usize) {}
    /// Gives products other values to read in the place of a tensor's own, for as long as these stay.
    fn set_operand(&mut self, param: &mut Self::Param, values: Vec<f32>) -> Result<()>;
    /// The gradient accumulated so far, which [`Self::restore`] leaves as it is. Empty where the tensor is not trained.
    fn gradient(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// Puts back what [`Self::gradient`] gave. Refuses another length, and then changes nothing.
    fn restore_gradient(&mut self, param: &mut Self::Param, gradient: Vec<f32>) -> Result<()>;
    /// Length of the gradient; 0 where the tensor is not trained.
    fn gradient_len(&self, param: &Self::Param) -> usize;
    /// True if gradients are read and put back beside the operations, by [`begin_reading`](Self::begin_reading),
    /// [`read`](Self::read), [`put_back`](Self::put_back) and [`finish_reading`](Self::finish_reading). If not, they
    /// are there at once.
    fn reads_beside(&self) -> bool {
        false
    }
    /// Begins to read the gradients of a group, as they are after the operations so far. They are nobody's until
    /// [`finish_reading`](Self::finish_reading). Groups are read, and put back, in the order in which they were begun.
    fn begin_reading(&mut self, _params: Vec<&mut Self::Param>) -> Result<()> {
        Err(Error::Failed("this device does not read gradients beside its operations".to_owned()))
    }
    /// The gradients of the next group, one after the other; none: they are on their way. `waits` for them.
    fn read(&mut self, _waits: bool) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
    /// Puts other values in the place of the gradients that were read first and not put back. Refuses another length.
    fn put_back(&mut self, _values: &[f32]) -> Result<()> {
        Ok(())
    }
    /// Gives back the gradients of all groups, which `params` are of, in the order in which they were begun. Operations
    /// from now on find what was put back.
    fn finish_reading(&mut self, _params: Vec<&mut Self::Param>) -> Result<()> {
        Ok(())
    }
    /// Ends what is being read, and gives the gradients back with any values: this rank has failed. `params` are those
    /// of all groups, begun or not, in their order.
    fn abandon_reading(&mut self, _params: Vec<&mut Self::Param>) {}
    /// True if this device adds up gradients over the ranks of a run, which it has met before.
    fn adds_up(&self) -> bool {
        false
    }
    /// Begins to replace gradients by their sums over the ranks, after the operations so far. They are nobody's until
    /// [`finish_sums`](Self::finish_sums). All ranks begin the same sums in the same order. Failed: a rank is gone, by
    /// what `others` say.
    fn begin_sum(&mut self, _params: Vec<&mut Self::Param>, _others: &mut dyn Others) -> Result<()> {
        Err(Error::Failed("this device does not add up gradients".to_owned()))
    }
    /// Waits for all sums. `params` are those of all of them, in the order in which they were begun.
    fn finish_sums(&mut self, _params: Vec<&mut Self::Param>, _others: &mut dyn Others) -> Result<()> {
        Ok(())
    }
    /// Ends sums that are under way, and gives the gradients back with any values: this rank has failed. `params` are
    /// those of all sums, begun or not, in their order.
    fn abandon_sums(&mut self, _params: Vec<&mut Self::Param>) {}
    /// Makes room for updates of these tensors; before the first operation of a step.
    fn prepare_update(&mut self, _params: Vec<&mut Self::Param>) -> Result<()> {
        Ok(())
    }
    fn clear_gradients(&mut self, params: Vec<&mut Self::Param>) -> Result<()>;
    /// The update of [`Backend::update`](super::Backend::update), for at least one tensor. Not called in a dry run.
    fn clip_and_update(&mut self, updates: Vec<ParamUpdate<'_, Self::Param>>, max_norm: f64) -> Result<f64>;
}

/// The factor on gradients of this norm, as in PyTorch's `clip_grad_norm_`: never above 1, safe at a norm of 0, and 1
/// without a limit.
pub fn clip(norm: f64, max_norm: f64) -> f32 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}
