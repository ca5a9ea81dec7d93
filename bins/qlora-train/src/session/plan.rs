//! The memory plan of a run: a dry run of the model's own code on the device's backend.

use super::device::{Budget, Device};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::backend::{
    Backend, Batch, HEAD_ON_HOST, INPUTS_OF_THREAD, NOT_PINNED, OpWork, PlannedBuffer, Quantization, WEIGHTS_ON_HOST,
};
use crate::bail_usage;
use crate::base::Checkpoint;
use crate::error::Result;
use crate::files::tensor::{HostTensor, StoredType};
use crate::files::units::format_bytes;
use crate::lora::{LoraSpec, ParamId};
use crate::model::generate::{Sampling, generate, generate_in};
use crate::model::optimizer_step::{Hyperparameters, optimizer_step};
use crate::model::{Llama, ModelSpec, Source};
use crate::report::count;

/// Tokens of a batch at most: far beyond what any memory holds, and few enough for a plan to list them.
pub(super) const MAX_BATCH_TOKENS: usize = 1 << 28;

/// Name of what AdaLoRA cuts ranks by, in the host's ordinary memory beside a GPU.
const RANK_IMPORTANCE: &str = "LoRA importance of ranks";

/// Name of the memory that reading tokenizer and rows took beyond that of the run.
const READING: &str = "reading rows, before the run";

/// Planned memory of a run, and the memory that may be used.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    pub device: Device,
    pub buffers: Vec<PlannedBuffer>,
    /// Peak of what the run itself allocates
    pub run_bytes: u64,
    /// Copies of one trainable tensor, in the host's memory, while a checkpoint is written
    pub saving_bytes: u64,
    /// CUDA graphs, which the driver keeps
    pub graph_bytes: u64,
    pub budget: Budget,
    /// Beside a GPU: buffers in the host's memory, most of them [pinned](Self::is_pinned), and its limit. Of weights
    /// that processes share it has the part of one of them.
    pub on_host: Vec<PlannedBuffer>,
    pub host_limit: u64,
    /// Contents of the scratch file
    pub on_disk: Vec<PlannedBuffer>,
    /// All weights that are pinned in the host's memory, by any process
    pub weights_on_host: u64,
    /// FLOPs of one pass over the longest micro-batch
    pub flops: f64,
    /// The operations of that pass
    pub work: Vec<OpWork>,
    /// Those of its forward half
    pub forward: Vec<OpWork>,
}

impl MemoryPlan {
    /// Peak with what is taken before the run begins: that of the run, or that of reading its rows.
    pub fn peak_bytes(&self) -> u64 {
        self.bytes_of_run().max(self.budget.read_bytes)
    }

    /// Peak once the rows are read.
    pub fn bytes_of_run(&self) -> u64 {
        let beside = self.saving_bytes.saturating_add(self.graph_bytes).saturating_add(self.budget.in_use);
        self.run_bytes.saturating_add(beside)
    }

    pub fn fits(&self) -> bool {
        self.peak_bytes() <= self.budget.limit && self.host_bytes() <= self.host_limit
    }

    /// Bytes that it has more than there are.
    pub fn missing(&self) -> u64 {
        let device = self.peak_bytes().saturating_sub(self.budget.limit);
        device.saturating_add(self.host_bytes().saturating_sub(self.host_limit))
    }

    /// Bytes that are left where fewest are; negative: that are missing there.
    pub fn room(&self) -> i128 {
        let left = |limit: u64, bytes: u64| i128::from(limit) - i128::from(bytes);
        left(self.budget.limit, self.peak_bytes()).min(left(self.host_limit, self.host_bytes()))
    }

    /// Taken of the host's memory, beside a GPU.
    pub fn host_bytes(&self) -> u64 {
        self.on_host.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Bytes of the host's memory that are pinned.
    pub fn pinned_bytes(&self) -> u64 {
        self.on_host.iter().filter(|buffer| Self::is_pinned(buffer)).map(|buffer| buffer.bytes).sum()
    }

    /// Bytes of the scratch file.
    pub fn disk_bytes(&self) -> u64 {
        self.on_disk.iter().map(|buffer| buffer.bytes).sum()
    }

    /// True if a buffer in the host's memory is pinned.
    pub fn is_pinned(buffer: &PlannedBuffer) -> bool {
        ![RANK_IMPORTANCE, INPUTS_OF_THREAD].contains(&buffer.name.as_str()) && !buffer.name.ends_with(NOT_PINNED)
    }

    /// Bytes in the host's memory that copies go through and that are not pinned.
    pub fn unpinned_bytes(&self) -> u64 {
        self.on_host.iter().filter(|buffer| buffer.name.ends_with(NOT_PINNED)).map(|buffer| buffer.bytes).sum()
    }

    /// Processes of a machine that have one copy of weights in host memory together; none: no weights are there, or
    /// each process has its own.
    pub fn sharers(&self) -> Option<usize> {
        Some(self.budget.sharers).filter(|&sharers| sharers > 1 && self.weights_on_host > 0)
    }

    /// Note for users on weights that processes share.
    pub fn sharing_note(&self) -> Option<String> {
        let (all, sharers) = (self.weights_on_host, self.sharers()?);
        Some(format!(
            "one copy of {} of weights in host memory is shared by {sharers} processes of a machine: each counts {} of it",
            format_bytes(all),
            format_bytes(part(all, sharers))
        ))
    }

    /// "host memory" or "GPU memory".
    pub fn place(&self) -> &'static str {
        self.device.place()
    }
}

/// Job that is planned: what a run does with its model.
#[derive(Clone, Copy, Debug)]
pub enum PlannedJob<'a> {
    /// Optimizer steps, with evaluations and the spec's answers between them.
    Train,
    /// Evaluation under each of these adapters, one after the other.
    Loss(&'a [LoraSpec]),
    /// Answers to prompts of these lengths, of as many new tokens, under each of these adapters.
    Text { adapters: &'a [LoraSpec], prompts: &'a [usize], max_new_tokens: usize },
}

/// Storage of a tensor in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct TensorStorage {
    /// f32 for tensors that are stored in NF4 and used dequantized.
    pub dtype: StoredType,
    /// Format in which a linear weight of a quantized checkpoint is resident; `None`: as the settings say.
    pub resident_as: Option<Quantization>,
}

/// A source that knows the storage of tensors only; nothing is read.
struct PlanSource<'a>(&'a dyn Fn(&str) -> TensorStorage);

impl Source for PlanSource<'_> {
    fn stored(&self, name: &str) -> StoredType {
        (self.0)(name).dtype
    }
    fn resident_as(&self, name: &str) -> Option<Quantization> {
        (self.0)(name).resident_as
    }
    fn read(&mut self, _name: &str) -> Result<HostTensor> {
        unreachable!("a plan reads no tensor")
    }
    fn lora(&mut self, _id: &ParamId, _len: usize, _columns: usize) -> Result<Vec<f32>> {
        unreachable!("a plan draws no values")
    }
}

/// Storage of the tensors of an opened checkpoint.
pub fn stored_in(checkpoint: &Checkpoint) -> impl Fn(&str) -> TensorStorage {
    |name| TensorStorage {
        dtype: checkpoint.stored_type(name).expect("opening the checkpoint checked that every tensor is there"),
        resident_as: checkpoint.quantization().map(|options| match checkpoint.is_nf4(name) {
            true => Quantization::Nf4 { block_size: options.block_size, double_quant: options.double_quant },
            false => Quantization::None,
        }),
    }
}

/// The part of one of several processes in what they have together.
fn part(bytes: u64, processes: usize) -> u64 {
    bytes.div_ceil(processes.max(1) as u64)
}

/// Plans `job` with `spec`, whose low-rank terms are those of the first adapter.
pub fn plan(
    device: &Device,
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> TensorStorage,
    job: PlannedJob,
    budget: Budget,
) -> Result<MemoryPlan> {
    if spec.tokens > MAX_BATCH_TOKENS {
        bail_usage!(
            "a batch could hold {} tokens, expected at most {MAX_BATCH_TOKENS}: lower max_length or \
             per_device_train_batch_size",
            spec.tokens
        );
    }
    // A spec whose lengths were changed still has room for what is asked.
    let spec = &spec.clone().with_prompts(spec.prompts.clone());
    let DryRun { mut buffers, mut on_host, on_disk, flops, work, forward } = match device {
        Device::Cpu(precision) => {
            dry_run(Cpu::dry_run_with_precision(spec.run_shape(), *precision), spec, stored, job)?
        }
        Device::Cuda(_) => {
            let cuda = Cuda::dry_run(device.run_shape(spec), &spec.arch)?.pinning_at_most(device.pinned_limit());
            dry_run(cuda, spec, stored, job)?
        }
    };
    if spec.lora.init.changes_base() && matches!((device, job), (Device::Cpu(_), PlannedJob::Train)) {
        let bytes = 4 * spec.lora.lengths(&spec.arch).map(|len| len as u64).sum::<u64>();
        buffers.push(PlannedBuffer { name: "LoRA at the start".to_owned(), bytes });
    }
    let of_ranks = match job {
        PlannedJob::Train => spec.lora.rank_bytes(&spec.arch),
        PlannedJob::Loss(_) | PlannedJob::Text { .. } => 0,
    };
    if of_ranks > 0 {
        let lines = if let Device::Cpu(_) = device { &mut buffers } else { &mut on_host };
        lines.push(PlannedBuffer { name: RANK_IMPORTANCE.to_owned(), bytes: of_ranks });
    }
    let run_bytes: u64 = buffers.iter().map(|buffer| buffer.bytes).sum();
    let (saving_bytes, budget) = match (device, job) {
        (Device::Cpu(_), PlannedJob::Train) => (saving_bytes(spec), budget.of_training()),
        _ => (0, budget),
    };
    if saving_bytes > 0 {
        buffers.push(PlannedBuffer { name: "saving, a tensor at a time".to_owned(), bytes: saving_bytes });
    }
    if budget.in_use > 0 {
        buffers.push(PlannedBuffer { name: budget.in_use_name.to_owned(), bytes: budget.in_use });
    }
    let of_run = run_bytes.saturating_add(saving_bytes).saturating_add(budget.in_use);
    if budget.read_bytes > of_run {
        buffers.push(PlannedBuffer { name: READING.to_owned(), bytes: budget.read_bytes - of_run });
    }
    buffers.sort_by_key(|buffer| std::cmp::Reverse(buffer.bytes));
    let of_weights = |name: &str| [WEIGHTS_ON_HOST, HEAD_ON_HOST].contains(&name);
    let is_of_weights = |line: &PlannedBuffer| of_weights(line.name.trim_end_matches(NOT_PINNED));
    let weights_on_host: u64 = on_host.iter().filter(|line| is_of_weights(line)).map(|line| line.bytes).sum();
    let of_one = |line: &PlannedBuffer| if is_of_weights(line) { part(line.bytes, budget.sharers) } else { line.bytes };
    let on_host = PlannedBuffer::lines(on_host.iter().map(|line| (line.name.as_str(), of_one(line))));
    Ok(MemoryPlan {
        device: device.clone(),
        buffers,
        run_bytes,
        saving_bytes,
        graph_bytes: 0,
        budget,
        on_host,
        host_limit: budget.host_limit,
        on_disk,
        weights_on_host,
        flops,
        work,
        forward,
    })
}

/// Bytes that writing a checkpoint takes: of the largest trainable tensor its states, value and gradient, and what the
/// allocator keeps of the tensors before, as measured; large ones it gives back.
fn saving_bytes(spec: &ModelSpec) -> u64 {
    let largest = spec.lora.lengths(&spec.arch).max().unwrap_or(0);
    let values = 8 * largest as u64;
    spec.states.bytes(largest) + values + values.min(Budget::SAVING_ON_HOST)
}

/// Records of a dry run.
struct DryRun {
    buffers: Vec<PlannedBuffer>,
    on_host: Vec<PlannedBuffer>,
    on_disk: Vec<PlannedBuffer>,
    /// FLOPs of one pass over the longest micro-batch
    flops: f64,
    work: Vec<OpWork>,
    forward: Vec<OpWork>,
}

/// Does `job` on a backend that holds and computes nothing.
fn dry_run<B: Backend>(
    mut backend: B,
    spec: &ModelSpec,
    stored: &dyn Fn(&str) -> TensorStorage,
    job: PlannedJob,
) -> Result<DryRun> {
    let b = &mut backend;
    let mut source = PlanSource(stored);
    let mut model = Llama::build(b, &mut source, spec.clone(), &mut |_| ())?;
    // A dry run asks only how many tokens a batch has, and whether something is learned.
    let (input_ids, boundaries) = (vec![0u32; spec.tokens], [0, spec.tokens as u32]);
    let (input_ids, targets) = (&input_ids[..], &[0][..]);
    let batch = Batch { input_ids, positions: &[], boundaries: &boundaries, targets, weights: None, adapters: None };
    let adapters = match job {
        PlannedJob::Train => &[],
        PlannedJob::Loss(adapters) | PlannedJob::Text { adapters, .. } => adapters,
    };
    let (mut flops, mut work, mut forward) = (0.0, Vec::new(), Vec::new());
    for index in 0..adapters.len().max(1) {
        if index > 0 {
            b.trim();
            model.replace_lora(b, &mut source, adapters[index].clone())?;
        }
        match job {
            PlannedJob::Train => {
                answer(b, &model, spec)?;
                // The second step begins with what the first has left.
                for step in 0..2 {
                    let before = b.flops();
                    b.take_work();
                    optimizer_step(b, &mut model, &Hyperparameters::NONE, step, 1, 0.0, &[batch])?;
                    (flops, work) = (b.flops() - before, b.take_work());
                }
                model.loss(b, &batch)?;
                forward = b.take_work();
                if !spec.prompts.is_empty() {
                    answer(b, &model, spec)?;
                    // The room that answers leave is used again.
                    optimizer_step(b, &mut model, &Hyperparameters::NONE, 2, 1, 0.0, &[batch])?;
                }
            }
            PlannedJob::Loss(_) => {
                let before = b.flops();
                b.take_work();
                model.loss(b, &batch)?;
                (flops, work) = (b.flops() - before, b.take_work());
            }
            PlannedJob::Text { prompts, max_new_tokens, .. } => {
                let prompts: Vec<Vec<u32>> = prompts.iter().map(|&len| vec![0; len]).collect();
                let new = max_new_tokens.min(PLANNED_TOKENS);
                let room = prompts.iter().map(|prompt| prompt.len() + new).sum::<usize>();
                assert!(room <= spec.tokens, "the batches have room for prompts and answers");
                generate(b, &model, &prompts, new, &[], &Sampling::GREEDY, &mut |_, _| Ok(true))?;
            }
        }
    }
    let (buffers, on_host, on_disk) = (backend.planned(), backend.planned_on_host(), backend.planned_on_disk());
    Ok(DryRun { buffers, on_host, on_disk, flops, work, forward })
}

/// Tokens of an answer that are planned: only the first take anything. None of a plan's is a stop token.
const PLANNED_TOKENS: usize = 3;

/// Answers the prompts of a run of training, as the run does; nothing where there are none.
fn answer<B: Backend>(b: &mut B, model: &Llama<B>, spec: &ModelSpec) -> Result<()> {
    let planned = &spec.prompts;
    if planned.is_empty() {
        return Ok(());
    }
    for group in planned.growing_groups(spec.tokens) {
        b.trim();
        let mut cache = model.cache_of(b, planned.cache_rows(spec.tokens))?;
        let prompts: Vec<Vec<u32>> = planned.lengths[group].iter().map(|&len| vec![0; len]).collect();
        let new = planned.max_new_tokens.min(PLANNED_TOKENS);
        generate_in(b, model, &mut cache, &prompts, new, &[], &Sampling::GREEDY, &mut |_, _| Ok(true))?;
    }
    b.trim();
    Ok(())
}

/// Memory that is missing, in bytes where it is little: there rounding would hide it.
pub fn shortage(bytes: u64) -> String {
    if bytes < 1 << 20 { count(bytes, "byte") } else { format_bytes(bytes) }
}

/// The refusal of a run that does not fit; `advice` is what may be done about it.
pub fn refuse_unless_it_fits(plan: &MemoryPlan, tokens: usize, advice: &str) -> Result<()> {
    if plan.fits() {
        return Ok(());
    }
    if plan.bytes_of_run() <= plan.budget.limit && plan.budget.read_bytes > plan.budget.limit {
        bail_usage!(
            "reading the tokenizer and the rows takes {} of {} and {} may be used (short by {}): shorten the longest \
             rows or split their files, or raise {} if more is free",
            format_bytes(plan.budget.read_bytes),
            plan.place(),
            format_bytes(plan.budget.limit),
            shortage(plan.budget.read_bytes - plan.budget.limit),
            plan.device.memory_setting(),
        );
    }
    let on_device = plan.peak_bytes() > plan.budget.limit;
    let (needed, limit, buffers, place, setting) = match on_device {
        true => (plan.peak_bytes(), plan.budget.limit, &plan.buffers, plan.place(), plan.device.memory_setting()),
        false => (plan.host_bytes(), plan.host_limit, &plan.on_host, "host memory", "host_memory"),
    };
    let largest: Vec<String> =
        buffers.iter().take(3).map(|b| format!("{} {}", b.name, format_bytes(b.bytes))).collect();
    let others = plan.budget.of_others().filter(|_| on_device);
    let others = others.map(|bytes| format!("other processes hold at least {} of it", format_bytes(bytes)));
    let sharing = plan.sharing_note().filter(|_| !on_device).or(others);
    let sharing = sharing.map_or(String::new(), |note| format!(" ({note})"));
    bail_usage!(
        "the run needs {} of {place} for batches of {tokens} tokens and {} may be used (short by {}); the largest parts \
         are {}{sharing}. {advice}, or raise {setting} if more is free",
        format_bytes(needed),
        format_bytes(limit),
        shortage(needed - limit),
        largest.join(", "),
    );
}

#[cfg(test)]
mod tests;
