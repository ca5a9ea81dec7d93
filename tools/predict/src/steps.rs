//! The whole training step: the trainer's own list of operations, each as long as its launches take.

use crate::cards::{Card, LAUNCH_GAP, LAUNCH_RAMP};
use crate::launches::{Kernels, Launch, predict};
use crate::operations::{NF4_BYTES, Operation, adamw};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A step as `qlora-train bench --plan --json` plans it.
#[derive(Debug, Deserialize)]
pub struct PlannedStep {
    pub shape: String,
    pub tokens: usize,
    /// Memory of the card that may be taken
    pub memory: String,
    pub fits: bool,
    pub activations: Option<BTreeMap<String, usize>>,
    pub operations: Vec<Operation>,
}

/// The memory of a card, as steps are planned for it.
pub fn memory_of(card: &Card) -> &'static str {
    match card.memory.value {
        memory if memory < 30.0 => "23.5GiB",
        memory if memory < 40.0 => "31.3GiB",
        memory if memory < 60.0 => "44.4GiB",
        _ => "79GiB",
    }
}

const STEPS: &str = include_str!("../steps.json");

/// All planned steps.
pub fn planned() -> Result<Vec<PlannedStep>> {
    serde_json::from_str(STEPS).context("tools/predict/steps.json is not as the trainer's tests write it")
}

/// Bytes of a trainable parameter beside its update: the norm's reading of the gradient, and its clearing.
const GRADIENT_BYTES: f64 = 4.0 + 4.0;

/// A step on a card.
#[derive(Debug)]
pub struct PredictedStep {
    pub seconds: f64,
    /// Seconds of each kind of operation, in the order of the step
    pub kinds: Vec<(String, f64)>,
    /// Parameters that it updates
    pub trained: usize,
}

/// The code that the frozen layers' products run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// The fused kernels
    Fused,
    /// The weights dequantized to a scratch, then one product of a library for each group and pass
    Library,
}

/// Seconds of one product of a library over weights that are dequantized first.
fn by_library(operation: &Operation, card: &Card) -> f64 {
    let dequantized = operation.weights() * (NF4_BYTES + 2.0) / card.copy_bandwidth();
    let product = operation.flops / (card.library_tflops.value * 1e12);
    dequantized + product + 2.0 * (LAUNCH_GAP.value + LAUNCH_RAMP.value)
}

/// From this share of idle time on the trainer computes low-rank gradients beside dX: `WORTH`.
const IDLE_SHARE: f64 = 1.0 / 16.0;

/// Seconds of low-rank gradients that pass while the last blocks of dX, which comes before them, leave multiprocessors
/// idle.
fn beside_dx(kernels: &Kernels, dx: &Operation, gradients: &Operation, card: &Card) -> Result<f64> {
    let (mut idle, mut seconds) = (0.0, 0.0);
    for launch in dx.launches(kernels, card).unwrap_or_default() {
        let predicted = predict(kernels, &launch, card)?;
        if 1.0 - predicted.busy >= IDLE_SHARE {
            idle += (1.0 - predicted.busy) * predicted.seconds;
        }
    }
    for launch in gradients.launches(kernels, card).unwrap_or_default() {
        seconds += predict(kernels, &launch, card)?.seconds;
    }
    Ok(dx.count.min(gradients.count) as f64 * f64::min(idle, seconds))
}

/// A planned step on a card.
pub fn step(kernels: &Kernels, step: &PlannedStep, card: &Card, products: Products) -> Result<PredictedStep> {
    step_of(kernels, &step.operations, card, |_| products)
}

/// A step of these operations on a card; `products` chooses the code for an operation of frozen layers.
pub fn step_of(
    kernels: &Kernels,
    operations: &[Operation],
    card: &Card,
    products: impl Fn(&Operation) -> Products,
) -> Result<PredictedStep> {
    let mut kinds: Vec<(String, f64)> = Vec::new();
    let mut add = |name: &str, seconds: f64| match kinds.iter_mut().find(|(other, _)| other == name) {
        Some((_, sum)) => *sum += seconds,
        None => kinds.push((name.to_owned(), seconds)),
    };
    let mut trained = 0;
    for (index, operation) in operations.iter().enumerate() {
        let is_product = matches!(operation.name.as_str(), "linear" | "linear, backward");
        if is_product && products(operation) == Products::Library {
            add(&operation.name, operation.count as f64 * by_library(operation, card));
            continue;
        }
        let launches = operation.launches(kernels, card);
        let launches =
            launches.with_context(|| format!("no launches are known of the operation {}", operation.name))?;
        for launch in &launches {
            add(&operation.name, operation.count as f64 * predict(kernels, launch, card)?.seconds);
        }
        trained += operation.count * operation.trained;
        if operation.name == "LoRA gradients" {
            let before = index.checked_sub(1).map(|before| &operations[before]);
            if let Some(dx) = before.filter(|dx| dx.name == "linear, backward" && products(dx) == Products::Fused) {
                add(&operation.name, -beside_dx(kernels, dx, operation, card)?);
            }
        }
    }
    let norm = Launch::moving("gradient_partials", 256, trained.div_ceil(4096).max(1), trained as f64 * GRADIENT_BYTES);
    for launch in [norm, adamw(card, trained as f64)] {
        add("optimizer", predict(kernels, &launch, card)?.seconds);
    }
    Ok(PredictedStep { seconds: kinds.iter().map(|(_, seconds)| seconds).sum(), kinds, trained })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_beside_dx_from_the_share_of_the_trainer_on() {
        let trainer = include_str!("../../../bins/qlora-train/src/backend/cuda/beside.rs");
        let worth = format!("const WORTH: f64 = 1.0 / {:.1};", 1.0 / IDLE_SHARE);
        assert!(trainer.contains(&worth), "{worth}");
    }

    #[test]
    fn every_planned_step_is_read_and_counts_the_models_flops() {
        let steps = planned().unwrap();
        let of = |shape: &str, tokens: usize, memory: &str| {
            let is_it = |step: &&PlannedStep| {
                (step.shape.as_str(), step.tokens, step.memory.as_str()) == (shape, tokens, memory)
            };
            steps.iter().find(is_it).unwrap()
        };
        let sum = |step: &PlannedStep, name: &str| -> f64 {
            let named = step.operations.iter().filter(|operation| operation.name == name);
            named.map(|operation| operation.count as f64 * operation.flops).sum()
        };
        let step = of("llama-3-8b", 2048, "79GiB");
        // 6,979,321,856 parameters of linear layers; the low-rank terms come on top.
        let linear = 2.0 * 6_979_321_856.0 * 2048.0;
        let found = sum(step, "linear") / linear;
        assert!((1.0..1.01).contains(&found), "{found}");
        assert_eq!(sum(step, "attention"), 32.0 * 2.0 * 2048.0 * 2048.0 * 4096.0);
    }
}
