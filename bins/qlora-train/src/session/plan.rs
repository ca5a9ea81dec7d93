//! The memory plan of a run: a dry run of the model's own code on the device's backend.

use super::device::{Budget, Device};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Batch, OpWork, PlannedBuffer, Quantization, Residency};
use crate::base::Checkpoint;
use crate::config::{Checkpointing, Settings, WeightResidency};
use crate::error::Result;
use crate::files::tensor::{HostTensor, StoredType};
use crate::files::units::format_bytes;
use crate::lora::{LoraSpec, ParamId};
use crate::model::generate::{Sampling, generate};
use crate::model::optimizer_step::{Hyperparameters, optimizer_step};
use crate::model::{Activations, Llama, ModelSpec, Source};
use crate::refuse;

/// Tokens of a batch at most: far beyond what any memory holds, and few enough for a plan to list them.
const MAX_BATCH_TOKENS: usize = 1 << 28;

/// Planned memory of a run, and the memory that may be used.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    pub device: Device,
    pub buffers: Vec<PlannedBuffer>,
    /// Peak of what the run itself allocates
    pub run_bytes: u64,
    /// Copies of one trainable tensor, in the host's memory, while a checkpoint is written
    pub saving_bytes: u64,
    pub budget: Budget,
    /// Beside a GPU: what is pinned in the host's memory, and what may be.
    pub on_host: Vec<PlannedBuffer>,
    pub host_limit: u64,
    /// FLOPs of one pass over the longest micro-batch
    pub flops: f64,
    /// The operations of that pass
    pub work: Vec<OpWork>,
}

impl MemoryPlan {
    /// Peak with what is taken before the run begins.
    pub fn peak_bytes(&self) -> u64 {
        self.run_bytes.saturating_add(self.saving_bytes).saturating_add(self.budget.in_use)
    }

    pub fn fits(&self) -> bool {
        self.peak_bytes() <= self.budget.limit && self.host_bytes() <= self.host_limit
    }

    /// Pinned in the host's memory, beside a GPU.
    pub fn host_bytes(&self) -> u64 {
        self.on_host.iter().map(|buffer| buffer.bytes).sum()
    }

    /// "host memory" or "GPU memory".
    pub fn place(&self) -> &'static str {
        self.device.place()
    }
}

/// Job that is planned: what a run does with its model.
#[derive(Clone, Copy, Debug)]
pub enum PlannedJob<'a> {
    /// Optimizer steps, with evaluations between them.
    Train,
    /// Evaluation under each of these adapters, one after the other.
    Loss(&'a [LoraSpec]),
    /// Answers to prompts of these lengths, of as many new tokens, under each of these adapters.
    Text { adapters: &'a [LoraSpec], prompts: &'a [usize], max_new_tokens: usize },
}

/// How a checkpoint stores a tensor.
#[derive(Clone, Copy, Debug)]
pub struct StoredAs {
    /// f32 for what is stored in NF4 and used dequantized.
    pub dtype: StoredType,
    /// How a linear weight of a quantized checkpoint is held; `None`: as the settings say.
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
    fn read(&mut self, _name: &str) -> Result<HostTensor> {
        unreachable!("a plan reads no tensor")
    }
    fn lora(&mut self, _id: &ParamId, _len: usize, _columns: usize) -> Result<Vec<f32>> {
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

/// Plans `job` with `spec`, whose low-rank terms are those of the first adapter.
pub fn plan(
    device: &Device,
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> StoredAs,
    job: PlannedJob,
    budget: Budget,
) -> Result<MemoryPlan> {
    if spec.tokens > MAX_BATCH_TOKENS {
        refuse!(
            "a batch could hold {} tokens, expected at most {MAX_BATCH_TOKENS}: lower max_length or \
             per_device_train_batch_size",
            spec.tokens
        );
    }
    let DryRun { mut buffers, on_host, flops, work } = match device {
        Device::Cpu(precision) => {
            dry_run(Cpu::dry_run_with_precision(spec.run_shape(), *precision), spec, stored, job)?
        }
        Device::Cuda(_) => dry_run(Cuda::dry_run(spec.run_shape(), &spec.arch)?, spec, stored, job)?,
    };
    let run_bytes = buffers.iter().map(|buffer| buffer.bytes).sum();
    let saving_bytes = match (device, job) {
        (Device::Cpu(_), PlannedJob::Train) => saving_bytes(spec),
        _ => 0,
    };
    if saving_bytes > 0 {
        buffers.push(PlannedBuffer { name: "saving, a tensor at a time".to_owned(), bytes: saving_bytes });
    }
    if budget.in_use > 0 {
        buffers.push(PlannedBuffer { name: budget.in_use_name.to_owned(), bytes: budget.in_use });
    }
    buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
    Ok(MemoryPlan {
        device: device.clone(),
        buffers,
        run_bytes,
        saving_bytes,
        budget,
        on_host,
        host_limit: budget.host_limit,
        flops,
        work,
    })
}

/// Bytes that writing a checkpoint takes: of the largest trainable tensor its states, value and gradient.
fn saving_bytes(spec: &ModelSpec) -> u64 {
    let largest = spec.lora.lengths(&spec.arch).flatten().max().unwrap_or(0);
    spec.states.bytes(largest) + 8 * largest as u64
}

/// What a dry run recorded.
struct DryRun {
    buffers: Vec<PlannedBuffer>,
    on_host: Vec<PlannedBuffer>,
    /// FLOPs of one pass over the longest micro-batch
    flops: f64,
    work: Vec<OpWork>,
}

/// Does `job` on a backend that holds and computes nothing.
fn dry_run<B: Backend>(
    mut backend: B,
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> StoredAs,
    job: PlannedJob,
) -> Result<DryRun> {
    let b = &mut backend;
    let mut source = Stored(stored);
    let mut model = Llama::build(b, &mut source, spec.clone(), &mut |_| ())?;
    let zeros = vec![0u32; spec.tokens];
    let (boundaries, targets) = ([0, spec.tokens as u32], bytemuck::cast_slice(&zeros));
    let batch = Batch { input_ids: &zeros, positions: &zeros, boundaries: &boundaries, targets, weights: None };
    let adapters = match job {
        PlannedJob::Train => &[],
        PlannedJob::Loss(adapters) | PlannedJob::Text { adapters, .. } => adapters,
    };
    let (mut flops, mut work) = (0.0, Vec::new());
    for index in 0..adapters.len().max(1) {
        if index > 0 {
            b.trim();
            model.replace_lora(b, &mut source, adapters[index].clone())?;
        }
        match job {
            PlannedJob::Train => {
                // The second step begins with what the first has left.
                for step in 0..2 {
                    let before = b.flops();
                    b.take_work();
                    optimizer_step(b, &mut model, &Hyperparameters::NONE, step, 1, 0.0, &[batch])?;
                    (flops, work) = (b.flops() - before, b.take_work());
                }
                model.loss(b, &batch)?;
            }
            PlannedJob::Loss(_) => {
                let before = b.flops();
                b.take_work();
                model.loss(b, &batch)?;
                (flops, work) = (b.flops() - before, b.take_work());
            }
            PlannedJob::Text { prompts, max_new_tokens, .. } => {
                let prompts: Vec<Vec<u32>> = prompts.iter().map(|&len| vec![0; len]).collect();
                // Only the first tokens take anything. None of a plan's is a stop token.
                let new = max_new_tokens.min(3);
                let room = prompts.iter().map(|prompt| prompt.len() + new).sum::<usize>();
                assert!(room <= spec.tokens, "the batches have room for prompts and answers");
                generate(b, &model, &prompts, new, &[], &Sampling::GREEDY, &mut |_, _| Ok(true))?;
            }
        }
    }
    Ok(DryRun { buffers: backend.planned(), on_host: backend.planned_on_host(), flops, work })
}

/// Settings that trade memory for time: the values of a run are the same whatever they are.
#[derive(Clone, Copy, Debug)]
pub struct Levers {
    pub checkpointing: Checkpointing,
    pub weights: WeightResidency,
}

impl Levers {
    pub fn of(settings: &Settings) -> Self {
        Self { checkpointing: settings.gradient_checkpointing, weights: settings.weights }
    }
}

/// Places where the linear weights may be, the fastest first. Refused: `disk` where they cannot stay there.
pub fn residencies(
    device: &Device,
    spec: &ModelSpec,
    weights: WeightResidency,
    stored: &dyn Fn(&str) -> StoredAs,
) -> Result<&'static [Residency]> {
    let arch = &spec.arch;
    let in_nf4 = |name: &str| matches!(stored(name).held, Some(Quantization::Nf4 { .. }));
    let mut layers = (0..arch.num_layers).flat_map(|layer| arch.names.all().map(move |of| arch.weight_name(layer, of)));
    match weights {
        WeightResidency::Resident => Ok(&[Residency::Device]),
        WeightResidency::Disk if !device.is_cpu() => refuse!(
            "`weights`: found disk, expected resident or auto: a GPU holds the base weights in its own memory; use \
             `--device cpu` for a model that stays on disk"
        ),
        _ if device.is_cpu() && layers.any(|name| in_nf4(&name)) => match weights {
            WeightResidency::Disk => Ok(&[Residency::Disk]),
            _ => Ok(&[Residency::Device, Residency::Disk]),
        },
        WeightResidency::Disk => refuse!(
            "`weights`: found disk, but the linear weights of the model are not stored in NF4, and others are not read \
             again and again; write a copy in NF4 with `qlora-train quantize` and train on that, or leave it at auto"
        ),
        WeightResidency::Auto => Ok(&[Residency::Device]),
    }
}

/// The first of `residencies` whose plan fits, set in `spec`; else the last of them, which takes least.
pub fn first_that_fits(
    spec: &mut ModelSpec,
    residencies: &[Residency],
    mut plan: impl FnMut(&mut ModelSpec) -> Result<MemoryPlan>,
) -> Result<MemoryPlan> {
    let mut last = None;
    for &residency in residencies {
        spec.residency = vec![residency; spec.arch.num_layers];
        let planned = plan(spec)?;
        if planned.fits() {
            return Ok(planned);
        }
        last = Some(planned);
    }
    Ok(last.expect("weights have a place"))
}

/// Settles where weights are and what every layer's activations do: what takes least time and fits, unless the settings
/// say otherwise.
pub fn choose(
    device: &Device,
    spec: &mut ModelSpec,
    levers: Levers,
    stored: &dyn Fn(&str) -> StoredAs,
    budget: Budget,
) -> Result<MemoryPlan> {
    let residencies = residencies(device, spec, levers.weights, stored)?;
    first_that_fits(spec, residencies, |spec| choose_activations(device, spec, levers.checkpointing, stored, budget))
}

/// Settles what every layer's activations do: as many layers keep theirs as fit, unless the setting says otherwise.
fn choose_activations(
    device: &Device,
    spec: &mut ModelSpec,
    checkpointing: Checkpointing,
    stored: &dyn Fn(&str) -> StoredAs,
    budget: Budget,
) -> Result<MemoryPlan> {
    let layers = spec.arch.num_layers;
    let mut plan = |others: Activations, kept: usize| -> Result<MemoryPlan> {
        spec.activations = others.keeping(kept, layers);
        plan(device, spec, stored, PlannedJob::Train, budget)
    };
    let others: &[Activations] = match checkpointing {
        Checkpointing::Off => return plan(Activations::Keep, layers),
        Checkpointing::On => return plan(Activations::Recompute, 0),
        Checkpointing::Offload => return plan(Activations::Offload, 0),
        Checkpointing::Auto if device.is_cpu() => &[Activations::Recompute],
        Checkpointing::Auto => &[Activations::Recompute, Activations::Offload],
    };
    let all = plan(Activations::Keep, layers)?;
    if all.fits() {
        return Ok(all);
    }
    let mut best: Option<(Activations, usize, MemoryPlan)> = None;
    let mut least = None;
    for &others in others {
        let none = plan(others, 0)?;
        if !none.fits() {
            least = Some(none);
            continue;
        }
        // A layer more takes more memory, so the most that fit are found by halving.
        let (mut fitting, mut beyond, mut kept) = (none, layers, 0);
        while beyond - kept > 1 {
            let middle = kept + (beyond - kept) / 2;
            let candidate = plan(others, middle)?;
            if candidate.fits() {
                (fitting, kept) = (candidate, middle);
            } else {
                beyond = middle;
            }
        }
        // Recomputed FLOPs are the time that a mix costs: copies to and from the host run beside them.
        if best.as_ref().is_none_or(|(_, _, best)| fitting.flops < best.flops) {
            best = Some((others, kept, fitting));
        }
    }
    match best {
        Some((others, kept, plan)) => {
            spec.activations = others.keeping(kept, layers);
            Ok(plan)
        }
        // What takes least memory, for the refusal.
        None => Ok(least.expect("at least one was tried")),
    }
}

/// The largest row that fits when each micro-batch holds `rows` of them; 0 if none does.
pub fn longest_row(
    device: &Device,
    spec: &ModelSpec,
    levers: Levers,
    stored: &dyn Fn(&str) -> StoredAs,
    budget: Budget,
    rows: usize,
) -> Result<usize> {
    let residencies = residencies(device, spec, levers.weights, stored)?;
    let fits = |length: usize| -> Result<bool> {
        let tokens = length.saturating_mul(rows);
        if tokens > MAX_BATCH_TOKENS {
            return Ok(false);
        }
        let mut spec = ModelSpec { tokens, positions: length, ..spec.clone() };
        let tried: &[Activations] = match levers.checkpointing {
            Checkpointing::Off => &[Activations::Keep],
            Checkpointing::On => &[Activations::Recompute],
            Checkpointing::Offload => &[Activations::Offload],
            Checkpointing::Auto if device.is_cpu() => &[Activations::Recompute, Activations::Keep],
            Checkpointing::Auto => &[Activations::Recompute, Activations::Offload, Activations::Keep],
        };
        for &activations in tried {
            spec.activations = activations.keeping(0, spec.arch.num_layers);
            let train = |spec: &mut ModelSpec| plan(device, spec, stored, PlannedJob::Train, budget);
            if first_that_fits(&mut spec, residencies, train)?.fits() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    // Memory grows with the length, so the longest that fits is found by halving.
    let (mut fitting, mut beyond) = (0, spec.arch.max_position_embeddings + 1);
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

/// The refusal of a run that does not fit; `advice` is what may be done about it.
pub fn refuse_unless_it_fits(plan: &MemoryPlan, tokens: usize, advice: &str) -> Result<()> {
    if plan.fits() {
        return Ok(());
    }
    let on_device = plan.peak_bytes() > plan.budget.limit;
    let (needed, limit, buffers, place, setting) = match on_device {
        true => (plan.peak_bytes(), plan.budget.limit, &plan.buffers, plan.place(), plan.device.memory_setting()),
        false => (plan.host_bytes(), plan.host_limit, &plan.on_host, "host memory", "host_memory"),
    };
    let largest: Vec<String> =
        buffers.iter().take(3).map(|b| format!("{} {}", b.name, format_bytes(b.bytes))).collect();
    refuse!(
        "the run needs {} of {place} for batches of {tokens} tokens and {} may be used; the largest parts are {}. \
         {advice}, or raise {setting} if more is free",
        format_bytes(needed),
        format_bytes(limit),
        largest.join(", "),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Arch, Projection};
    use crate::backend::StateFormat;
    use crate::backend::cpu::Precision;
    use crate::base::synthetic::tiny_arch;

    const LAYERS: usize = 9;

    fn spec() -> ModelSpec {
        let config = Arch { num_layers: LAYERS, ..tiny_arch() };
        ModelSpec {
            lora: LoraSpec::uniform(&config, &Projection::ALL, 4, 4.0, 0.0),
            arch: config,
            quantization: Quantization::Nf4 { block_size: 64, double_quant: true },
            trainable: true,
            states: StateFormat::F32,
            activations: Vec::new(),
            residency: Vec::new(),
            tokens: 500,
            positions: 500,
            seed: 0,
        }
    }

    fn stored(_name: &str) -> StoredAs {
        StoredAs { dtype: StoredType::Bf16, held: None }
    }

    fn budget(limit: u64) -> Budget {
        Budget { limit, in_use: 0, in_use_name: "", host_limit: u64::MAX }
    }

    fn bytes(activations: Activations, kept: usize) -> u64 {
        let spec = ModelSpec { activations: activations.keeping(kept, LAYERS), ..spec() };
        plan(&Device::Cpu(Precision::F32), &spec, &stored, PlannedJob::Train, budget(u64::MAX)).unwrap().peak_bytes()
    }

    const AUTO: Levers = Levers { checkpointing: Checkpointing::Auto, weights: WeightResidency::Auto };

    fn stored_in_nf4(_name: &str) -> StoredAs {
        let held = Quantization::Nf4 { block_size: 64, double_quant: true };
        StoredAs { dtype: StoredType::Bf16, held: Some(held) }
    }

    /// Weights are left on disk where there is not the memory for them, and only there.
    #[test]
    fn weights_stay_on_disk_where_they_do_not_fit() {
        let device = Device::Cpu(Precision::F32);
        let at = |weights, limit| {
            let mut spec = spec();
            let levers = Levers { checkpointing: Checkpointing::Auto, weights };
            let plan = choose(&device, &mut spec, levers, &stored_in_nf4, budget(limit)).unwrap();
            (spec.is_streamed(), plan.fits(), plan.peak_bytes())
        };
        let (_, _, resident) = at(WeightResidency::Resident, 0);
        let (streamed, _, disk) = at(WeightResidency::Disk, 0);
        assert!(streamed && disk < resident, "{disk} {resident}");
        for (limit, expected) in [(u64::MAX, false), (resident, false), (resident - 1, true), (disk, true)] {
            let (streamed, fits, peak) = at(WeightResidency::Auto, limit);
            assert!(fits && streamed == expected && peak <= limit, "{limit}: {streamed} {fits} {peak}");
        }
        assert!(!at(WeightResidency::Auto, disk - 1).1);
        assert!(!at(WeightResidency::Resident, resident - 1).1);
        let levers = |weights| Levers { checkpointing: Checkpointing::Auto, weights };
        let mut short = ModelSpec { tokens: 200, positions: 200, ..spec() };
        let least = choose(&device, &mut short, levers(WeightResidency::Disk), &stored_in_nf4, budget(0)).unwrap();
        let limit = budget(least.peak_bytes());
        let longest = |weights| longest_row(&device, &short, levers(weights), &stored_in_nf4, limit, 1).unwrap();
        assert_eq!(longest(WeightResidency::Auto), 200);
        assert!(longest(WeightResidency::Resident) < 200);
        let weights = WeightResidency::Disk;
        let refused = residencies(&device, &spec(), weights, &stored).unwrap_err().to_string();
        assert!(refused.contains("quantize"), "{refused}");
        let refused = residencies(&Device::unopened(0), &spec(), weights, &stored_in_nf4).unwrap_err().to_string();
        assert!(refused.contains("GPU"), "{refused}");
    }

    /// With every amount of memory the planner keeps as many of the last layers as fit, and computes the others again.
    #[test]
    fn as_many_layers_keep_their_activations_as_fit() {
        let (most, least) = (bytes(Activations::Keep, 0), bytes(Activations::Recompute, 0));
        assert!(least < most, "{least} {most}");
        let mut flops = f64::INFINITY;
        for kept in [0, 1, 4, LAYERS - 1, LAYERS] {
            let limit = bytes(Activations::Recompute, kept);
            let mut spec = spec();
            let plan = choose(&Device::Cpu(Precision::F32), &mut spec, AUTO, &stored, budget(limit)).unwrap();
            let counts = spec.activation_counts();
            assert!(plan.fits() && plan.peak_bytes() == limit && counts.keep >= kept, "{kept}: {counts}");
            assert!(spec.activations[LAYERS - counts.keep..].iter().all(|&layer| layer == Activations::Keep));
            if counts.keep < LAYERS {
                assert!(bytes(Activations::Recompute, counts.keep + 1) > limit, "{counts}");
            }
            assert!(plan.flops < flops || counts.keep == 1, "{kept}: {} {flops}", plan.flops);
            flops = plan.flops;
        }
        let mut spec = spec();
        let refused = choose(&Device::Cpu(Precision::F32), &mut spec, AUTO, &stored, budget(least - 1)).unwrap();
        assert!(!refused.fits() && refused.peak_bytes() == least);
    }
}
