//! Trainable tensors and their optimizer.

use super::{Operands, OptimizerState, StateFormat};
use crate::error::Result;
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
    /// The current values.
    fn param_values(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// The optimizer's states; none where the tensor is not trained.
    fn optimizer_state(&self, param: &Self::Param) -> Result<Option<OptimizerState>>;
    /// Puts back what [`Self::param_values`] and [`Self::optimizer_state`] gave. Refuses values or states of another
    /// length or kind than the tensor has, and then changes nothing.
    fn restore(&mut self, param: &mut Self::Param, values: Vec<f32>, state: OptimizerState) -> Result<()>;
    /// The gradient accumulated so far, which [`Self::restore`] leaves as it is. Empty where the tensor is not trained.
    fn gradient(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// Puts back what [`Self::gradient`] gave. Refuses another length, and then changes nothing.
    fn restore_gradient(&mut self, param: &mut Self::Param, gradient: Vec<f32>) -> Result<()>;
    /// Makes room for updates of these tensors; before the first operation of a step.
    fn prepare_update(&mut self, _params: Vec<&mut Self::Param>) -> Result<()> {
        Ok(())
    }
    fn clear_gradients(&mut self, params: Vec<&mut Self::Param>) -> Result<()>;
    /// Like [`Backend::update`](super::Backend::update), for at least one tensor. Not called in a dry run.
    fn clip_and_update(&mut self, updates: Vec<ParamUpdate<'_, Self::Param>>, max_norm: f64) -> Result<f64>;
}

/// The factor on gradients of this norm, as in PyTorch's `clip_grad_norm_`: never above 1, safe at a norm of 0, and 1
/// without a limit.
pub fn clip(norm: f64, max_norm: f64) -> f32 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}
