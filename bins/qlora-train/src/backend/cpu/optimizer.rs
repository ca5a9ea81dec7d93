//! Gradient norm and AdamW over all trainable tensors.

use super::CpuParam;
use crate::backend::{OptimizerState, ParamUpdate, StateFormat, clip};
use crate::error::Result;
use crate::refuse;
use qlora_kernels::blockwise::adamw_blockwise;
use qlora_kernels::reference;
use rayon::prelude::*;

/// A tensor before its first update; without gradient and states if it is not trained.
pub fn param(value: Vec<f32>, states: Option<StateFormat>) -> CpuParam {
    let state = states.map(|format| format.zeros(value.len()));
    let gradient = vec![0.0; if state.is_some() { value.len() } else { 0 }];
    CpuParam { value, gradient, state }
}

/// In f64: per tensor in order, then over the tensors in order.
fn gradient_norm(updates: &[ParamUpdate<'_, CpuParam>]) -> f64 {
    let squares =
        updates.par_iter().map(|update| update.param.gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum());
    squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
}

/// Tensors in parallel: each is updated as on its own. Returns the gradients' norm before clipping.
pub fn update(updates: Vec<ParamUpdate<'_, CpuParam>>, max_norm: f64) -> f64 {
    let norm = gradient_norm(&updates);
    if norm.is_finite() {
        let scale = clip(norm, max_norm);
        updates.into_par_iter().for_each(|ParamUpdate { param: CpuParam { value, gradient, state }, settings }| {
            match state {
                Some(OptimizerState::F32 { m, v }) => reference::adamw(&settings, scale, gradient, value, m, v),
                Some(OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax }) => {
                    adamw_blockwise(&settings, scale, gradient, value, m, m_absmax, v, v_absmax);
                }
                None => unreachable!("only trained tensors are updated"),
            }
        });
    }
    norm
}

pub fn restore(param: &mut CpuParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
    let n = param.value.len();
    if values.len() != n {
        refuse!("found {} values, expected {n}", values.len());
    }
    match &param.state {
        Some(own) if own.fits(&state) => {
            (param.value, param.state) = (values, Some(state));
            Ok(())
        }
        Some(own) => refuse!("found {}, expected {}", state.describe(), own.describe()),
        None => refuse!("found {}, expected none: the tensor is not trained", state.describe()),
    }
}

pub fn restore_gradient(param: &mut CpuParam, gradient: Vec<f32>) -> Result<()> {
    if gradient.len() != param.gradient.len() {
        refuse!("found a gradient of {} values, expected {}", gradient.len(), param.gradient.len());
    }
    param.gradient = gradient;
    Ok(())
}
