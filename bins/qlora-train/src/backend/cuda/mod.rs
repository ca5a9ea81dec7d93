//! The step on an NVIDIA GPU, or on the emulation of its kernels on the host (feature `emulation`, for tests).
//!
//! Activations and their gradients are bf16, sums and the log-sum-exp of attention f32; every result is rounded once.
//! Frozen weights stay in NF4, or are bf16. A trainable tensor has an f32 master copy, which the optimizer updates, and
//! a bf16 working copy, which the kernels read; its gradient is f32. Magnitudes and norms are read in f32.
//!
//! All operations are queued on one stream, in order (low-rank gradients on a second one, beside dX, where that leaves
//! multiprocessors idle), on parts of one arena whose size a dry run has found:
//! [`Cuda::dry_run`] is this backend without a device: it allocates and frees the same parts and launches nothing.
//! A batch and the optimizer's rates come through pinned memory on a stream of their own, and the sum of the losses and
//! the norm of the gradients go back on another: the host waits for those two and for nothing else in a step, each when
//! all that does not need it is queued. Where the host adds up the gradients of several processes, they go through
//! pinned memory on those two streams as well, beside the kernels. Gradients are clipped on the device. Text is made
//! from keys and values that stay on the device; a token reads back the logits it is chosen by, in f32.

mod attention_cache;
mod batch;
mod beside;
mod buffers;
mod cache;
mod compute;
mod disk_inputs;
mod dispatch;
mod graphs;
mod host_memory;
mod in_graph;
mod limits;
mod linear;
mod loss;
mod magnitude;
mod memory;
mod nf4;
mod offload;
mod operands;
mod optimizer;
mod optimizer_memory;
mod optimizer_pieces;
mod output_layer;
mod paged_states;
mod pinned;
mod rope;
mod shared;
mod slot;
mod token_rows;
mod weights;
mod whole;

pub use graphs::{GraphCounts, KEPT as KEPT_GRAPHS};
pub use operands::{CudaBuffer, CudaOffloaded, CudaParam, CudaTable, CudaVector, CudaWeight};
pub use optimizer::READING_BYTES;
pub use shared::SharedWeights;

use super::run_shape::RunShape;
use super::{CheckedBatch, Operands, Trace};
use crate::arch::Arch;
use crate::error::{Context, Error, Result};
use batch::BatchMemory;
use beside::Beside;
use cache::CacheMemory;
use dispatch::LinearMemory;
use graphs::Graphs;
use half::bf16;
use loss::LossMemory;
use memory::{DeviceMemory, PieceStaging};
use offload::Offload;
use optimizer_memory::OptimizerMemory;
use output_layer::OutputLayer;
use pinned::PinnedWeights;
use qlora_kernels::CudaError;
use qlora_kernels::device::{Buffer, Device, EventTimer, MemoryEnd, Nccl, RoundTrip};
use qlora_kernels::ops::attention_backward;
use qlora_kernels::ops::dispatch::{Pass, Row};
use qlora_kernels::ops::linear::Path as LinearPath;
use qlora_kernels::shape::AttentionShape;
use rope::Rope;
use std::rc::Rc;
use std::sync::Arc;

/// The kernels that linear layers took, in order, where tests ask for them.
type Paths = Option<Vec<LinearPath>>;

/// A GPU and what a run holds on it; or, in a dry run, what it would hold.
pub struct Cuda {
    /// First: what they use is freed later.
    graphs: Graphs,
    /// The GPUs of the other ranks, where they add up gradients. First: its work ends before its memory.
    sums: Option<Nccl>,
    /// Gradients on their way through the host's memory; none before the first
    reading: Option<RoundTrip>,
    memory: DeviceMemory,
    dims: RunShape,
    batch: CheckedBatch,
    /// The current batch on the device, with room for the longest.
    on_device: BatchMemory,
    ropes: Vec<Rope>,
    /// Workspace of the backward pass of attention.
    attention: Buffer<f32>,
    /// Sums over tokens of gradients: low-rank ones, and those of magnitudes and of norms' weights.
    gradients: Buffer<u8>,
    /// The empty workspace of an operand without a low-rank term.
    empty: Buffer<bf16>,
    linear: LinearMemory,
    beside: Beside,
    loss: LossMemory,
    output_layer: OutputLayer,
    optimizer: OptimizerMemory,
    cache: CacheMemory,
    offload: Offload,
    pinned: PinnedWeights,
    /// End of the memory that the linear weights come from which are loaded now
    weights_end: MemoryEnd,
    /// Documents of the batch, as attention gets them
    documents: usize,
    /// True for each document of the batch, as it was given, that has tokens.
    batch_documents: Vec<bool>,
    pieces: PieceStaging,
    /// The pattern that random weights repeat, on the host and on the device.
    pattern: Option<(Arc<[u8]>, Buffer<u8>)>,
    /// Made when the first event is recorded.
    events: Option<EventTimer>,
    trace: Trace,
    linear_paths: Paths,
}

impl From<CudaError> for Error {
    fn from(error: CudaError) -> Self {
        memory::failed(&error)
    }
}

impl Operands for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Table = CudaTable;
    type Vector = CudaVector;
    type Param = CudaParam;
    type Offloaded = CudaOffloaded;
}

impl Cuda {
    /// GPU number `ordinal`, with `bytes` for all that a run of batches of `dims` holds, as a plan of it has counted
    /// them. Refused: no driver, no such GPU, no room, or a model that the kernels do not compute.
    pub fn new(ordinal: usize, dims: RunShape, config: &Arch, bytes: u64) -> Result<Self> {
        let device = Device::open_at(ordinal).usage_context(|| format!("`device`: cuda:{ordinal} cannot be used"))?;
        Self::on_device(Rc::new(device), dims, config, bytes)
    }

    /// The backend of [`new`](Self::new) on a GPU that is open already.
    pub fn on_device(device: Rc<Device>, dims: RunShape, config: &Arch, bytes: u64) -> Result<Self> {
        limits::check_model(config)?;
        Self::on(DeviceMemory::new(device, bytes, dims.graphs)?, dims)
    }

    /// A dry run of such a run: no operation is launched and no GPU is needed. Refused: a model that the kernels do not
    /// compute.
    pub fn dry_run(dims: RunShape, config: &Arch) -> Result<Self> {
        limits::check_model(config)?;
        Self::on(DeviceMemory::dry_run(), dims)
    }

    fn on(memory: DeviceMemory, dims: RunShape) -> Result<Self> {
        let RunShape { tokens, heads, kv_heads, head_dim, .. } = dims;
        let attention = AttentionShape { heads, kv_heads, head_dim, soft_cap: None };
        let attention = if dims.training { attention_backward::workspace_len_of(tokens, &attention) } else { 0 };
        Ok(Self {
            graphs: Graphs::new(&memory, &dims)?,
            sums: None,
            reading: None,
            on_device: BatchMemory::new(&memory, dims.tokens, dims.adapters_by_row)?,
            attention: memory.alloc("workspace", attention)?,
            gradients: memory.alloc("workspace", 0)?,
            empty: memory.alloc("workspace", 0)?,
            linear: LinearMemory::new(&memory, &dims)?,
            beside: Beside::default(),
            loss: LossMemory::new(&memory, &dims)?,
            output_layer: OutputLayer::default(),
            optimizer: OptimizerMemory::new(&memory, dims.paging)?,
            cache: CacheMemory::new(&memory)?,
            offload: Offload::new(memory.is_dry_run()),
            pinned: PinnedWeights::default(),
            weights_end: MemoryEnd::Low,
            documents: 0,
            batch_documents: Vec::new(),
            pieces: PieceStaging::default(),
            pattern: None,
            events: None,
            trace: Trace::default(),
            linear_paths: None,
            batch: CheckedBatch::default(),
            ropes: Vec::new(),
            memory,
            dims,
        })
    }

    /// With the GPUs of other ranks, with which it adds up gradients.
    pub fn adding_up(self, sums: Option<Nccl>) -> Self {
        Self { sums, ..self }
    }

    /// The backend with at most `limit` bytes of host memory pinned, where a system is known to pin less than it has:
    /// large arrays that are copied are then in memory that is not pinned.
    pub fn pinning_at_most(self, limit: Option<u64>) -> Self {
        self.memory.pin_at_most(limit);
        self
    }

    /// With a copy of pinned weights that other processes of the machine have as well.
    pub fn sharing(mut self, copy: Option<SharedWeights>) -> Self {
        self.pinned.share(copy);
        self
    }

    /// The kernels that linear layers took since the last call, in order; none before the first.
    pub fn take_linear_paths(&mut self) -> Vec<LinearPath> {
        self.linear_paths.replace(Vec::new()).unwrap_or_default()
    }

    /// Number of times that low-rank gradients were computed beside dX.
    pub fn count_of_gradients_beside_dx(&self) -> usize {
        self.beside.count()
    }

    /// Number of times that a pass through a linear layer was computed by this row of the dispatch table.
    pub fn count_of_linear(&self, pass: Pass, row: Row) -> usize {
        self.linear.count(pass, row)
    }
}
