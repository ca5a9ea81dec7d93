//! The time of a step, predicted from the kernels' machine code and the bytes that are copied: nothing of it was
//! measured.

use super::plan::MemoryPlan;
use crate::arch::Projection;
use crate::backend::{OpWork, Quantization, Residency};
use crate::files::units::format_bytes;
use crate::model::{Activations, ModelSpec};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Units of each kind of operation a second, by card: `cargo xtask predict --write` makes the file.
const RATES: &str = include_str!("predicted.json");

/// Card whose speed settles what is computed again and what is copied: the fastest, so that copies which its
/// computation hides are hidden on every other.
const FASTEST: &str = "H100";

/// Bytes a second to and from the host, each way: well below what PCIe 4.0 has with 16 lanes.
const LINK: f64 = 16e9;

/// Bytes a second of a disk.
const DISK: f64 = 1e9;

/// Operations a second of a CPU; only their number distinguishes one plan from another.
const CPU: f64 = 2e11;

/// Operations that move values and do little else, beside norms, at whose rate they go.
const LIKE_NORMS: [&str; 4] =
    ["magnitudes", "magnitudes, backward", "norm, gradient of the weight", "embedding, backward"];

/// Operations that dequantizing a weight takes on a CPU.
const DEQUANTIZE: f64 = 16.0;

#[derive(Clone, Deserialize)]
struct Rates {
    card: String,
    /// By the operation's name
    units_per_second: BTreeMap<String, f64>,
    /// Trainable parameters that are updated in a second
    updates_per_second: f64,
}

impl Rates {
    fn all() -> Vec<Self> {
        serde_json::from_str(RATES).expect("the tool that writes the file writes JSON")
    }

    /// Seconds of these operations; none if one of them is not known.
    fn seconds(&self, work: &[OpWork]) -> Option<f64> {
        let mut seconds = 0.0;
        for operation in work {
            let count = operation.count as f64;
            let rated = if LIKE_NORMS.contains(&operation.name) { "norm" } else { operation.name };
            seconds += count * operation.units / self.units_per_second.get(rated)?;
            seconds += count * operation.trained() as f64 / self.updates_per_second;
        }
        Some(seconds)
    }
}

/// Speed of a device, from which the time of a step is predicted.
pub struct Speed(Option<Rates>);

impl Speed {
    /// The speed of any GPU, or of any CPU: a plan is the same whichever there is.
    pub fn of(device: &super::Device) -> Self {
        let fastest = || Rates::all().into_iter().find(|rates| rates.card == FASTEST);
        Self(if device.is_cpu() { None } else { fastest() })
    }

    /// Seconds of one micro-batch and the update, without what is copied and read again.
    fn compute(&self, work: &[OpWork], flops: f64) -> f64 {
        self.0.as_ref().and_then(|rates| rates.seconds(work)).unwrap_or(flops / CPU)
    }

    /// Seconds of a step of `plan`, of one micro-batch: its operations, what is copied longer than a layer computes,
    /// the weights that are read again for each tile, and states that come from the host.
    pub fn step_seconds(&self, spec: &ModelSpec, plan: &MemoryPlan) -> f64 {
        let all = self.compute(&plan.work, plan.flops);
        let forward = self.compute(&plan.forward, plan.flops / 4.0).min(all);
        let layers = spec.arch.num_layers as f64;
        let (forward, backward) = (forward / layers, (all - forward) / layers);
        let weights: usize = Projection::ALL.iter().map(|of| of.shape(&spec.arch)).map(|(n, k)| n * k).sum();
        let bytes = weights as f64 * if spec.quantization == Quantization::None { 2.0 } else { 0.516 };
        let input = (2 * spec.tokens * spec.arch.hidden_size) as f64 / LINK;
        let mut seconds = 0.0;
        for layer in 0..spec.arch.num_layers {
            let weights = match spec.residency_of(layer) {
                Residency::Device => 0.0,
                Residency::Pinned => bytes / LINK,
                Residency::Disk => bytes / DISK,
            };
            let input = if spec.activations_of(layer) == Activations::Offload { input } else { 0.0 };
            // To the host and from it at the same time.
            seconds += forward.max(weights).max(input) + backward.max(weights + input);
        }
        if spec.head_waits() {
            seconds += head_seconds(spec);
        }
        // Forward, forward again and backward.
        let passes = 3.0 * layers * (spec.tokens.div_ceil(spec.tile()).max(1) - 1) as f64;
        let again = match self.0.as_ref().and_then(|rates| rates.units_per_second.get("norm")) {
            Some(values_per_second) => bytes / (2.0 * values_per_second),
            None => weights as f64 * DEQUANTIZE / CPU,
        };
        seconds + passes * again + paging_seconds(spec)
    }
}

/// Seconds of a micro-batch in which an output layer comes from the host: the loss follows the last layer, and waits.
fn head_seconds(spec: &ModelSpec) -> f64 {
    spec.head_bytes() as f64 / LINK
}

/// Seconds of a step in which states that wait in host memory come and go, both ways at the same time; once a step, of
/// however many micro-batches.
pub fn paging_seconds(spec: &ModelSpec) -> f64 {
    spec.paged_states().map_or(0.0, |(bytes, _)| bytes as f64 / LINK)
}

/// What a user is told of states that wait in host memory; none where that saves less than a MiB and less than a
/// thousandth of the `limit`, the bytes that may be used on the GPU.
pub fn states_note(spec: &ModelSpec, limit: u64) -> Option<String> {
    let (bytes, piece) = spec.paged_states()?;
    let saved = bytes.saturating_sub(2 * piece as u64);
    let is_worth_telling = saved >= (limit / 1000).clamp(1, 1 << 20);
    is_worth_telling.then(|| {
        format!(
            "AdamW's states wait in host memory: {} less on the GPU, {:.1} ms more a step at 16 GB/s",
            format_bytes(saved),
            1e3 * paging_seconds(spec)
        )
    })
}

/// Seconds of a step of `plan` on each card that is predicted. A card is left out for which one of its operations is
/// not known.
pub fn step_seconds(spec: &ModelSpec, plan: &MemoryPlan) -> Vec<(String, f64)> {
    let of_card = |rates: Rates| {
        rates.seconds(&plan.work)?;
        Some((rates.card.clone(), Speed(Some(rates)).step_seconds(spec, plan)))
    };
    if plan.work.is_empty() { Vec::new() } else { Rates::all().into_iter().filter_map(of_card).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(work: &[OpWork]) -> Vec<f64> {
        Rates::all().iter().filter_map(|rates| rates.seconds(work)).collect()
    }

    #[test]
    fn a_step_takes_the_sum_of_its_operations() {
        let linear = OpWork { name: "linear", count: 3, units: 1e12, ..OpWork::default() };
        let twice = OpWork { count: 6, ..linear.clone() };
        let (once, twice) = (seconds(std::slice::from_ref(&linear)), seconds(&[twice]));
        assert_eq!(once.len(), 6);
        for (once, twice) in once.iter().zip(&twice) {
            assert!(*once > 0.0 && (twice / once - 2.0).abs() < 1e-12);
        }
        // Every kind of operation that a step of any family has.
        let names = [
            "norm of q and k",
            "norm of q and k, backward",
            "norm and rotation of q and k",
            "norm and rotation of q and k, backward",
            "magnitudes",
            "magnitudes, backward",
            "norm, gradient of the weight",
            "embedding, backward",
            "embedding",
            "output layer and loss",
            "attention, backward",
        ];
        let all = names.map(|name| OpWork { name, count: 1, units: 1.0, ..OpWork::default() });
        assert_eq!(seconds(&all).len(), 6);
        assert!(seconds(&[OpWork { name: "sorting", ..linear }]).is_empty());
        let fastest = Rates::all().into_iter().min_by(|a, b| {
            let of = |rates: &Rates| rates.seconds(&all[9..]).unwrap();
            of(a).total_cmp(&of(b))
        });
        assert_eq!(fastest.unwrap().card, FASTEST);
    }
}
