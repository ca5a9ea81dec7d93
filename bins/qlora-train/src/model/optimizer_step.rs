//! The optimizer step: gradients over micro-batches, clipping, LoRA+ AdamW.

use crate::backend::{Backend, Batch, ParamUpdate, TraceMode};
use crate::comm::{Communicator, SingleProcess};
use crate::error::{Error, Result};
use crate::lora::ParamKind;
use crate::model::Llama;
use crate::objective::total_weight;
use crate::report::status;
use qlora_kernels::optim::AdamW;
use serde::{Deserialize, Serialize};

/// What an optimizer step follows from, beside the data.
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

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the supervised tokens of all micro-batches by their weights, nats.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub learning_rate_a: f64,
    pub learning_rate_b: f64,
    pub tokens: usize,
    pub supervised: usize,
    /// The sum of their weights.
    pub weight: f64,
}

/// The micro-batches of a step that are done; their gradients are in the trainable tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accumulated {
    pub micro_batches: usize,
    /// Sum over their supervised tokens.
    pub loss: f64,
}

/// One optimizer step in one process (`step` counts from 0) over `batches`, with the schedule's `factor` on both rates.
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
    let mut comm = SingleProcess;
    let done = accumulate(backend, model, &comm, step, accumulation, batches, Accumulated::default(), &|| false)?;
    update(backend, model, &mut comm, hyper, step, accumulation, factor, batches, done.loss)
}

/// The first half of a step: the gradients of `batches` after those that are `done`. Between two micro-batches it asks
/// whether to `stop`; what it returns then has fewer micro-batches than there are.
pub fn accumulate<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &dyn Communicator,
    step: u64,
    accumulation: usize,
    batches: &[Batch],
    mut done: Accumulated,
    stop: &dyn Fn() -> bool,
) -> Result<Accumulated> {
    let total = total_weight(batches);
    if comm.world_size() == 1 {
        check_total(step, total)?;
    }
    backend.prepare_update(params(model))?;
    if done.micro_batches == 0 {
        backend.zero_gradients(params(model))?;
    }
    for (micro, batch) in batches.iter().enumerate().skip(done.micro_batches) {
        let draw = draw_of(comm, step, accumulation, micro);
        let loss = model.forward_backward(backend, batch, draw, scale_of(total))?;
        if !loss.is_finite() {
            let what = format!("step {}: the loss of micro-batch {} is {loss}", step + 1, micro + 1);
            return Err(not_finite(backend, model, comm, step, accumulation, batches, micro + 1, &what));
        }
        done.loss += loss;
        done.micro_batches += 1;
        if stop() {
            break;
        }
    }
    Ok(done)
}

/// The number of a micro-batch's dropout masks: that of the micro-batch in the step of all ranks.
fn draw_of(comm: &dyn Communicator, step: u64, accumulation: usize, micro: usize) -> u32 {
    let of_rank = step * accumulation as u64 + micro as u64;
    (of_rank * comm.world_size() as u64 + comm.rank() as u64) as u32
}

/// What this rank's gradients are multiplied by: they are a mean over its own tokens until [`reduce`].
fn scale_of(total: f64) -> f32 {
    if total > 0.0 { (1.0 / total) as f32 } else { 1.0 }
}

fn check_total(step: u64, total: f64) -> Result<()> {
    // A weight that is not a number is refused by its place when its batch begins.
    if total > 0.0 || total.is_nan() {
        return Ok(());
    }
    let what = match total == 0.0 {
        true => "no token of this step is supervised".to_owned(),
        false => format!("the weights of this step's tokens add up to {total}, expected a number above 0"),
    };
    Err(Error::Failed(format!("step {}: {what}", step + 1)))
}

/// What the ranks of a step add up.
struct Totals {
    loss: f64,
    weight: f64,
    supervised: usize,
    tokens: usize,
}

/// Turns the gradients of this rank, which are divided by its own total weight, into those of all ranks. Nothing is
/// touched in one process.
fn reduce<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut dyn Communicator,
    totals: Totals,
) -> Result<Totals> {
    if comm.world_size() == 1 {
        return Ok(totals);
    }
    let mut params = params(model);
    let mut gradients = Vec::new();
    for param in &params {
        gradients.extend(backend.gradient(param)?);
    }
    let own = 1.0 / scale_of(totals.weight);
    gradients.iter_mut().for_each(|x| *x *= own);
    let mut sums = [totals.loss, totals.weight, totals.supervised as f64, totals.tokens as f64];
    comm.all_reduce_sum(&mut gradients, &mut sums)?;
    let [loss, weight, supervised, tokens] = sums;
    gradients.iter_mut().for_each(|x| *x *= scale_of(weight));
    let mut rest = &gradients[..];
    for param in &mut params {
        let (own, others) = rest.split_at(backend.gradient(param)?.len());
        backend.restore_gradient(param, own.to_vec())?;
        rest = others;
    }
    Ok(Totals { loss, weight, supervised: supervised as usize, tokens: tokens as usize })
}

/// The second half of a step: adds up the gradients of all ranks, clips them and updates every trainable tensor. `loss`
/// is the sum over the supervised tokens of `batches`, which are those of this rank.
pub fn update<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut dyn Communicator,
    hyper: &Hyperparameters,
    step: u64,
    accumulation: usize,
    factor: f64,
    batches: &[Batch],
    loss: f64,
) -> Result<StepReport> {
    let own = Totals {
        loss,
        weight: total_weight(batches),
        supervised: batches.iter().map(Batch::supervised).sum(),
        tokens: batches.iter().map(Batch::tokens).sum(),
    };
    let Totals { loss, weight, supervised, tokens } = reduce(backend, model, comm, own)?;
    check_total(step, weight)?;
    let loss = loss / weight;
    let rate = |peak: f64| peak * factor;
    let arch = model.spec().arch.clone();
    let updates = model
        .params_mut()
        .into_iter()
        .map(|(id, param)| {
            let is_norm = id.kind() == ParamKind::Whole && arch.is_norm(id.module());
            // As PEFT's optimizer for LoRA+ has it: tensors of one dimension go with B.
            let peak = match id.kind() {
                ParamKind::LoraB | ParamKind::Magnitude => hyper.learning_rate_b,
                ParamKind::Whole if is_norm => hyper.learning_rate_b,
                ParamKind::LoraA | ParamKind::Whole => hyper.learning_rate_a,
            };
            let settings = AdamW {
                learning_rate: rate(peak),
                beta1: hyper.beta1,
                beta2: hyper.beta2,
                epsilon: hyper.epsilon,
                weight_decay: if is_norm { 0.0 } else { hyper.weight_decay },
                step: step + 1,
            };
            ParamUpdate { param, settings }
        })
        .collect();
    let grad_norm = backend.update(updates, hyper.max_grad_norm)?;
    if !grad_norm.is_finite() {
        let what = format!("step {}: the gradient norm is {grad_norm}", step + 1);
        return Err(not_finite(backend, model, comm, step, accumulation, batches, batches.len(), &what));
    }
    model.refresh(backend)?;
    Ok(StepReport {
        loss,
        grad_norm,
        learning_rate_a: rate(hyper.learning_rate_a),
        learning_rate_b: rate(hyper.learning_rate_b),
        tokens,
        supervised,
        weight,
    })
}

/// The error that ends a run in which `what` became of a step: computes its first `micro_batches` again, each from
/// gradients of zero, and names the first value that is not finite. The gradients are of no use afterwards.
fn not_finite<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &dyn Communicator,
    step: u64,
    accumulation: usize,
    batches: &[Batch],
    micro_batches: usize,
    what: &str,
) -> Error {
    let mut found = String::new();
    if backend.set_trace(TraceMode::Values).is_ok() {
        status!("{what}: computing the step again to find the first value that is not finite, which takes a while");
        let weight = scale_of(total_weight(batches));
        for (micro, batch) in batches[..micro_batches].iter().enumerate() {
            let draw = draw_of(comm, step, accumulation, micro);
            let again = backend
                .zero_gradients(params(model))
                .and_then(|()| model.forward_backward(backend, batch, draw, weight));
            if let Err(error) = again {
                found = format!("; in micro-batch {}, {error}", micro + 1);
                break;
            }
        }
        let _ = backend.set_trace(TraceMode::Off);
    }
    Error::Failed(format!("{what}{found}; nothing was updated. A lower learning_rate is the usual cure"))
}

fn params<B: Backend>(model: &mut Llama<B>) -> Vec<&mut B::Param> {
    model.params_mut().into_iter().map(|(_, param)| param).collect()
}
