//! The device of a command, chosen and opened here and nowhere else, and what memory may be used on it.

use super::host::{host_budget, own_bytes, share};
use super::linear::{FUSED, Linear};
use super::transfer_bandwidth::TransferBandwidth;
use super::wsl;
use crate::arch::Arch;
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, Isa, ORDER_OF_SUMS, Precision};
use crate::backend::cuda::{Cuda, SharedWeights};
use crate::backend::run_shape::RunShape;
use crate::comm::{Communicator, Watched, is_first};
use crate::config::{self, Settings};
use crate::data::{heap_peak, trim_heap};
use crate::error::{Context, Error, Result};
use crate::model::ModelSpec;
use crate::report::{count, status};
use qlora_kernels::device::{self, KERNELS, Kernels, MemInfo, Nccl, SharedPinned};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

/// Command that builds this program for a GPU.
pub const CUDA_BUILD: &str = "cargo build --release --package qlora-train --features cuda";

/// Device that a command computes on. A GPU is opened once, and stays open as long as one of these holds it.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu(Precision),
    Cuda(Gpu),
}

/// A GPU, or the emulation of one.
#[derive(Clone)]
pub struct Gpu {
    ordinal: usize,
    /// None: a plan for a GPU that need not be there.
    device: Option<Rc<device::Device>>,
    /// The GPUs of the other ranks, for the backend that is built next
    sums: Rc<RefCell<Option<Nccl>>>,
    /// The copy of weights that it has with other processes, for the backend that is built next
    copy: Rc<RefCell<Option<SharedWeights>>>,
    linear: Linear,
    /// The backend that is built next launches passes as graphs
    graphs: Rc<Cell<bool>>,
    /// Bytes of host memory that it pins at most, if that is known
    pinned_limit: Option<u64>,
}

impl Gpu {
    fn open(ordinal: usize) -> Result<Self> {
        let device = Some(Rc::new(device::Device::open_at(ordinal)?));
        let (linear, graphs) = (Linear::default(), Rc::default());
        let (sums, copy, pinned_limit) = (Rc::default(), Rc::default(), wsl::pinned_limit());
        Ok(Self { ordinal, device, sums, copy, linear, graphs, pinned_limit })
    }

    fn device(&self) -> Result<Rc<device::Device>> {
        let unopened = || Error::Failed(format!("cuda:{} is planned for and was not opened", self.ordinal));
        self.device.clone().ok_or_else(unopened)
    }

    /// Sizes of a backend. The fused kernels alone compute adapters of which each row takes its own.
    fn run_shape(&self, spec: &ModelSpec) -> RunShape {
        let shape = spec.run_shape();
        match shape.adapters_by_row {
            true => shape,
            false => RunShape { linear: self.linear.rows(), graphs: shape.training && self.graphs.get(), ..shape },
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "cuda:{}{}", self.ordinal, if self.device.is_some() { "" } else { ", not opened" })
    }
}

/// Most bytes that the heap had until the process first asked for a budget, when tokenizer and rows had been read. A
/// second model is not charged with the memory of the first.
fn most_while_reading() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(heap_peak)
}

/// Memory limits of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes in all, other uses included
    pub limit: u64,
    /// Bytes in use before the run begins
    pub in_use: u64,
    pub in_use_name: &'static str,
    /// Most bytes that were in use at once so far: reading tokenizer and rows takes more than they take then
    pub read_bytes: u64,
    /// Bytes of pinned host memory, beside a GPU
    pub host_limit: u64,
    /// Processes of a machine that have one copy of weights in host memory together: each counts its part of it
    pub sharers: usize,
}

impl Budget {
    /// Memory that the driver takes later: the kernels' code, which it loads at their first launch, and their stacks.
    const LATER: u64 = 128 << 20;
    /// A context on a GPU that cannot be asked: 0.5 GiB is more than those of sm_80 to sm_120 are known to take.
    const CONTEXT: u64 = 512 << 20;
    /// Code of cuBLASLt on a GPU that cannot be asked: NVIDIA names none, users report 100 to 300 MB.
    const LIBRARY: u64 = 320 << 20;
    /// Code of cuBLASLt that its first products did not load.
    const LIBRARY_LATER: u64 = 64 << 20;

    /// Name of what is in use on a GPU that was asked.
    const ON_GPU: &str = "CUDA context, and what else is on the GPU";

    /// Memory that a process on the CPU takes later beside what is planned: buffers of files, the allocator's rounding.
    const LATER_ON_HOST: u64 = 8 << 20;
    /// The part of these that saving takes at most of a run, which counts it by its tensors.
    pub(super) const SAVING_ON_HOST: u64 = 3 << 20;
    /// Stack that a worker thread comes to use: a product in f32 has bands of 32 and 12 KiB on it.
    const STACK: u64 = 64 << 10;
    /// Bytes in use are counted in these steps, so that two processes of one run plan the same.
    const STEP: u64 = 4 << 20;

    /// Limits in the host's memory. What the process holds by now is measured: rows, tokenizer, headers.
    fn of_host(limit: u64) -> Self {
        let while_reading = own_bytes();
        trim_heap();
        let own = own_bytes();
        let stacks = rayon::current_num_threads() as u64 * Self::STACK;
        // Pieces of pages that are in use in part differ from one process to the next, by the order of threads.
        let in_use = (own + own / 64 + Self::LATER_ON_HOST + stacks).next_multiple_of(Self::STEP);
        let most = most_while_reading();
        // Freed pieces between those in use: up to a fourth of a small heap, an eighth of a large one.
        let freed = (most / 4).min(most / 8 + Self::LATER_ON_HOST / 2);
        let read_bytes = while_reading.max(most + freed + Self::LATER_ON_HOST).next_multiple_of(Self::STEP);
        Self { limit, in_use, in_use_name: "rows, tokenizer and program", read_bytes, host_limit: 0, sharers: 1 }
    }

    /// The budget of a run that is trained on the CPU: its plan has what saving takes, and nothing is saved while rows
    /// are read.
    pub(super) fn of_training(self) -> Self {
        let less = |bytes: u64| bytes.saturating_sub(Self::SAVING_ON_HOST);
        Self { in_use: less(self.in_use), read_bytes: less(self.read_bytes), ..self }
    }

    /// Limits on a GPU where a context was just made. Memory of other processes counts as in use.
    fn of_gpu(memory: MemInfo, limit: Option<u64>, host_limit: u64) -> Self {
        let in_use = (memory.total - memory.free).saturating_add(Self::LATER);
        let limit = limit.map_or(memory.total, |limit| limit.min(memory.total));
        Self { limit, in_use, in_use_name: Self::ON_GPU, read_bytes: 0, host_limit, sharers: 1 }
    }

    /// Bytes of a GPU that other processes have at least, as far as it can be told from those of this one's context.
    pub fn of_others(&self) -> Option<u64> {
        let own = Self::CONTEXT + Self::LATER + Self::LIBRARY;
        self.in_use.checked_sub(own).filter(|&bytes| self.in_use_name == Self::ON_GPU && bytes > Self::LATER)
    }

    /// The part of one of several processes: those of its machine share the host's memory, of which each has at most
    /// what was `given`, and takes `bytes` for sums over all; none: it is alone.
    pub fn shared(self, on_this_machine: usize, given: Option<u64>, on_host: bool, bytes: Option<u64>) -> Self {
        bytes.map_or(self, |bytes| self.part(share(given, on_this_machine), on_host, bytes))
    }

    /// The part of [`shared`](Self::shared) in a plan: the memory `given` to each process may be of another machine.
    pub fn shared_in_plan(self, on_a_machine: usize, given: Option<u64>, on_host: bool, bytes: Option<u64>) -> Self {
        let limit = || given.unwrap_or_else(|| share(None, on_a_machine));
        bytes.map_or(self, |bytes| self.part(limit(), on_host, bytes))
    }

    /// A budget whose limit in the host's memory is that, `bytes` of it for sums.
    fn part(self, limit: u64, on_host: bool, bytes: u64) -> Self {
        match on_host {
            true => Self {
                limit,
                in_use: self.in_use + bytes,
                in_use_name: "rows, tokenizer, program, sums over processes",
                ..self
            },
            false => Self { host_limit: limit.saturating_sub(bytes), ..self },
        }
    }

    /// With the code of a library of products: what of it is loaded later, or, on a GPU that cannot be asked, all.
    fn with_library(self, linear: &Linear, is_measured: bool) -> Self {
        let bytes = if is_measured { Self::LIBRARY_LATER } else { Self::LIBRARY };
        Self { in_use: self.in_use + if linear.may_dequantize() { bytes } else { 0 }, ..self }
    }

    fn of_another_gpu(limit: u64, host_limit: u64) -> Self {
        let in_use = Self::CONTEXT + Self::LATER;
        Self { limit, in_use, in_use_name: "CUDA context (assumed)", read_bytes: 0, host_limit, sharers: 1 }
    }
}

/// Work that is written once for every device.
pub trait DeviceJob {
    type Output;
    /// `build` makes the backend, once it is known for what model, with the bytes that were planned for it.
    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Self::Output>;
}

/// Refuses a build that has no kernels for a GPU.
fn ensure_kernels(kernels: Kernels) -> Result<()> {
    if kernels == Kernels::Absent {
        crate::bail_usage!(
            "`device: cuda`: this build has no CUDA support; rebuild it with `{CUDA_BUILD}`, or use `--device cpu`"
        );
    }
    Ok(())
}

/// Refuses arithmetic that a GPU does not have.
fn ensure_bf16(settings: &Settings) -> Result<()> {
    if matches!(settings.compute, Some(config::Compute::F32)) {
        crate::bail_usage!(
            "`compute`: found f32, expected bf16: a GPU holds activations in bf16; leave it out, or use `--device cpu`"
        );
    }
    Ok(())
}

impl Device {
    /// The device that the settings name; without a name a GPU if there is one that this build can use, otherwise the
    /// CPU. Says which. Refused: a GPU that cannot be used.
    pub fn choose(settings: &Settings) -> Result<Self> {
        match settings.device {
            Some(config::Device::Cpu) => Self::cpu(settings, ""),
            Some(config::Device::Cuda(ordinal)) => Self::named(ordinal)?.computing(settings),
            None => Self::found(settings)?.computing(settings),
        }
    }

    /// The device that one of several processes of a machine is to use: GPUs are dealt out by their numbers, unless
    /// each process is shown its own alone, or one was named.
    pub fn of_rank(asked: Option<config::Device>, local_rank: usize) -> Option<config::Device> {
        let shown_one = std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|shown| !shown.contains(','));
        if KERNELS != Kernels::Cuda || local_rank == 0 || shown_one {
            return asked;
        }
        match asked {
            Some(config::Device::Cuda(0)) => Some(config::Device::Cuda(local_rank)),
            None if std::path::Path::new("/dev/nvidia0").exists() => Some(config::Device::Cuda(local_rank)),
            _ => asked,
        }
    }

    fn cpu(settings: &Settings, why: &str) -> Result<Self> {
        let precision = precision(settings)?;
        if settings.linear != config::LinearKernels::Auto {
            crate::bail_usage!(
                "`linear`: found {}, expected auto: it names kernels of a GPU, and this run works on the CPU{why}",
                settings.linear.name()
            );
        }
        if settings.cuda_graphs == config::CudaGraphs::On {
            crate::bail_usage!(
                "`cuda_graphs`: found on, expected auto or off: graphs are of a GPU's launches, and this run works on \
                 the CPU{why}"
            );
        }
        let limits = [("device_memory", settings.device_memory), ("pinned_memory", settings.pinned_memory)];
        for (name, _) in limits.into_iter().filter(|(_, limit)| limit.is_some()) {
            status!(
                "{name}: without effect here, as this run works on the CPU{why}; `host_memory` limits what it may use"
            );
        }
        let arithmetic = match precision {
            Precision::F32 => "f32".to_owned(),
            Precision::Bf16(isa) => format!("bf16 by {}", isa.name()),
        };
        status!("device: cpu, {}, {arithmetic}{why}", count(rayon::current_num_threads() as u64, "thread"));
        Ok(Self::Cpu(precision))
    }

    /// The device as it computes this model. Products in bf16 go over pairs of values, so that a model with an odd
    /// width is computed in f32, if the settings leave the choice.
    pub fn for_model(self, settings: &Settings, arch: &Arch) -> Self {
        let shapes: Vec<_> = arch.names.all().map(|projection| projection.shape(arch)).collect();
        match self {
            Self::Cpu(Precision::Bf16(_))
                if settings.compute.is_none() && shapes.iter().any(|(n, k)| n % 2 + k % 2 != 0) =>
            {
                status!("compute: f32, because bf16 needs linear layers with even numbers of rows and columns");
                Self::Cpu(Precision::F32)
            }
            device => device,
        }
    }

    /// The device as it computes a run that is there already. Refused: this processor cannot.
    pub fn as_recorded(self, arithmetic: Option<&str>, run: &Path) -> Result<Self> {
        match (self, arithmetic) {
            (Self::Cpu(Precision::Bf16(_)), None) => {
                status!("compute: f32, as the run in {} began", run.display());
                Ok(Self::Cpu(Precision::F32))
            }
            (Self::Cpu(Precision::F32), Some(arithmetic)) => crate::bail_usage!(
                "{}: holds a run that computes in {arithmetic}, which this processor does not have; go on where it began, or \
                 choose another output_dir",
                run.display()
            ),
            (Self::Cuda(gpu), Some(FUSED)) if gpu.linear.was_chosen() => {
                status!("linear: fused, as the run in {} began", run.display());
                Ok(Self::Cuda(Gpu { linear: Linear::fused(), ..gpu }))
            }
            (Self::Cuda(gpu), Some(recorded)) if gpu.linear.is_left_open() && recorded != gpu.linear.arithmetic() => {
                match Linear::on(&*gpu.device()?, config::LinearKernels::Dequantize) {
                    Ok(linear) if linear.arithmetic() == recorded => {
                        status!("linear: dequantize, as the run in {} began", run.display());
                        Ok(Self::Cuda(Gpu { linear, ..gpu }))
                    }
                    // Whoever compares the runs says in what they differ.
                    _ => Ok(Self::Cuda(gpu)),
                }
            }
            (device, _) => Ok(device),
        }
    }

    /// Refuses arithmetic that a GPU does not have. Chooses the code of its linear layers, and says so where it is not
    /// the fused kernels.
    fn computing(self, settings: &Settings) -> Result<Self> {
        match self {
            Self::Cuda(gpu) => {
                ensure_bf16(settings)?;
                let device = gpu.device()?;
                let linear = Linear::on(&device, settings.linear)?;
                if linear.may_dequantize() {
                    status!("linear layers: {linear}");
                }
                let pinned_limit = settings.pinned_memory.map(|bytes| bytes.0).or(gpu.pinned_limit);
                Ok(Self::Cuda(Gpu { linear, pinned_limit, ..gpu }))
            }
            device => Ok(device),
        }
    }

    /// Arithmetic of a run that is not that of f32 on the CPU: with what decides the last bits, the processor's
    /// instructions and the order of this build's sums, the fused kernels of a GPU, or a library and the GPU's
    /// architecture.
    pub fn arithmetic(&self) -> Option<String> {
        match self {
            Self::Cpu(Precision::Bf16(isa)) => Some(format!("bf16, {}, order of sums {ORDER_OF_SUMS}", isa.name())),
            Self::Cpu(Precision::F32) => None,
            Self::Cuda(gpu) => Some(gpu.linear.arithmetic()),
        }
    }

    /// Sizes of a backend for this model, and the code that computes its linear layers.
    pub(super) fn run_shape(&self, spec: &ModelSpec) -> RunShape {
        match self {
            Self::Cpu(_) => spec.run_shape(),
            Self::Cuda(gpu) => gpu.run_shape(spec),
        }
    }

    fn named(ordinal: usize) -> Result<Self> {
        ensure_kernels(KERNELS)?;
        let what = || format!("`device`: cuda:{ordinal} cannot be used; use another GPU or `--device cpu`");
        Self::said(Gpu::open(ordinal).usage_context(what)?)
    }

    fn said(gpu: Gpu) -> Result<Self> {
        status!("device: cuda:{}, {}", gpu.ordinal, gpu.device()?.name());
        Ok(Self::Cuda(gpu))
    }

    fn found(settings: &Settings) -> Result<Self> {
        match KERNELS {
            Kernels::Cuda => match Gpu::open(0) {
                Ok(gpu) => Self::said(gpu),
                Err(error) => Self::cpu(settings, &format!(" ({error})")),
            },
            // An emulated GPU is for tests, which name it.
            Kernels::Emulated => Self::cpu(settings, ""),
            // NVIDIA's driver makes this file on Linux.
            Kernels::Absent if std::path::Path::new("/dev/nvidia0").exists() => Self::cpu(
                settings,
                &format!(
                    "; this machine has a GPU, but this build has no CUDA support: rebuild it with `{CUDA_BUILD}`"
                ),
            ),
            Kernels::Absent => Self::cpu(settings, ""),
        }
    }

    pub fn run<J: DeviceJob>(self, job: J) -> Result<J::Output> {
        match self {
            Self::Cpu(precision) => job.run(|spec, _| Ok(Cpu::with_precision(spec.run_shape(), precision))),
            Self::Cuda(gpu) => {
                let build = |spec: &ModelSpec, bytes| -> Result<Cuda> {
                    let shape = gpu.run_shape(spec);
                    let cuda = Cuda::on_device(gpu.device()?, shape, &spec.arch, bytes)?;
                    let cuda = cuda.pinning_at_most(gpu.pinned_limit);
                    Ok(cuda.adding_up(gpu.sums.take()).sharing(gpu.copy.take()))
                };
                job.run(build)
            }
        }
    }

    /// A text that no other GPU has; none of the CPU.
    pub fn identity(&self) -> Result<Option<String>> {
        match self {
            Self::Cpu(_) => Ok(None),
            Self::Cuda(gpu) => Ok(Some(gpu.device()?.identity()?)),
        }
    }

    /// Meets the GPUs of the other ranks by NCCL: the backend that is built next adds up gradients with them.
    pub fn meet(&self, comm: &mut dyn Communicator) -> Result<()> {
        let Self::Cuda(gpu) = self else { return Err(Error::Failed("NCCL adds up on GPUs".to_owned())) };
        let id = if is_first(comm) { Nccl::unique_id()? } else { Vec::new() };
        let id = comm.broadcast("the name of NCCL's group", id)?;
        let (device, rank, world_size) = (gpu.device()?, comm.rank(), comm.world_size());
        let mut others = Watched::new(comm);
        let met = Nccl::join(&device, &id, rank, world_size, &mut others).map_err(Error::from);
        *gpu.sums.borrow_mut() = Some(others.explain(met)?);
        Ok(())
    }

    /// Tries whether this GPU pins a file in memory that other processes have as well, by its first `bytes`.
    pub fn try_pinning(&self, file: &File, bytes: usize) -> Result<()> {
        if let Self::Cuda(gpu) = self {
            let device = gpu.device()?;
            SharedPinned::new(&device, file, bytes)?;
        }
        Ok(())
    }

    /// Gives the backend that is built next its part in a copy of weights.
    pub fn share_weights(&self, copy: Option<SharedWeights>) {
        if let Self::Cuda(gpu) = self {
            *gpu.copy.borrow_mut() = copy;
        }
    }

    /// Makes the backend that is built next launch the passes of a step as graphs, or not.
    pub fn use_graphs(&self, are_on: bool) {
        if let Self::Cuda(gpu) = self {
            gpu.graphs.set(are_on);
        }
    }

    /// GPU of this number for a plan, which needs none.
    pub fn unopened(ordinal: usize) -> Self {
        let (linear, graphs) = (Linear::default(), Rc::default());
        let (sums, copy, pinned_limit) = (Rc::default(), Rc::default(), None);
        Self::Cuda(Gpu { ordinal, device: None, sums, copy, linear, graphs, pinned_limit })
    }

    /// Bytes of host memory that it pins at most; none: no such limit is known.
    pub fn pinned_limit(&self) -> Option<u64> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(gpu) => gpu.pinned_limit,
        }
    }

    /// Arithmetic of the CPU; none of a GPU.
    pub fn precision(&self) -> Option<Precision> {
        match self {
            Self::Cpu(precision) => Some(*precision),
            Self::Cuda(_) => None,
        }
    }

    /// "cpu, 2 threads, f32", or the GPU's name
    pub fn in_words(&self) -> String {
        let arithmetic = match self {
            Self::Cpu(Precision::F32) => "f32".to_owned(),
            Self::Cpu(Precision::Bf16(isa)) => format!("bf16, {}", isa.name()),
            Self::Cuda(_) => return self.gpu().unwrap_or_else(|| "cuda".to_owned()),
        };
        format!("cpu, {}, {arithmetic}", count(rayon::current_num_threads() as u64, "thread"))
    }

    pub fn is_cpu(&self) -> bool {
        matches!(self, Self::Cpu(_))
    }

    /// Memory that a run on it is short of first.
    pub fn place(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "host memory",
            Self::Cuda(_) => "GPU memory",
        }
    }

    /// Name of the setting that limits that memory.
    pub fn memory_setting(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "host_memory",
            Self::Cuda(_) => "device_memory",
        }
    }

    /// Memory limits on this machine.
    pub fn budget(&self, settings: &Settings) -> Result<Budget> {
        match self {
            Self::Cpu(_) => {
                let limit = host_budget(settings.host_memory.map(|bytes| bytes.0));
                Ok(Budget::of_host(limit))
            }
            Self::Cuda(gpu) => {
                let memory = gpu.device()?.mem_info()?;
                let host_limit = host_budget(settings.host_memory.map(|bytes| bytes.0));
                let limit = settings.device_memory.map(|bytes| bytes.0);
                Ok(Budget::of_gpu(memory, limit, host_limit).with_library(&gpu.linear, true))
            }
        }
    }

    /// Bytes of the GPU that are taken now, by this process and others; none on the CPU.
    pub fn taken_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Cpu(_) => Ok(None),
            Self::Cuda(gpu) => {
                let memory = gpu.device()?.mem_info()?;
                Ok(Some(memory.total - memory.free))
            }
        }
    }

    /// Speed of copies between pinned host memory and the GPU; none without one, in the emulation, which copies within
    /// the host's memory, and where there is no room for them.
    pub fn transfer_bandwidth(&self) -> Option<TransferBandwidth> {
        /// Bytes that are copied each way
        const COPIED: usize = 256 << 20;
        match self {
            Self::Cuda(gpu) if KERNELS == Kernels::Cuda => {
                let device = gpu.device().ok()?;
                TransferBandwidth::measure(&device, COPIED).ok()
            }
            Self::Cuda(_) | Self::Cpu(_) => None,
        }
    }

    /// The GPU's name; none on the CPU and where none was opened.
    pub fn gpu(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(gpu) => gpu.device.as_ref().map(|device| device.name()),
        }
    }

    /// The budget of a plan: sizes that the settings give may be those of another machine, unless a GPU was opened.
    pub fn budget_of_plan(&self, settings: &Settings) -> Result<Budget> {
        match self {
            Self::Cpu(_) => {
                let limit = settings.host_memory.map_or_else(|| host_budget(None), |bytes| bytes.0);
                Ok(Budget::of_host(limit))
            }
            Self::Cuda(gpu) => match settings.device_memory.filter(|_| gpu.device.is_none()) {
                Some(limit) => {
                    let host_limit = settings.host_memory.map_or_else(|| host_budget(None), |bytes| bytes.0);
                    Ok(Budget::of_another_gpu(limit.0, host_limit).with_library(&gpu.linear, false))
                }
                None => self.budget(settings),
            },
        }
    }

    /// The device of a plan. With the size of its memory given, a GPU need not be there; `gpu` is its name, if one was
    /// given. Without a name it is the GPU that is here, as for a run, if that has as much memory.
    pub fn choose_for_plan(settings: &Settings, gpu: Option<&str>) -> Result<Self> {
        let (ordinal, limit) = match (settings.device, settings.device_memory) {
            (Some(config::Device::Cuda(ordinal)), Some(limit)) => (ordinal, limit.0),
            // Only a GPU has memory of that name.
            (None, Some(limit)) => (0, limit.0),
            _ => return Self::choose(settings),
        };
        ensure_bf16(settings)?;
        if gpu.is_none()
            && let Ok(here) = Gpu::open(ordinal)
        {
            if here.device()?.mem_info()?.total >= limit {
                return Self::said(here)?.computing(settings);
            }
            status!("device_memory: the GPU here has less, so that the plan is for another one");
        }
        let linear = Linear::of_plan(gpu, ordinal, settings.linear);
        let (sums, copy, graphs) = (Rc::default(), Rc::default(), Rc::default());
        let pinned_limit = settings.pinned_memory.map(|bytes| bytes.0);
        Ok(Self::Cuda(Gpu { ordinal, device: None, sums, copy, linear, graphs, pinned_limit }))
    }
}

/// Arithmetic of the CPU: that of the settings, otherwise bf16 where the processor has instructions for it. Refused:
/// bf16 on a processor without them.
fn precision(settings: &Settings) -> Result<Precision> {
    match (settings.compute, Isa::detect()) {
        (None | Some(config::Compute::Bf16), Some(isa)) => Ok(Precision::Bf16(isa)),
        (Some(config::Compute::Bf16), None) => {
            crate::bail_usage!("`compute`: found bf16, but this processor has neither AVX-512-BF16 nor AMX; use f32")
        }
        (None, None) | (Some(config::Compute::F32), _) => Ok(Precision::F32),
    }
}

#[cfg(test)]
mod tests;
