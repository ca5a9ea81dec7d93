//! The time of a step, predicted from the kernels' machine code and the bytes that are copied: nothing of it was
//! measured.

use super::plan::MemoryPlan;
use crate::arch::Projection;
use crate::backend::{NORM, OpWork, Paging, Quantization, Residency};
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

/// Bytes a second to and from host memory that is not pinned: the driver copies them once more, on one thread.
const UNPINNED: f64 = 4e9;

/// Bytes a second of a disk.
const DISK: f64 = 1e9;

/// Tokens whose logits the CPU has at one time.
const LOSS_TOKENS: usize = 256;

/// Operations a second of a CPU; only their number distinguishes one plan from another.
const CPU: f64 = 2e11;

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
            let rated = operation.at_rate_of.unwrap_or(operation.name);
            seconds += count * operation.units / self.units_per_second.get(rated)?;
            seconds += count * operation.trained as f64 / self.updates_per_second;
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

    /// Seconds that an operation of this plan takes on the mean.
    pub fn of_operation(&self, plan: &MemoryPlan) -> f64 {
        let operations: usize = plan.work.iter().map(|work| work.count).sum();
        self.compute(&plan.work, plan.flops) / operations.max(1) as f64
    }

    /// Seconds of a step of `plan`, of one micro-batch: its operations, what is copied longer than a layer computes,
    /// the weights that are read again for each tile, and states and master copies that come from the host.
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
        seconds += disk_seconds(spec, plan);
        // Forward, forward again and backward.
        let passes = 3.0 * layers * (spec.tokens.div_ceil(spec.tile()).max(1) - 1) as f64;
        let again = match self.0.as_ref().and_then(|rates| rates.units_per_second.get(NORM)) {
            Some(values_per_second) => bytes / (2.0 * values_per_second),
            None => weights as f64 * DEQUANTIZE / CPU,
        };
        seconds + passes * again + paging_seconds(spec) + unpinned_seconds(plan)
    }
}

/// Seconds of a step, of one micro-batch, in which the work waits for copies of host memory that is not pinned: weights
/// come in both passes, inputs and states go and come.
pub fn unpinned_seconds(plan: &MemoryPlan) -> f64 {
    2.0 * plan.unpinned_bytes() as f64 / UNPINNED
}

/// Note for users on host memory that is not pinned.
pub fn unpinned_note(plan: &MemoryPlan) -> Option<String> {
    let bytes = plan.unpinned_bytes();
    (bytes > 0).then(|| {
        format!(
            "{} in host memory are not pinned (at most {} may be, `pinned_memory`): the work waits for their copies, \
             {:.1} s more a micro-batch at 4 GB/s",
            format_bytes(bytes),
            format_bytes(plan.device.pinned_limit().unwrap_or(0)),
            unpinned_seconds(plan)
        )
    })
}

/// Seconds of a micro-batch in which layers' inputs are written to disk and read back, and an output layer is read from
/// there, for the logits of each chunk of tokens and for their gradient. They are not assumed to be hidden: a disk that
/// is written to for hours may be slower than assumed.
fn disk_seconds(spec: &ModelSpec, plan: &MemoryPlan) -> f64 {
    let chunks = if spec.head_on_disk() { spec.tokens.div_ceil(LOSS_TOKENS) } else { 0 };
    2.0 * (plan.disk_bytes() as f64 + chunks as f64 * spec.head_bytes() as f64) / DISK
}

/// Seconds of a micro-batch in which an output layer comes from the host: the loss follows the last layer, and waits.
fn head_seconds(spec: &ModelSpec) -> f64 {
    spec.head_bytes() as f64 / LINK
}

/// Seconds of a step in which states and master copies that wait in host memory move in and out, both ways at the same
/// time; once a step, of however many micro-batches.
pub fn paging_seconds(spec: &ModelSpec) -> f64 {
    spec.paging().map_or(0.0, |paging| paging.bytes as f64 / LINK)
}

/// Note for users on states and master copies that wait in host memory; none where that saves less than a MiB and less
/// than a thousandth of the `limit`, the bytes that may be used on the GPU.
pub fn states_note(spec: &ModelSpec, limit: u64) -> Option<String> {
    let Paging { bytes, piece, has_masters } = spec.paging()?;
    let what = if has_masters { "AdamW's states and the f32 master copies" } else { "AdamW's states" };
    let saved = bytes.saturating_sub(2 * piece as u64);
    let is_worth_telling = saved >= (limit / 1000).clamp(1, 1 << 20);
    is_worth_telling.then(|| {
        format!(
            "{what} wait in host memory: {} less on the GPU, {:.1} ms more a step at 16 GB/s",
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
mod tests;
