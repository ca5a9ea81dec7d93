//! What the model is written over: fused operations on buffers that the caller asked for beforehand.
//!
//! Implementations: [`cpu::Cpu`] computes in f32; `cuda::Cuda` on a GPU, with activations in bf16; [`plan::Plan`] computes
//! nothing and records what every buffer, weight and state costs. The model's code is the same for all, so the plan is the run
//! by construction.

pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod dims;
mod group;
pub mod observed;
mod optimizer_state;
pub mod plan;

pub use group::{LinearGroup, LinearGroupOf, Lora, LoraOf, Segment, SegmentOf};
pub use optimizer_state::{OptimizerState, StateFormat};

use crate::error::{Error, Result};
use crate::files::tensor::{StoredType, StoredWeight, Tensor16, TensorData};
use crate::refuse;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AdamW, AttentionShape, RopeTable};

/// How frozen linear weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    Nf4 {
        block_size: usize,
        double_quant: bool,
    },
    /// 16-bit weights as they are in the checkpoint.
    None,
}

/// The 16-bit weight of `n` rows of `k` columns called `name` in NF4: the same on every device.
fn quantize(name: &str, n: usize, k: usize, tensor: &Tensor16, options: &Nf4Options) -> Result<Nf4Matrix> {
    let quantized = match &tensor.data {
        TensorData::Bf16(values) => Nf4Matrix::quantize_bf16(values, n, k, options),
        _ => Nf4Matrix::quantize(&tensor.to_f32(), n, k, options),
    };
    match quantized {
        Ok(matrix) => Ok(matrix),
        Err(cause) => refuse!("{name}: {cause}"),
    }
}

/// One micro-batch: documents laid end to end, without padding. Attention does not cross `boundaries`.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// `[M]`
    pub input_ids: &'a [u32],
    /// `[M]`, restarting at 0 in every document
    pub positions: &'a [u32],
    /// `[documents + 1]`, from 0 to M
    pub boundaries: &'a [u32],
    /// `[M]`: the next token of the same document, or negative where nothing is learned
    pub targets: &'a [i32],
}

impl Batch<'_> {
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Tokens that something is learned from.
    pub fn supervised(&self) -> usize {
        self.targets.iter().filter(|&&target| target >= 0).count()
    }
}

/// Where a step is, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Before the first layer
    #[default]
    Input,
    Layer(usize),
    /// After the last layer
    Output,
}

/// What is looked at while a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    #[default]
    Nothing,
    /// How long each operation takes.
    Times,
    /// The first value that is not finite ends the step with an error that names it.
    Values,
}

/// One trainable tensor and how the optimiser treats it.
pub struct ParamUpdate<'a, P> {
    pub param: &'a mut P,
    pub settings: AdamW,
}

/// Fused operations of a Llama step. Buffers are `[tokens of the batch, width]`, row-major; each was made by
/// [`Backend::alloc`] with room for the longest batch. Widths are checked by the implementation. No operation
/// allocates.
pub trait Backend {
    /// Activations and their gradients.
    type Buffer;
    /// A frozen linear weight.
    type Weight;
    /// The embedding or the output layer, `[vocab, hidden]`.
    type Table;
    /// A norm's weight or a bias.
    type Vector;
    /// A trainable tensor with its gradient and optimiser states.
    type Param;
    /// A buffer that is not used for a while, or its values in host memory.
    type Stowed;

    // Memory and operands. `read` is called at most once, and not at all by a backend that only plans.

    /// A buffer of `width` values for every token of the longest batch. The name appears in the memory plan.
    fn alloc(&mut self, name: &'static str, width: usize) -> Result<Self::Buffer>;
    /// As [`Self::alloc`], for values that stay f32 whatever type activations have: the log-sum-exp of attention.
    fn alloc_f32(&mut self, name: &'static str, width: usize) -> Result<Self::Buffer> {
        self.alloc(name, width)
    }
    fn free(&mut self, buffer: Self::Buffer);
    /// Puts a buffer away until the backward pass: into host memory, where the run is made so.
    fn stow(&mut self, buffer: Self::Buffer) -> Result<Self::Stowed>;
    /// A buffer that stays as it is.
    fn keep(&mut self, buffer: Self::Buffer) -> Self::Stowed;
    /// Begins to bring it back, before it is needed.
    fn fetch(&mut self, stowed: Self::Stowed) -> Result<Self::Stowed>;
    /// The buffer as it was.
    fn unstow(&mut self, stowed: Self::Stowed) -> Result<Self::Buffer>;
    /// The width of S and T: Σr, with what the device pads the ranks by.
    fn low_rank_columns(group: &LinearGroup<Self>) -> usize {
        group.r()
    }
    /// Refuses, when the model is built, linear layers that the device cannot compute. `name` is that of a weight of the group.
    fn accept(&mut self, _name: &str, _group: &LinearGroup<Self>) -> Result<()> {
        Ok(())
    }
    /// A 16-bit weight is quantised as `quantization` says; one that is stored in NF4 is held as it is, and
    /// `quantization` describes it.
    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<StoredWeight>,
    ) -> Result<Self::Weight>;
    /// With `gathered` only its rows are gathered, and it may stay in host memory.
    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        gathered: bool,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<Tensor16>,
    ) -> Result<Self::Table>;
    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Vector>;
    /// `states` adds a gradient and the optimiser's states, in the format that it gives a tensor of this length.
    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Param>;
    /// Gives up a tensor that is not used any more.
    fn free_param(&mut self, param: Self::Param) {
        drop(param);
    }
    /// The current values.
    fn param_values(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// The optimiser's states; none where the tensor is not trained.
    fn optimizer_state(&self, param: &Self::Param) -> Result<Option<OptimizerState>>;
    /// Puts back what [`Self::param_values`] and [`Self::optimizer_state`] gave. Refuses values or states of another
    /// length or kind than the tensor has, and then changes nothing.
    fn restore(&mut self, param: &mut Self::Param, values: Vec<f32>, state: OptimizerState) -> Result<()>;
    /// What [`Self::restore`] leaves out: the gradient accumulated so far, of as many values. Empty where the tensor is
    /// not trained.
    fn gradient(&self, param: &Self::Param) -> Result<Vec<f32>>;
    /// Puts back what [`Self::gradient`] gave. Refuses another length, and then changes nothing.
    fn restore_gradient(&mut self, param: &mut Self::Param, gradient: Vec<f32>) -> Result<()>;
    /// Rotation angles of every position the run will use, `values` cosines and as many sines; kept by the backend.
    fn rope_table(&mut self, values: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()>;

    /// Everything that it holds, or has held when it held most.
    fn bytes(&self) -> u64;
    /// Gives up buffers that no operation holds.
    fn trim(&mut self) {}

    // The step.

    /// Makes `batch` the one that the following operations work on.
    fn begin(&mut self, batch: &Batch) -> Result<()>;
    /// Out `[H]` = the rows of `table` named by the batch's input ids.
    fn embed(&mut self, table: &Self::Table, out: &mut Self::Buffer) -> Result<()>;
    /// Out `[H]` = RMSNorm(x `[H]`).
    fn rms_norm(&mut self, x: &Self::Buffer, weight: &Self::Vector, eps: f32, out: &mut Self::Buffer) -> Result<()>;
    /// Sum `[H]` = x `[H]` + delta `[H]`, out `[H]` = RMSNorm(sum).
    fn add_rms_norm(
        &mut self,
        x: &Self::Buffer,
        delta: &Self::Buffer,
        sum: &mut Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// dx `[H]` = the gradient of RMSNorm at x, or += with `accumulate`.
    fn rms_norm_backward(
        &mut self,
        dy: &Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        accumulate: bool,
        dx: &mut Self::Buffer,
    ) -> Result<()>;
    /// S `[low_rank_columns]` = scale · dropout(x) · Aᵀ.
    fn lora_down(
        &mut self,
        x: &Self::Buffer,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        s: &mut Self::Buffer,
    ) -> Result<()>;
    /// y `[ΣN]` = x · Wᵀ + S · Bᵀ + bias.
    fn linear(
        &mut self,
        x: &Self::Buffer,
        s: Option<&Self::Buffer>,
        group: &LinearGroup<Self>,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// T `[low_rank_columns]` = scale · dy · B.
    fn lora_up(&mut self, dy: &Self::Buffer, group: &LinearGroup<Self>, t: &mut Self::Buffer) -> Result<()>;
    /// dx `[K]` = dy · W + dropout(T · A).
    fn linear_dx(
        &mut self,
        dy: &Self::Buffer,
        t: Option<&Self::Buffer>,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        dx: &mut Self::Buffer,
    ) -> Result<()>;
    /// dA += Tᵀ · dropout(x), dB += dyᵀ · S.
    fn lora_gradients(
        &mut self,
        x: &Self::Buffer,
        dy: &Self::Buffer,
        s: &Self::Buffer,
        t: &Self::Buffer,
        group: &mut LinearGroup<Self>,
        dropout: Option<Dropout>,
    ) -> Result<()>;
    /// Rotates the queries and keys of q‖k‖v in place; `inverse` is the gradient.
    fn rope(&mut self, qkv: &mut Self::Buffer, shape: AttentionShape, inverse: bool) -> Result<()>;
    fn attention(
        &mut self,
        qkv: &Self::Buffer,
        shape: AttentionShape,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    ) -> Result<()>;
    fn attention_backward(
        &mut self,
        dout: &Self::Buffer,
        qkv: &Self::Buffer,
        out: &Self::Buffer,
        lse: &Self::Buffer,
        shape: AttentionShape,
        dqkv: &mut Self::Buffer,
    ) -> Result<()>;
    /// Copies keys and values of q‖k‖v, already rotated, to `cache` `[2·Hkv·D]`: those of position p of document d to row
    /// `starts[d] + p`.
    fn append_to_cache(
        &mut self,
        _qkv: &Self::Buffer,
        _shape: AttentionShape,
        _starts: &[u32],
        _cache: &mut Self::Buffer,
    ) -> Result<()> {
        Err(Error::Failed("this device keeps no keys and values".to_owned()))
    }
    /// Out `[H·D]` = attention of the batch's queries over the cached rows of their documents, their own included.
    fn attention_over_cache(
        &mut self,
        _qkv: &Self::Buffer,
        _cache: &Self::Buffer,
        _shape: AttentionShape,
        _starts: &[u32],
        _out: &mut Self::Buffer,
    ) -> Result<()> {
        Err(Error::Failed("this device keeps no keys and values".to_owned()))
    }
    /// Out `[I]` = silu(gate) ∘ up.
    fn swiglu(&mut self, gate_up: &Self::Buffer, out: &mut Self::Buffer) -> Result<()>;
    /// Turns gate‖up `[2·I]` into its gradient.
    fn swiglu_backward(&mut self, dout: &Self::Buffer, gate_up: &mut Self::Buffer) -> Result<()>;
    /// The cross-entropy of the batch's supervised tokens, and `weight` times its gradient in `dx`.
    fn loss(&mut self, x: &Self::Buffer, head: &Self::Table, weight: f32, dx: Option<&mut Self::Buffer>) -> Result<()>;
    /// Σ of the last [`loss`](Self::loss) over the supervised tokens, unweighted; NaN if one is not finite. Waits for it, so
    /// that what does not need it is best queued before.
    fn loss_sum(&mut self) -> Result<f64>;
    /// Logits `[vocab]` of one token of the batch.
    fn logits(&mut self, x: &Self::Buffer, head: &Self::Table, token: usize) -> Result<Vec<f32>>;
    /// Those of several tokens, each as it would be alone.
    fn logits_of_tokens(&mut self, x: &Self::Buffer, head: &Self::Table, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        tokens.iter().map(|&token| self.logits(x, head, token)).collect()
    }

    // The optimiser.

    /// Makes room for updates of these tensors; before the first operation of a step.
    fn prepare_update(&mut self, _params: Vec<&mut Self::Param>) -> Result<()> {
        Ok(())
    }
    fn zero_gradients(&mut self, params: Vec<&mut Self::Param>) -> Result<()>;
    /// One AdamW update of all tensors, with gradients scaled down to the L2 norm `max_norm` (0: as they are). Returns their norm
    /// before; if it is not finite, nothing was updated.
    fn update(&mut self, updates: Vec<ParamUpdate<'_, Self::Param>>, max_norm: f64) -> Result<f64>;

    // Looking at a step.

    /// The operations that follow belong to this place.
    fn enter(&mut self, _place: Place) {}
    /// Looks at the operations that follow; whether this backend can.
    fn watch(&mut self, _watch: Watch) -> Result<bool> {
        Ok(false)
    }
    /// Seconds of each kind of operation since [`Watch::Times`] was asked for or since the last call, in the order of their first.
    fn times(&mut self) -> Result<Vec<(&'static str, f64)>> {
        Ok(Vec::new())
    }
    /// Remembers when the work that was asked for so far is done.
    fn mark(&mut self) -> Result<()> {
        Ok(())
    }
    /// Seconds from each mark to the next.
    fn marks(&mut self) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }
    /// Row and column of the first value of the batch's rows that is not finite.
    fn first_not_finite(&mut self, _buffer: &Self::Buffer) -> Result<Option<(usize, usize)>> {
        Ok(None)
    }
}

/// For a backend whose buffers are in the host's memory: they wait for the backward pass where they are.
macro_rules! waits_where_it_is {
    ($buffer:ty) => {
        fn stow(&mut self, buffer: $buffer) -> Result<$buffer> {
            Ok(buffer)
        }
        fn keep(&mut self, buffer: $buffer) -> $buffer {
            buffer
        }
        fn fetch(&mut self, stowed: $buffer) -> Result<$buffer> {
            Ok(stowed)
        }
        fn unstow(&mut self, stowed: $buffer) -> Result<$buffer> {
            Ok(stowed)
        }
    };
}
use waits_where_it_is;

/// What gradients of this norm are multiplied by, as PyTorch's `clip_grad_norm_` has it: never above 1, safe at a norm of 0, and
/// 1 without a limit.
pub fn clip(norm: f64, max_norm: f64) -> f32 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) as f32 } else { 1.0 }
}

/// Row and column of the first value of `[rows, width]` that is not finite.
fn not_finite_at(values: impl Iterator<Item = f32>, width: usize) -> Option<(usize, usize)> {
    let index = values.enumerate().find(|(_, value)| !value.is_finite())?.0;
    Some((index / width.max(1), index % width.max(1)))
}
