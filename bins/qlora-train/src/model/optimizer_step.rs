//! The optimizer step: gradients over micro-batches, clipping, LoRA+ AdamW, ranks that are cut.

pub use super::reduction::reduce_bytes;

use super::reduction::{AfterLayer, summed};
use crate::backend::{Backend, Batch, ParamUpdate, StepPart, TraceMode, clip};
use crate::comm::{Communicator, Signs, SingleProcess};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::lora::ParamKind;
use crate::model::Llama;
use crate::objective::total_weight;
use crate::report::status;
use qlora_kernels::optim::AdamW;
use serde::{Deserialize, Serialize};

/// Numbers that an optimizer step follows from, beside the data.
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

    /// Those of a run whose rates no longer depend on the size of its model: [`Settings::resolve`] wrote them down.
    pub fn of(settings: &Settings) -> Self {
        let (learning_rate_a, learning_rate_b) = settings.learning_rates_for(0);
        Self {
            learning_rate_a,
            learning_rate_b,
            weight_decay: settings.weight_decay,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            epsilon: settings.adam_epsilon,
            max_grad_norm: settings.max_grad_norm,
        }
    }
}

/// Outcome of one optimizer step.
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

/// The micro-batches of a step that are done, counted over all ranks; the gradients of this rank's are in the trainable
/// tensors, and once all are done those of all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accumulated {
    pub micro_batches: usize,
    /// Sum over the supervised tokens of this rank's; once all are done of all ranks'
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
    let (mut comm, begun) = (SingleProcess, Accumulated::default());
    let (done, _) = accumulate(backend, model, &mut comm, step, accumulation, batches, begun, &Signs::default)?;
    update(backend, model, &comm, hyper, step, accumulation, factor, batches, done.loss)
}

/// The first part of a step: the gradients of this rank's share of `batches`, which are those of all ranks, after those
/// that are `done`. The ranks take them in turn, and agree after each round by their `signs`; a signal ends it, and
/// fewer micro-batches may be done then than there are. Once all are done, gradients and losses of each rank are
/// replaced by those of all, as far as can be beside the last backward pass, and completed by what no batch has a part
/// in.
pub fn accumulate<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut dyn Communicator,
    step: u64,
    accumulation: usize,
    batches: &[Batch],
    mut done: Accumulated,
    signs: &dyn Fn() -> Signs,
) -> Result<(Accumulated, Option<i32>)> {
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let total = total_weight(batches);
    check_total(step, total)?;
    backend.prepare_update(params(model))?;
    if done.micro_batches == 0 || rank > 0 {
        // Gradients from before count once: on rank 0.
        backend.in_graph(StepPart::Clear, None, |backend| backend.zero_gradients(params(model)))?;
        done.loss = 0.0;
    }
    if done.micro_batches >= batches.len() {
        done.loss =
            summed(backend, model, comm, done.loss, |b, model, after_layer| model.without_batch(b, after_layer))?;
    }
    let mut signal = None;
    while done.micro_batches < batches.len() && signal.is_none() {
        let round = done.micro_batches / world_size * world_size;
        let micro = round + rank;
        let own = batches.get(micro).filter(|_| micro >= done.micro_batches);
        let mut diverged = None;
        let mut work = |backend: &mut B, model: &mut Llama<B>, after_layer: AfterLayer<'_, B>| -> Result<f64> {
            let Some(batch) = own else { return model.without_batch(backend, after_layer) };
            let (draw, weight) = (draw_of(step, accumulation, micro), (1.0 / total) as f32);
            let loss = model.forward_backward_telling(backend, batch, draw, weight, after_layer)?;
            if loss.is_finite() {
                return Ok(loss);
            }
            diverged = Some(loss);
            Err(Error::Failed(format!("the loss is {loss}")))
        };
        let is_last = round + world_size >= batches.len();
        let loss = match is_last {
            true => summed(backend, model, comm, done.loss, work),
            false => work(backend, model, &mut |_, _, _| Ok(())).map(|loss| done.loss + loss),
        };
        if let Some(loss) = diverged {
            let what = format!("step {}: the loss of micro-batch {} is {loss}", step + 1, micro + 1);
            return Err(not_finite(backend, model, comm, step, accumulation, batches, micro + 1, &what));
        }
        done.loss = loss?;
        done.micro_batches = (round + world_size).min(batches.len());
        signal = signs().agreed(comm)?;
    }
    if done.micro_batches >= batches.len() {
        model.complete_gradients(backend)?;
    }
    Ok((done, signal))
}

/// The number of a micro-batch's dropout masks: its place in the run, whichever rank computes it.
fn draw_of(step: u64, accumulation: usize, micro: usize) -> u32 {
    (step * accumulation as u64 + micro as u64) as u32
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

/// The last part of a step: clips the gradients of all ranks and updates every trainable tensor. `batches` are those of
/// all ranks, `loss` the sum over their supervised tokens.
pub fn update<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &dyn Communicator,
    hyper: &Hyperparameters,
    step: u64,
    accumulation: usize,
    factor: f64,
    batches: &[Batch],
    loss: f64,
) -> Result<StepReport> {
    let weight = total_weight(batches);
    let loss = loss / weight;
    let rate = |peak: f64| peak * factor;
    let arch = model.spec().arch.clone();
    let updates = model
        .params_mut()
        .into_iter()
        .map(|(id, param)| {
            let is_norm = id.kind() == ParamKind::Whole && arch.is_norm(id.module());
            // PEFT's optimizer for LoRA+ has it so: tensors of one dimension go with B.
            let peak = match id.kind() {
                ParamKind::LoraB | ParamKind::Magnitude => hyper.learning_rate_b,
                ParamKind::Whole if is_norm => hyper.learning_rate_b,
                ParamKind::LoraA | ParamKind::LoraE | ParamKind::Whole | ParamKind::Tokens => hyper.learning_rate_a,
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
    model.cut_ranks(backend, step + 1, clip(grad_norm, hyper.max_grad_norm))?;
    model.refresh(backend)?;
    Ok(StepReport {
        loss,
        grad_norm,
        learning_rate_a: rate(hyper.learning_rate_a),
        learning_rate_b: rate(hyper.learning_rate_b),
        tokens: batches.iter().map(Batch::tokens).sum(),
        supervised: batches.iter().map(Batch::supervised).sum(),
        weight,
    })
}

/// The error that ends a run in which `what` became of a step: computes this rank's of its first `micro_batches` again,
/// each from gradients of zero, and names the first value that is not finite. The gradients are of no use afterwards.
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
        let weight = (1.0 / total_weight(batches)) as f32;
        for (micro, batch) in batches[..micro_batches].iter().enumerate().skip(comm.rank()).step_by(comm.world_size()) {
            let draw = draw_of(step, accumulation, micro);
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
