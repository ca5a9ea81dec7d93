//! Trainable tensors, the norm of their gradients, and AdamW over all of them.

use super::operands::Training;
use super::{Cpu, CpuParam};
use crate::backend::{Memory, Optimizer, OptimizerState, ParamUpdate, StateFormat, clip};
use crate::bail_usage;
use crate::error::Result;
use qlora_kernels::optim::AdamW;
use qlora_kernels::optim8bit::{BLOCK_SIZE, adamw_blockwise};
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
        // Values that are held, none in a dry run, and the bytes that are counted.
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
            bail_usage!("found {}, expected none: the tensor is not trained", state.describe());
        };
        if !training.state.fits(&state) {
            bail_usage!("found {}, expected {}", state.describe(), training.state.describe());
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
            bail_usage!("found a gradient of {} values, expected {own}", gradient.len());
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
            // Each value is updated as on its own, or with its block.
            tensors.into_par_iter().for_each(|tensor| tensor.update(scale));
        }
        Ok(norm)
    }
}

fn check_values(values: &[f32], expected: usize) -> Result<()> {
    if values.len() != expected {
        bail_usage!("found {} values, expected {expected}", values.len());
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

/// Values that a task updates, in whole blocks of 8-bit states: one large tensor keeps all threads busy.
pub(super) const PIECE: usize = 1 << 15;
const _: () = assert!(PIECE.is_multiple_of(BLOCK_SIZE));

impl Tensor<'_> {
    fn update(self, scale: f32) {
        let Self { value, gradient, state, settings } = self;
        let values = value.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        match state {
            OptimizerState::F32 { m, v } => {
                let scalars = settings.scalars::<f32>();
                let states = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
                values.zip(states).for_each(|((value, gradient), (m, v))| scalars.update(scale, gradient, value, m, v));
            }
            OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => {
                let m = m.par_chunks_mut(PIECE).zip(m_absmax.par_chunks_mut(PIECE / BLOCK_SIZE));
                let v = v.par_chunks_mut(PIECE).zip(v_absmax.par_chunks_mut(PIECE / BLOCK_SIZE));
                values.zip(m.zip(v)).for_each(|((value, gradient), ((m, m_absmax), (v, v_absmax)))| {
                    adamw_blockwise(&settings, scale, gradient, value, m, m_absmax, v, v_absmax);
                });
            }
        }
    }
}

/// In f64: per tensor in order, then over the tensors in order.
fn gradient_norm(tensors: &[Tensor]) -> f64 {
    let squares = tensors.par_iter().map(|tensor| tensor.gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum());
    squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor that ends within a piece, with either kind of states.
    #[test]
    fn pieces_of_a_tensor_are_updated_as_the_whole() {
        let len = 2 * PIECE + BLOCK_SIZE + 7;
        let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let gradient: Vec<f32> = (0..len).map(|i| (i as f32 * 0.71).cos() * (i % 13) as f32).collect();
        let settings =
            AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1, step: 3 };
        for format in [StateFormat::F32, StateFormat::Blockwise8] {
            let (mut value, mut state) = (values.clone(), format.zeros(len));
            let (mut expected, mut whole) = (values.clone(), format.zeros(len));
            for _ in 0..2 {
                Tensor { value: &mut value, gradient: &gradient, state: &mut state, settings }.update(0.5);
                match &mut whole {
                    OptimizerState::F32 { m, v } => {
                        settings.scalars::<f32>().update(0.5, &gradient, &mut expected, m, v);
                    }
                    OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => {
                        adamw_blockwise(&settings, 0.5, &gradient, &mut expected, m, m_absmax, v, v_absmax);
                    }
                }
            }
            assert!(value == expected && state == whole && value != values, "{format:?}");
        }
    }
}
