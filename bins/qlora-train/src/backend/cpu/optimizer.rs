//! Gradient norm and AdamW over all trainable tensors.

use super::CpuParam;
use crate::backend::ParamUpdate;
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
