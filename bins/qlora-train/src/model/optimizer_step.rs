//! The optimizer step: gradients over micro-batches, clipping, LoRA+ AdamW.

use crate::backend::{Backend, Batch, ParamUpdate, Watch};
use crate::error::{Error, Result};
use crate::model::{Factor, Llama};
use crate::report::status;
use qlora_kernels::reference::AdamW;
use serde::{Deserialize, Serialize};

/// What an optimiser step follows from, beside the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Peak rate of every A.
    pub learning_rate_a: f64,
    /// Peak rate of every B (LoRA+: the rate of A times the ratio).
    pub learning_rate_b: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// The gradient is scaled down to this norm; 0 means no clipping.
    pub max_grad_norm: f64,
}

impl Hyperparameters {
    /// Changes nothing: for plans.
    pub const NONE: Self = Self {
        learning_rate_a: 0.0,
        learning_rate_b: 0.0,
        weight_decay: 0.0,
        beta1: 0.0,
        beta2: 0.0,
        epsilon: 1.0,
        max_grad_norm: 0.0,
    };
}

/// What one optimiser step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the supervised tokens of all micro-batches, nats.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate_a: f64,
    pub learning_rate_b: f64,
    pub tokens: usize,
    pub supervised: usize,
}

/// The micro-batches of a step that are done; their gradients are in the trainable tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accumulated {
    pub micro_batches: usize,
    /// Sum over their supervised tokens.
    pub loss: f64,
}

/// One optimiser step (`step` counts from 0) over `batches`, with the schedule's `factor` on both rates.
///
/// The loss is divided by the supervised tokens of all micro-batches together, so splitting a batch does not change
/// the gradient. `accumulation` is the number of micro-batches of a full step: it numbers the dropout masks.
pub fn optimizer_step<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    hyper: &Hyperparameters,
    step: u64,
    accumulation: usize,
    factor: f64,
    batches: &[Batch],
) -> Result<StepReport> {
    let done = accumulate(backend, model, step, accumulation, batches, Accumulated::default(), &|| false)?;
    update(backend, model, hyper, step, accumulation, factor, batches, done.loss)
}

/// The first half of a step: the gradients of `batches` after those that are `done`. Between two micro-batches it asks
/// whether to `stop`; what it returns then has fewer micro-batches than there are.
pub fn accumulate<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    step: u64,
    accumulation: usize,
    batches: &[Batch],
    mut done: Accumulated,
    stop: &dyn Fn() -> bool,
) -> Result<Accumulated> {
    let supervised = supervised(batches);
    if supervised == 0 {
        return Err(Error::Failed(format!("step {}: no token of this step is supervised", step + 1)));
    }
    backend.prepare_update(params(model))?;
    if done.micro_batches == 0 {
        backend.zero_gradients(params(model))?;
    }
    for (micro, batch) in batches.iter().enumerate().skip(done.micro_batches) {
        let draw = (step * accumulation as u64 + micro as u64) as u32;
        let loss = model.forward_backward(backend, batch, draw, (1.0 / supervised as f64) as f32)?;
        if !loss.is_finite() {
            let what = format!("step {}: the loss of micro-batch {} is {loss}", step + 1, micro + 1);
            return Err(not_finite(backend, model, step, accumulation, batches, micro + 1, &what));
        }
        done.loss += loss;
        done.micro_batches += 1;
        if stop() {
            break;
        }
    }
    Ok(done)
}

fn supervised(batches: &[Batch]) -> usize {
    batches.iter().map(Batch::supervised).sum()
}

/// The second half of a step: clips the accumulated gradients and updates every trainable tensor. `loss` is the sum
/// over the supervised tokens of `batches`.
pub fn update<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    hyper: &Hyperparameters,
    step: u64,
    accumulation: usize,
    factor: f64,
    batches: &[Batch],
    loss: f64,
) -> Result<StepReport> {
    let supervised = supervised(batches);
    let loss = loss / supervised as f64;
    let rate = |peak: f64| peak * factor;
    let updates = model
        .params_mut()
        .into_iter()
        .map(|(name, param)| {
            let peak = match name.factor {
                Factor::A => hyper.learning_rate_a,
                Factor::B => hyper.learning_rate_b,
            };
            let settings = AdamW {
                learning_rate: rate(peak),
                beta1: hyper.beta1,
                beta2: hyper.beta2,
                epsilon: hyper.epsilon,
                weight_decay: hyper.weight_decay,
                step: step + 1,
            };
            ParamUpdate { param, settings }
        })
        .collect();
    let grad_norm = backend.update(updates, hyper.max_grad_norm)?;
    if !grad_norm.is_finite() {
        let what = format!("step {}: the gradient norm is {grad_norm}", step + 1);
        return Err(not_finite(backend, model, step, accumulation, batches, batches.len(), &what));
    }
    Ok(StepReport {
        loss,
        grad_norm,
        learning_rate_a: rate(hyper.learning_rate_a),
        learning_rate_b: rate(hyper.learning_rate_b),
        tokens: batches.iter().map(Batch::tokens).sum(),
        supervised,
    })
}

/// The error that ends a run in which `what` became of a step: computes its first `micro_batches` again, each from gradients of zero, and
/// names the first value that is not finite. The gradients are of no use afterwards.
fn not_finite<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    step: u64,
    accumulation: usize,
    batches: &[Batch],
    micro_batches: usize,
    what: &str,
) -> Error {
    let mut found = String::new();
    if backend.watch(Watch::Values).unwrap_or(false) {
        status!("{what}: computing the step again to find the first value that is not finite, which takes a while");
        let weight = (1.0 / supervised(batches) as f64) as f32;
        for (micro, batch) in batches[..micro_batches].iter().enumerate() {
            let draw = (step * accumulation as u64 + micro as u64) as u32;
            let again = backend
                .zero_gradients(params(model))
                .and_then(|()| model.forward_backward(backend, batch, draw, weight));
            if let Err(error) = again {
                found = format!("; in micro-batch {}, {error}", micro + 1);
                break;
            }
        }
        let _ = backend.watch(Watch::Nothing);
    }
    Error::Failed(format!("{what}{found}; nothing was updated. A lower learning_rate is the usual cure"))
}

fn params<B: Backend>(model: &mut Llama<B>) -> Vec<&mut B::Param> {
    model.params_mut().into_iter().map(|(_, param)| param).collect()
}
