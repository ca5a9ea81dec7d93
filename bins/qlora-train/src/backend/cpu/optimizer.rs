//! Gradient norm and AdamW over all trainable tensors.

use super::CpuParam;
use crate::backend::{OptimizerState, ParamUpdate};
use crate::error::Result;
use crate::refuse;
use qlora_kernels::reference;
use rayon::prelude::*;

/// In f64: per tensor in order, then over the tensors in order.
pub fn gradient_norm(params: &[&mut CpuParam]) -> f64 {
    let squares: Vec<f64> =
        params.par_iter().map(|p| p.gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>()).collect();
    squares.iter().sum::<f64>().sqrt()
}

pub fn adamw(updates: Vec<ParamUpdate<'_, CpuParam>>, gradient_scale: f32) {
    updates.into_par_iter().for_each(|update| {
        let CpuParam { value, gradient, first, second } = update.param;
        reference::adamw(&update.settings, gradient_scale, gradient, value, first, second);
    });
}

pub fn state(param: &CpuParam) -> Option<OptimizerState> {
    let trained = !param.gradient.is_empty();
    trained.then(|| OptimizerState::F32 { m: param.first.clone(), v: param.second.clone() })
}

pub fn restore(param: &mut CpuParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
    let n = param.value.len();
    if values.len() != n {
        refuse!("found {} values, expected {n}", values.len());
    }
    match state {
        OptimizerState::F32 { m, v } if param.first.len() == m.len() && param.second.len() == v.len() => {
            (param.value, param.first, param.second) = (values, m, v);
            Ok(())
        }
        state => refuse!("found {}, expected f32 states of {} elements", state.describe(), param.first.len()),
    }
}

pub fn restore_gradient(param: &mut CpuParam, gradient: Vec<f32>) -> Result<()> {
    if gradient.len() != param.gradient.len() {
        refuse!("found a gradient of {} values, expected {}", gradient.len(), param.gradient.len());
    }
    param.gradient = gradient;
    Ok(())
}
