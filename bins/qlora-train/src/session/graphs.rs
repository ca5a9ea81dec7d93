//! The choice of launching a step's passes as graphs on a GPU, and the memory that is assumed for them.

use super::device::Device;
use super::plan::MemoryPlan;
use super::predicted::Speed;
use crate::backend::PlannedBuffer;
use crate::backend::cuda::KEPT_GRAPHS;
use crate::bail_usage;
use crate::config::{CudaGraphs, Settings};
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::model::{Activations, ModelSpec};
use qlora_kernels::device::{KERNELS, Kernels};

/// The plan's line.
const LINE: &str = "CUDA graphs (assumed)";

/// Seconds of the host for a launch: 5 µs of the driver, and as much of the code that checks and fills what it takes.
/// Assumed.
const LAUNCH: f64 = 10e-6;

/// Bytes that the driver takes for a launch in a graph. Assumed: NVIDIA names none. The GPU bundle measures them.
const NODE_BYTES: u64 = 16 << 10;

/// Launches of an operation on the mean: some have two or three kernels.
const LAUNCHES: f64 = 1.25;

/// The choice of graphs for a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GraphChoice {
    pub is_on: bool,
    /// For users; none on the CPU, and where the emulation has none
    pub note: Option<String>,
}

/// The reason why a run cannot use graphs: the host takes part in its passes.
fn hindrance(spec: &ModelSpec, ranks: usize) -> Option<&'static str> {
    let has = |activations| (0..spec.arch.num_layers).any(|layer| spec.activations_of(layer) == activations);
    let all = [
        (ranks > 1, "several processes add up gradients while a pass runs"),
        (spec.pinned_layers() > 0 || spec.is_streamed(), "base weights come from host memory in each pass"),
        (spec.head_waits(), "the output layer comes from host memory in each pass"),
        (has(Activations::Offload), "inputs of layers wait in host memory"),
        (has(Activations::Disk), "inputs of layers wait on disk"),
    ];
    all.into_iter().find(|(is_so, _)| *is_so).map(|(_, why)| why)
}

/// Bytes of all graphs that a run keeps, for passes of `operations` operations.
fn bytes_of(operations: usize) -> u64 {
    let launches = (operations as f64 * LAUNCHES).ceil() as u64;
    // A forward and a backward pass for each shape.
    launches * NODE_BYTES * (KEPT_GRAPHS as u64).div_ceil(2)
}

/// The choice of graphs and its reason, where an operation takes `mean` seconds.
fn decide(asked: CudaGraphs, hindrance: Option<&str>, mean: f64, fits: bool) -> Result<(bool, String)> {
    Ok(match (asked, hindrance) {
        (CudaGraphs::Off, _) => (false, "as asked".to_owned()),
        (CudaGraphs::On, Some(why)) => {
            bail_usage!("`cuda_graphs`: found on, expected auto or off: {why}, and a graph has no part of the host's")
        }
        (CudaGraphs::On, None) => (true, "as asked".to_owned()),
        (CudaGraphs::Auto, Some(why)) => (false, why.to_owned()),
        (CudaGraphs::Auto, None) => {
            let than = if mean < LAUNCH { "less" } else { "more" };
            let room = if fits { "" } else { "; there is no room for graphs" };
            let mean_us = 1e6 * mean;
            let why = format!("operations of {mean_us:.1} µs on the mean, predicted, {than} than a launch takes{room}");
            (mean < LAUNCH && fits, why)
        }
    })
}

/// Refuses graphs that are asked for and take more than the bytes that a plan leaves: advice for a plan that does not
/// fit knows nothing of them.
fn check_room(bytes: u64, left: u64) -> Result<()> {
    if bytes > left {
        bail_usage!(
            "`cuda_graphs`: found on, expected auto or off: graphs are assumed to take {} of GPU memory, of which {} \
             are left; gradient_checkpointing: true, or a lower max_length, leaves more",
            format_bytes(bytes),
            format_bytes(left)
        );
    }
    Ok(())
}

/// Chooses whether passes are launched as graphs, and adds their memory to the plan. `auto`: where launches are
/// predicted to take the host longer than the operations take the GPU, nothing of a pass is in host memory, and there
/// is room. Refused: `on` where that is not possible.
pub fn choose(
    settings: &Settings,
    device: &Device,
    spec: &ModelSpec,
    ranks: usize,
    plan: &mut MemoryPlan,
) -> Result<GraphChoice> {
    let asked = settings.cuda_graphs;
    if device.is_cpu() || (asked == CudaGraphs::Auto && KERNELS == Kernels::Emulated) {
        return Ok(GraphChoice::default());
    }
    let bytes = bytes_of(plan.work.iter().map(|work| work.count).sum());
    let left = plan.budget.limit.saturating_sub(plan.bytes_of_run());
    let fits = bytes <= left;
    let mean = Speed::of(device).of_operation(plan);
    let (is_on, why) = decide(asked, hindrance(spec, ranks), mean, fits)?;
    if is_on {
        if plan.fits() {
            check_room(bytes, left)?;
        }
        plan.graph_bytes = bytes;
        let at = plan.buffers.iter().position(|buffer| buffer.bytes < bytes).unwrap_or(plan.buffers.len());
        plan.buffers.insert(at, PlannedBuffer { name: LINE.to_owned(), bytes });
    }
    let memory = if is_on { format!(", {} assumed for them", format_bytes(bytes)) } else { String::new() };
    let note = format!("CUDA graphs: {} ({why}{memory})", if is_on { "on" } else { "off" });
    Ok(GraphChoice { is_on, note: Some(note) })
}

#[cfg(test)]
mod tests;
