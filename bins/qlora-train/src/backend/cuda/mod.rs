//! The step on an NVIDIA GPU, or on the emulation of its kernels on the host (feature `emulation`, for tests).
//!
//! Activations and their gradients are bf16, sums and the log-sum-exp of attention f32; every result is rounded once. Frozen
//! weights stay in NF4, or are bf16. A trainable tensor has an f32 master copy, which the optimiser updates, and a bf16 working
//! copy, which the kernels read; its gradient is f32.
//!
//! All operations are queued on one stream, in order, on parts of one arena whose size a plan has found: [`Cuda::planning`] is this
//! backend without a device, which takes and gives back the same parts and launches nothing. A batch and the optimiser's rates come
//! through pinned memory on a stream of their own, and the sum of the losses and the norm of the gradients go back on another: the host
//! waits for those two and for nothing else in a step, each when all that does not need it is queued. Gradients are clipped on the
//! device. Text is made from keys and values that stay on the device; a token reads back the logits it is chosen by, in f32.

mod cache;
mod limits;
mod linear;
mod load;
mod loss;
mod memory;
mod operands;
mod operations;
mod optimizer;
mod stow;

pub use operands::{CudaBuffer, CudaParam, CudaStowed, CudaTable, CudaVector, CudaWeight};

use super::batch::Current;
use super::dims::Dims;
use super::plan::{PlannedBuffer, Planner};
use crate::arch::Arch;
use crate::error::{Context, Error, Result};
use crate::model::ModelSpec;
use cache::CacheMemory;
use half::bf16;
use loss::LossMemory;
use memory::{Incoming, Memory};
use optimizer::OptimizerMemory;
use qlora_kernels::CudaError;
use qlora_kernels::device::{Buffer, Device, EventTimer, View};
use qlora_kernels::ops::layer;
use std::rc::Rc;
use std::sync::Arc;
use stow::StowMemory;

/// A GPU and what a run holds on it; or, while planning, what it would hold.
pub struct Cuda {
    memory: Memory,
    dims: Dims,
    /// head_dim / 2
    half: usize,
    batch: Current,
    /// The current batch on the device, with room for the longest.
    on_device: BatchMemory,
    rope: Option<Rope>,
    /// `[tokens, heads]`: rowsum(dO ∘ O).
    attention: Buffer<f32>,
    /// Sums over tokens of the low-rank gradients.
    gradients: Buffer<u8>,
    /// What an operand without a low-rank term has as workspace: nothing.
    empty: Buffer<bf16>,
    loss: LossMemory,
    optimizer: OptimizerMemory,
    cache: CacheMemory,
    stowed: StowMemory,
    /// Of each document of the batch as it was given: whether it has tokens.
    batch_documents: Vec<bool>,
    /// What random weights repeat, and the same on the device.
    pattern: Option<(Arc<[u8]>, Buffer<u8>)>,
    /// Made when the first moment is marked.
    marks: Option<EventTimer>,
    #[cfg(feature = "emulation")]
    paths: Vec<qlora_kernels::ops::linear::Path>,
}

struct BatchMemory {
    /// `[tokens]`
    input_ids: Incoming<u32>,
    /// `[tokens]`
    positions: Incoming<u32>,
    /// `[tokens + 1]`
    boundaries: Incoming<u32>,
    /// `[tokens]`
    targets: Incoming<i32>,
}

/// Rotation angles of every position.
struct Rope {
    positions: usize,
    half: usize,
    cosines: Buffer<f32>,
    sines: Buffer<f32>,
}

impl Rope {
    fn table(&self) -> layer::RopeTable<'_> {
        layer::RopeTable { half: self.half, cosines: self.cosines.view(), sines: self.sines.view() }
    }
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        memory::failed(&error)
    }
}

impl Planner for Cuda {
    fn of(spec: &ModelSpec) -> Result<Self> {
        Self::planning(spec.dims(), &spec.arch)
    }

    fn planned(&self) -> Vec<PlannedBuffer> {
        self.memory.planned()
    }

    fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        self.memory.planned_on_host()
    }
}

impl BatchMemory {
    fn new(memory: &Memory, tokens: usize) -> Result<Self> {
        let name = "batch";
        Ok(Self {
            input_ids: Incoming::new(memory, name, tokens)?,
            positions: Incoming::new(memory, name, tokens)?,
            boundaries: Incoming::new(memory, name, tokens + 1)?,
            targets: Incoming::new(memory, name, tokens)?,
        })
    }

    fn set(&mut self, memory: &Memory, batch: &Current) -> Result<()> {
        self.input_ids.set(memory, &batch.input_ids)?;
        self.positions.set(memory, &batch.positions)?;
        self.boundaries.set(memory, &batch.boundaries)?;
        self.targets.set(memory, &batch.targets)
    }
}

impl Cuda {
    /// GPU number `ordinal`, with `bytes` for all that a run of batches of `dims` holds: what a plan of it has found. Refused: no
    /// driver, no such GPU, no room, or a model that the kernels do not compute.
    pub fn new(ordinal: usize, dims: Dims, config: &Arch, bytes: u64) -> Result<Self> {
        let device = Device::open_at(ordinal).usage_context(|| format!("`device`: cuda:{ordinal} cannot be used"))?;
        Self::on_device(Rc::new(device), dims, config, bytes)
    }

    /// As [`new`](Self::new), on a GPU that is open already.
    pub fn on_device(device: Rc<Device>, dims: Dims, config: &Arch, bytes: u64) -> Result<Self> {
        limits::check_model(config)?;
        Self::on(Memory::new(device, bytes)?, dims, config)
    }

    /// A plan of such a run: no operation is launched and no GPU is needed. Refused: a model that the kernels do not compute.
    pub fn planning(dims: Dims, config: &Arch) -> Result<Self> {
        limits::check_model(config)?;
        Self::on(Memory::planning(), dims, config)
    }

    fn on(memory: Memory, dims: Dims, config: &Arch) -> Result<Self> {
        let attention = if dims.training { dims.tokens * dims.heads } else { 0 };
        Ok(Self {
            on_device: BatchMemory::new(&memory, dims.tokens)?,
            attention: memory.take("workspace", attention)?,
            gradients: memory.take("workspace", 0)?,
            empty: memory.take("workspace", 0)?,
            loss: LossMemory::new(&memory, &dims)?,
            optimizer: OptimizerMemory::new(&memory)?,
            cache: CacheMemory::new(&memory)?,
            stowed: StowMemory::default(),
            batch_documents: Vec::new(),
            pattern: None,
            marks: None,
            #[cfg(feature = "emulation")]
            paths: Vec::new(),
            batch: Current::default(),
            rope: None,
            half: config.head_dim / 2,
            memory,
            dims,
        })
    }

    /// The kernels that linear layers took since the last call, in order; for tests.
    #[cfg(feature = "emulation")]
    pub fn take_paths(&mut self) -> Vec<qlora_kernels::ops::linear::Path> {
        std::mem::take(&mut self.paths)
    }

    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    fn positions(&self) -> View<'_, u32> {
        self.on_device.positions.view().first(self.tokens())
    }

    fn boundaries(&self) -> View<'_, u32> {
        self.on_device.boundaries.view().first(self.batch.boundaries.len())
    }
}
