//! Trainable tensors, the norm of their gradients, and AdamW over all of them.

use super::operands::Training;
use super::{Cpu, CpuParam};
use crate::backend::{Memory, Optimizer, OptimizerState, ParamUpdate, StateFormat, clip};
use crate::error::Result;
use crate::refuse;
use qlora_kernels::optim::AdamW;
use qlora_kernels::optim8bit::adamw_blockwise;
use rayon::prelude::*;

impl Cpu {
    /// A trainable tensor; `lines` are the plan's for its values and its gradient.
    pub(super) fn trained(
        &mut self,
        [values, gradients]: [&'static str; 2],
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuParam> {
        // What is held in a dry run, and what it is counted as.
        let (held, bytes) = (if self.is_dry_run() { 0 } else { len }, len as u64 * 4);
        let value = if self.is_dry_run() { Vec::new() } else { init()? };
        assert_eq!(value.len(), held, "trainable tensor");
        let memory = &self.memory;
        let training = states.map(|format| Training {
            gradient: memory.hold(gradients, bytes, vec![0.0; held]),
            state: memory.hold("AdamW states", format.bytes(len), format.zeros(held)),
        });
        Ok(CpuParam { value: memory.hold(values, bytes, value), operand: None, training })
    }
}

impl Optimizer for Cpu {
    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuParam> {
        self.trained(["LoRA A and B", "LoRA gradients"], len, states, init)
    }

    fn param_values(&self, param: &CpuParam) -> Result<Vec<f32>> {
        Ok(param.value.clone())
    }

    fn optimizer_state(&self, param: &CpuParam) -> Result<Option<OptimizerState>> {
        Ok(param.training.as_ref().map(|training| training.state.clone()))
    }

    fn restore(&mut self, param: &mut CpuParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
        check_values(&values, param.value.len())?;
        let Some(training) = &mut param.training else {
            refuse!("found {}, expected none: the tensor is not trained", state.describe());
        };
        if !training.state.fits(&state) {
            refuse!("found {}, expected {}", state.describe(), training.state.describe());
        }
        (*param.value, *training.state) = (values, state);
        Ok(())
    }

    fn set_values(&mut self, param: &mut CpuParam, values: Vec<f32>) -> Result<()> {
        check_values(&values, param.value.len())?;
        *param.value = values;
        Ok(())
    }

    fn prepare_operand(&mut self, param: &mut CpuParam, len: usize) {
        param.operand = Some(self.memory.hold("LoRA E times A", len as u64 * 4, param.value.clone()));
    }

    fn set_operand(&mut self, param: &mut CpuParam, values: Vec<f32>) -> Result<()> {
        check_values(&values, param.value.len())?;
        **param.operand.as_mut().expect("room was made for it") = values;
        Ok(())
    }

    fn gradient(&self, param: &CpuParam) -> Result<Vec<f32>> {
        Ok(param.gradient().to_vec())
    }

    fn restore_gradient(&mut self, param: &mut CpuParam, gradient: Vec<f32>) -> Result<()> {
        let own = param.gradient().len();
        if gradient.len() != own {
            refuse!("found a gradient of {} values, expected {own}", gradient.len());
        }
        if let Some(training) = &mut param.training {
            *training.gradient = gradient;
        }
        Ok(())
    }

    fn gradient_len(&self, param: &CpuParam) -> usize {
        param.gradient().len()
    }

    fn clear_gradients(&mut self, params: Vec<&mut CpuParam>) -> Result<()> {
        params.into_iter().filter_map(|param| param.training.as_mut()).for_each(|training| training.gradient.fill(0.0));
        Ok(())
    }

    fn clip_and_update(&mut self, updates: Vec<ParamUpdate<'_, CpuParam>>, max_norm: f64) -> Result<f64> {
        let tensors = updates.into_iter().map(|ParamUpdate { param: CpuParam { value, training, .. }, settings }| {
            let Training { gradient, state } = training.as_mut().expect("only trained tensors are updated");
            Tensor { value, gradient, state, settings }
        });
        let tensors: Vec<Tensor> = tensors.collect();
        let norm = gradient_norm(&tensors);
        if norm.is_finite() {
            let scale = clip(norm, max_norm);
            // Each is updated as on its own.
            tensors.into_par_iter().for_each(|tensor| tensor.update(scale));
        }
        Ok(norm)
    }
}

fn check_values(values: &[f32], expected: usize) -> Result<()> {
    if values.len() != expected {
        refuse!("found {} values, expected {expected}", values.len());
    }
    Ok(())
}

/// One tensor of an update.
struct Tensor<'a> {
    value: &'a mut [f32],
    gradient: &'a [f32],
    state: &'a mut OptimizerState,
    settings: AdamW,
}

impl Tensor<'_> {
    fn update(self, scale: f32) {
        let Self { value, gradient, state, settings } = self;
        match state {
            OptimizerState::F32 { m, v } => settings.scalars().update(scale, gradient, value, m, v),
            OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => {
                adamw_blockwise(&settings, scale, gradient, value, m, m_absmax, v, v_absmax);
            }
        }
    }
}

/// In f64: per tensor in order, then over the tensors in order.
fn gradient_norm(tensors: &[Tensor]) -> f64 {
    let squares = tensors.par_iter().map(|tensor| tensor.gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum());
    squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}
