//! The step on an NVIDIA GPU, or on the emulation of its kernels on the host (feature `emulation`, for tests).
//!
//! Activations and their gradients are bf16, sums and the log-sum-exp of attention f32; every result is rounded once. Frozen
//! weights stay in NF4, or are bf16. A trainable tensor has an f32 master copy, which the optimiser updates, and a bf16 working
//! copy, which the kernels read; its gradient is f32.
//!
//! All calls are queued on one stream, in order. Workspaces are made with the model and have room for the longest batch; buffers
//! are made in the first step and used again, so that later ones allocate nothing on the device. A step reads back the loss of
//! each micro-batch and the norm of the gradients. Text is made from keys and values that stay on the device; a token reads back the
//! logits it is chosen by, in f32.

mod cache;
mod limits;
mod linear;
mod load;
mod loss;
mod operands;
mod operations;
mod optimizer;

pub use operands::{CudaBuffer, CudaParam, CudaTable, CudaVector, CudaWeight};

use super::cpu::Dims;
use super::cpu::batch::Current;
use crate::checkpoint::LlamaConfig;
use crate::error::{Context, Error, Result};
use cache::CacheMemory;
use half::bf16;
use loss::LossMemory;
use operands::Storage;
use optimizer::OptimizerMemory;
use qlora_kernels::cuda::{Buffer, CudaError, Device, Element, View, layer};
use std::collections::HashMap;

/// A GPU and what a run holds on it.
pub struct Cuda {
    device: Device,
    dims: Dims,
    batch: Current,
    /// The current batch on the device, with room for the longest.
    on_device: BatchMemory,
    rope: Option<Rope>,
    /// Buffers that were freed, by width and by whether they are f32; they are handed out again before new ones are made.
    pool: HashMap<(usize, bool), Vec<Storage>>,
    /// `[tokens, heads]`: rowsum(dO ∘ O).
    attention: Buffer<f32>,
    /// Sums over tokens of the low-rank gradients.
    gradients: Buffer<u8>,
    /// What an operand without a low-rank term has as workspace: nothing.
    empty: Buffer<bf16>,
    loss: LossMemory,
    optimizer: OptimizerMemory,
    cache: CacheMemory,
    /// Of each document of the batch as it was given: whether it has tokens.
    batch_documents: Vec<bool>,
    #[cfg(feature = "emulation")]
    paths: Vec<qlora_kernels::cuda::linear::Path>,
    bytes: u64,
}

struct BatchMemory {
    /// `[tokens]`
    input_ids: Buffer<u32>,
    /// `[tokens]`
    positions: Buffer<u32>,
    /// `[tokens + 1]`
    boundaries: Buffer<u32>,
    /// `[tokens]`
    targets: Buffer<i32>,
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
        Error::Failed(format!("the GPU: {error}"))
    }
}

impl Cuda {
    /// GPU number `ordinal`, with room for the batches of `dims`. Refused: no driver, no such GPU, or a model that the kernels
    /// do not compute.
    pub fn new(ordinal: usize, dims: Dims, config: &LlamaConfig) -> Result<Self> {
        limits::check_model(config)?;
        let device = Device::open_at(ordinal).or_refuse(|| "`device`: found cuda".to_owned())?;
        let mut bytes = 0;
        let tokens = dims.tokens;
        let on_device = BatchMemory {
            input_ids: zeros(&device, &mut bytes, "the batch", tokens)?,
            positions: zeros(&device, &mut bytes, "the batch", tokens)?,
            boundaries: zeros(&device, &mut bytes, "the batch", tokens + 1)?,
            targets: zeros(&device, &mut bytes, "the batch", tokens)?,
        };
        let attention = if dims.training { tokens * dims.heads } else { 0 };
        Ok(Self {
            attention: zeros(&device, &mut bytes, "attention", attention)?,
            gradients: zeros(&device, &mut bytes, "low-rank gradients", 0)?,
            empty: zeros(&device, &mut bytes, "workspace", 0)?,
            loss: LossMemory::new(&device, &mut bytes, &dims)?,
            optimizer: OptimizerMemory::new(&device, &mut bytes)?,
            cache: CacheMemory::new(&device, &mut bytes)?,
            batch_documents: Vec::new(),
            #[cfg(feature = "emulation")]
            paths: Vec::new(),
            device,
            dims,
            batch: Current::default(),
            on_device,
            rope: None,
            pool: HashMap::new(),
            bytes,
        })
    }

    /// The GPU's name, or that it is emulated.
    pub fn name(&self) -> String {
        self.device.name()
    }

    /// The kernels that linear layers took since the last call, in order; for tests.
    #[cfg(feature = "emulation")]
    pub fn take_paths(&mut self) -> Vec<qlora_kernels::cuda::linear::Path> {
        std::mem::take(&mut self.paths)
    }

    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    fn zeros<T: Element>(&mut self, what: &str, len: usize) -> Result<Buffer<T>> {
        zeros(&self.device, &mut self.bytes, what, len)
    }

    fn upload<T: Element>(&mut self, what: &str, data: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(what, data.len())?;
        self.device.write(&mut buffer, data)?;
        Ok(buffer)
    }

    fn positions(&self) -> View<'_, u32> {
        self.on_device.positions.view().first(self.tokens())
    }

    fn boundaries(&self) -> View<'_, u32> {
        self.on_device.boundaries.view().first(self.batch.boundaries.len())
    }
}

/// `len` zeros, counted in `held`; `what` is named if there is no room for them.
fn zeros<T: Element>(device: &Device, held: &mut u64, what: &str, len: usize) -> Result<Buffer<T>> {
    let buffer = device.zeros(len).or_fail(|| {
        format!(
            "the GPU has no room for {what}, beside the {held} bytes held already (lower max_length or \
             per_device_train_batch_size)"
        )
    })?;
    *held += (len * size_of::<T>()) as u64;
    Ok(buffer)
}
