//! The optimizer over the LoRA pairs of a Llama 70B: one update, and the norm of the gradients, each judged against the
//! copy bandwidth.

use crate::bench::{Bench, Result, text};
use lab::adamw::{Described, OptimizerStep};
use lab::operation::Operation;

/// (N, K) of the seven linear layers of a block.
const LAYERS: [(usize, usize); 7] =
    [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672)];
const R: usize = 16;
const BLOCKS: usize = 80;
const QUICK_BLOCKS: usize = 20;
/// Gradient read, value read and written, working copy written, and the two moments read and written.
const BYTES: [(bool, &str, f64); 2] = [(true, "8-bit", 18.0), (false, "f32", 30.0)];

pub fn run(bench: &mut Bench<'_>) {
    let blocks = if bench.options.quick { QUICK_BLOCKS } else { BLOCKS };
    for (blockwise, states, bytes) in BYTES {
        // A and B have rates of their own, as in LoRA+.
        let pair = |(n, k): (usize, usize)| [(0, R * k), (1, n * R)];
        let tensors =
            LAYERS.into_iter().flat_map(pair).map(|(rate, n)| Described { n, rate, blockwise, working: true });
        let tensors: Vec<Described> = tensors.collect();
        let tensors = (0..blocks).flat_map(|_| tensors.clone()).collect();
        let step = OptimizerStep {
            tensors,
            rates: vec![(1e-4, 0.0), (1.6e-3, 0.0)],
            max_norm: 1.0,
            seed: 70,
            bad: Vec::new(),
        };
        let name = format!("AdamW update, {states} states");
        if bench.wanted(&name)
            && let Err(error) = measure(bench, &step, &name, bytes, blockwise)
        {
            bench.failed(&name, &error);
        }
    }
}

fn measure(bench: &mut Bench<'_>, step: &OptimizerStep, name: &str, bytes: f64, norm: bool) -> Result<()> {
    let inputs = step.inputs();
    let mut buffers = step.upload(&bench.device, &inputs).map_err(text)?;
    bench.verify(step, &inputs, &mut buffers)?;
    drop(inputs);
    let elements: usize = step.tensors.iter().map(|tensor| tensor.n).sum();
    let shape = format!("{} tensors, {:.1} M elements", step.tensors.len(), elements as f64 / 1e6);
    let mut sets = [buffers];
    let seconds = bench.time_launches(name, &mut sets, |buffers, stream| {
        let mut tensors = step.views(&mut buffers.tensors)?;
        let table = buffers.table.as_ref().expect("uploaded").view();
        tensors.update(table, buffers.rates[0].view(), Some(buffers.state.view()), stream)
    })?;
    bench.memory_bound(name, &shape, bytes * elements as f64, seconds);
    if !norm {
        return Ok(());
    }
    let seconds = bench.time_launches("gradient norm", &mut sets, |buffers, stream| {
        let tensors = step.views(&mut buffers.tensors)?;
        let table = buffers.table.as_ref().expect("uploaded").view();
        let to = (buffers.state.view_mut(), buffers.workspace.view_mut());
        tensors.gradient_norm(table, buffers.rates[0].view(), step.max_norm, to.0, to.1, stream)
    })?;
    bench.memory_bound("gradient norm", &shape, 4.0 * elements as f64, seconds);
    Ok(())
}
