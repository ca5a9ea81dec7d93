//! The memory plan of a run: the model's own code on the planning backend.

use crate::backend::plan::{Plan, PlannedBuffer};
use crate::backend::{Backend, Batch, Quantization};
use crate::checkpoint::{Checkpoint, StoredType, Tensor16};
use crate::config::Checkpointing;
use crate::config::memory::format_bytes;
use crate::error::{Context, Result};
use crate::model::{Llama, ModelSpec, ParamName, Source};
use crate::refuse;
use sysinfo::System;

/// Tokens of a batch at most: far beyond what any memory holds, and few enough for a plan to list them.
const MAX_BATCH_TOKENS: usize = 1 << 28;

/// What a run will hold in host memory, and what there is.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    pub buffers: Vec<PlannedBuffer>,
    pub peak_bytes: u64,
    pub budget_bytes: u64,
    /// FLOPs of one pass over the longest micro-batch.
    pub flops: f64,
}

impl MemoryPlan {
    pub fn fits(&self) -> bool {
        self.peak_bytes <= self.budget_bytes
    }
}

/// How a checkpoint stores a tensor.
#[derive(Clone, Copy, Debug)]
pub struct StoredAs {
    /// f32 for what is stored in NF4 and used dequantised.
    pub dtype: StoredType,
    /// How a linear weight of a quantised checkpoint is held; `None`: as the settings say.
    pub held: Option<Quantization>,
}

/// Only how the tensors are stored; nothing is read.
struct Stored<'a>(&'a dyn Fn(&str) -> StoredAs);

impl Source for Stored<'_> {
    fn stored(&self, name: &str) -> StoredType {
        (self.0)(name).dtype
    }
    fn held(&self, name: &str) -> Option<Quantization> {
        (self.0)(name).held
    }
    fn read(&mut self, _name: &str) -> Result<Tensor16> {
        unreachable!("a plan reads no tensor")
    }
    fn lora(&mut self, _name: ParamName, _len: usize, _columns: usize) -> Result<Vec<f32>> {
        unreachable!("a plan draws no values")
    }
}

/// How the tensors of an opened checkpoint are stored.
pub fn stored_in(checkpoint: &Checkpoint) -> impl Fn(&str) -> StoredAs {
    |name| StoredAs {
        dtype: checkpoint.stored_type(name).expect("opening the checkpoint checked that every tensor is there"),
        held: checkpoint.quantization().map(|options| match checkpoint.is_nf4(name) {
            true => Quantization::Nf4 { block_size: options.block_size, double_quant: options.double_quant },
            false => Quantization::None,
        }),
    }
}

/// Plans `spec`: a training step, or an evaluation where nothing is trainable.
pub fn plan(spec: &ModelSpec, stored: &dyn Fn(&str) -> StoredAs, budget_bytes: u64) -> Result<MemoryPlan> {
    plan_of(spec, stored, budget_bytes, |backend, model, batch| {
        if spec.trainable {
            model.forward_backward(backend, batch, 0, 1.0)?;
        } else {
            model.loss(backend, batch)?;
        }
        Ok(())
    })
}

/// Plans `pass` over the longest batch.
pub fn plan_of(
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> StoredAs,
    budget_bytes: u64,
    pass: impl FnOnce(&mut Plan, &mut Llama<Plan>, &Batch) -> Result<()>,
) -> Result<MemoryPlan> {
    if spec.tokens > MAX_BATCH_TOKENS {
        refuse!(
            "a batch could hold {} tokens, expected at most {MAX_BATCH_TOKENS}: lower max_length or \
             per_device_train_batch_size",
            spec.tokens
        );
    }
    let mut backend = Plan::new(spec.dims());
    let mut model = Llama::build(&mut backend, &mut Stored(stored), spec.clone(), &mut |_| ())?;
    let zeros = vec![0u32; spec.tokens];
    let targets = bytemuck::cast_slice(&zeros);
    let boundaries = [0, spec.tokens as u32];
    let batch = Batch { input_ids: &zeros, positions: &zeros, boundaries: &boundaries, targets };
    pass(&mut backend, &mut model, &batch)?;
    Ok(MemoryPlan { buffers: backend.buffers(), peak_bytes: backend.bytes(), budget_bytes, flops: backend.flops() })
}

/// Settles whether activations are recomputed: kept where they fit, unless the setting says otherwise. The values of
/// the run are the same either way.
pub fn choose(
    spec: &mut ModelSpec,
    checkpointing: Checkpointing,
    stored: &dyn Fn(&str) -> StoredAs,
    budget_bytes: u64,
) -> Result<MemoryPlan> {
    spec.recompute = checkpointing == Checkpointing::On;
    let kept = plan(spec, stored, budget_bytes)?;
    if checkpointing != Checkpointing::Auto || kept.fits() {
        return Ok(kept);
    }
    spec.recompute = true;
    plan(spec, stored, budget_bytes)
}

/// The largest row that fits when each micro-batch holds `rows` of them; 0 if none does.
pub fn longest_row(
    spec: &ModelSpec,
    checkpointing: Checkpointing,
    stored: &dyn Fn(&str) -> StoredAs,
    budget_bytes: u64,
    rows: usize,
) -> Result<usize> {
    let fits = |length: usize| -> Result<bool> {
        let tokens = length.saturating_mul(rows);
        if tokens > MAX_BATCH_TOKENS {
            return Ok(false);
        }
        let mut spec = ModelSpec { tokens, positions: length, ..spec.clone() };
        Ok(choose(&mut spec, checkpointing, stored, budget_bytes)?.fits())
    };
    // Memory grows with the length, so the longest that fits is found by halving.
    let (mut fitting, mut beyond) = (0, spec.config.max_position_embeddings + 1);
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle)? {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(fitting)
}

/// What a run on this machine may hold: the memory that is free now, within the cgroup's limit and that of the setting.
pub fn host_budget(limit: Option<u64>) -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let available = system.available_memory();
    let free = system.cgroup_limits().map_or(available, |limits| available.min(limits.free_memory));
    limit.map_or(free, |limit| free.min(limit))
}

/// Sets the size of the worker pool, once per process.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .or_fail(|| format!("{threads} worker threads could not be started"))
}

/// The refusal of a run that does not fit.
pub fn refuse_unless_it_fits(plan: &MemoryPlan, tokens: usize) -> Result<()> {
    if !plan.fits() {
        let largest: Vec<String> =
            plan.buffers.iter().take(3).map(|b| format!("{} {}", b.name, format_bytes(b.bytes))).collect();
        refuse!(
            "the run needs {} of host memory for batches of {tokens} tokens and {} may be used; the largest parts are \
             {}. Lower max_length or per_device_train_batch_size, or raise host_memory if more is free",
            format_bytes(plan.peak_bytes),
            format_bytes(plan.budget_bytes),
            largest.join(", ")
        );
    }
    Ok(())
}
