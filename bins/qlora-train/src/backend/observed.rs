//! A backend that is looked at: how long each kind of operation takes, or which value is the first that is not finite. What it computes is
//! what the backend inside computes.

use super::{Backend, Batch, LinearGroup, OptimizerState, ParamUpdate, Place, Quantization, StateFormat, Watch};
use crate::error::{Error, Result};
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AttentionShape, RopeTable};

pub struct Observed<B: Backend> {
    inner: B,
    watch: Watch,
    place: Place,
    /// The kinds of the operations that were marked, in order.
    kinds: Vec<&'static str>,
    /// Of the batch, while values are watched: positions and boundaries.
    positions: Vec<u32>,
    boundaries: Vec<u32>,
}

/// A kind of operation, and the tensors that it writes.
struct Wrote<'a, Buffer>(&'static str, &'a [(&'a str, &'a Buffer)]);

/// The linear layers of a group, by its site.
const GROUPS: [&str; 4] = ["q_proj, k_proj, v_proj", "o_proj", "gate_proj, up_proj", "down_proj"];

fn group_name<B: Backend>(group: &LinearGroup<B>) -> &'static str {
    GROUPS[group.site as usize % 16 % GROUPS.len()]
}

impl<B: Backend> Observed<B> {
    pub fn new(inner: B) -> Self {
        let (positions, boundaries) = (Vec::new(), Vec::new());
        Self { inner, watch: Watch::Nothing, place: Place::Input, kinds: Vec::new(), positions, boundaries }
    }

    pub fn inner(&mut self) -> &mut B {
        &mut self.inner
    }

    fn wrote(&mut self, Wrote(kind, tensors): Wrote<'_, B::Buffer>) -> Result<()> {
        match self.watch {
            Watch::Nothing => Ok(()),
            Watch::Times => {
                self.kinds.push(kind);
                self.inner.mark()
            }
            Watch::Values => {
                tensors.iter().try_for_each(|(name, buffer)| match self.inner.first_not_finite(buffer)? {
                    Some(found) => Err(self.not_finite(kind, name, found)),
                    None => Ok(()),
                })
            }
        }
    }

    /// A name that only messages need.
    fn named(&self, name: impl FnOnce() -> String) -> String {
        if self.watch == Watch::Values { name() } else { String::new() }
    }

    fn not_finite(&self, kind: &str, name: &str, (row, column): (usize, usize)) -> Error {
        let place = match self.place {
            Place::Input => "before the first layer".to_owned(),
            Place::Layer(layer) => format!("in layer {layer} (model.layers.{layer})"),
            Place::Output => "after the last layer".to_owned(),
        };
        let document = self.boundaries.partition_point(|&begin| begin as usize <= row).max(1) - 1;
        let position = self.positions.get(row).copied().unwrap_or(0);
        Error::Failed(format!(
            "the first value that is not finite is {place}, operation {kind}: {name}, row {row} (position {position} of row {document} \
             of the micro-batch), column {column}"
        ))
    }
}

/// Operations that are handed on and then looked at.
macro_rules! operations {
    ($($name:ident($($argument:ident: $type:ty),*) is $kind:expr, writes $($tensor:ident as $what:expr),+;)*) => {
        $(fn $name(&mut self, $($argument: $type),*) -> Result<()> {
            self.inner.$name($($argument),*)?;
            self.wrote(Wrote($kind, &[$(($what, &*$tensor)),+]))
        })*
    };
}

/// What is handed on and nothing else.
macro_rules! handed_on {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&mut self, $($argument: $type),*) -> $result {
            self.inner.$name($($argument),*)
        })*
    };
}

impl<B: Backend> Backend for Observed<B> {
    type Buffer = B::Buffer;
    type Weight = B::Weight;
    type Table = B::Table;
    type Vector = B::Vector;
    type Param = B::Param;
    type Stowed = B::Stowed;

    handed_on! {
        alloc(name: &'static str, width: usize) -> Result<B::Buffer>;
        alloc_f32(name: &'static str, width: usize) -> Result<B::Buffer>;
        free(buffer: B::Buffer) -> ();
        stow(buffer: B::Buffer) -> Result<B::Stowed>;
        keep(buffer: B::Buffer) -> B::Stowed;
        fetch(stowed: B::Stowed) -> Result<B::Stowed>;
        unstow(stowed: B::Stowed) -> Result<B::Buffer>;
        accept(name: &str, group: &LinearGroup<Self>) -> Result<()>;
        weight(
            name: &str, n: usize, k: usize, quantization: Quantization, stored: StoredType,
            read: &mut dyn FnMut() -> Result<StoredWeight>
        ) -> Result<B::Weight>;
        table(
            name: &'static str, vocab: usize, hidden: usize, gathered: bool, stored: StoredType, read: &mut dyn FnMut() -> Result<Tensor16>
        ) -> Result<B::Table>;
        vector(name: &'static str, len: usize, read: &mut dyn FnMut() -> Result<Vec<f32>>) -> Result<B::Vector>;
        param(len: usize, states: Option<StateFormat>, init: &mut dyn FnMut() -> Result<Vec<f32>>) -> Result<B::Param>;
        free_param(param: B::Param) -> ();
        restore(param: &mut B::Param, values: Vec<f32>, state: OptimizerState) -> Result<()>;
        restore_gradient(param: &mut B::Param, gradient: Vec<f32>) -> Result<()>;
        rope_table(values: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()>;
        trim() -> ();
        loss_sum() -> Result<f64>;
        prepare_update(params: Vec<&mut B::Param>) -> Result<()>;
        logits(x: &B::Buffer, head: &B::Table, token: usize) -> Result<Vec<f32>>;
        logits_of_tokens(x: &B::Buffer, head: &B::Table, tokens: &[usize]) -> Result<Vec<Vec<f32>>>;
        mark() -> Result<()>;
        marks() -> Result<Vec<f64>>;
        first_not_finite(buffer: &B::Buffer) -> Result<Option<(usize, usize)>>;
    }

    fn low_rank_columns(group: &LinearGroup<Self>) -> usize {
        B::low_rank_columns(group)
    }

    fn param_values(&self, param: &B::Param) -> Result<Vec<f32>> {
        self.inner.param_values(param)
    }

    fn optimizer_state(&self, param: &B::Param) -> Result<Option<OptimizerState>> {
        self.inner.optimizer_state(param)
    }

    fn gradient(&self, param: &B::Param) -> Result<Vec<f32>> {
        self.inner.gradient(param)
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        if self.watch == Watch::Values {
            self.positions = batch.positions.to_vec();
            self.boundaries = batch.boundaries.to_vec();
        }
        self.inner.begin(batch)?;
        self.wrote(Wrote("batch", &[]))
    }

    operations! {
        embed(table: &B::Table, out: &mut B::Buffer) is "embedding", writes out as "the residual stream";
        rms_norm(x: &B::Buffer, weight: &B::Vector, eps: f32, out: &mut B::Buffer)
            is "norm", writes out as "the norm of the residual stream";
        add_rms_norm(
            x: &B::Buffer, delta: &B::Buffer, sum: &mut B::Buffer, weight: &B::Vector, eps: f32, out: &mut B::Buffer
        ) is "norm", writes sum as "the residual stream", out as "the norm of the residual stream";
        rms_norm_backward(
            dy: &B::Buffer, x: &B::Buffer, weight: &B::Vector, eps: f32, accumulate: bool, dx: &mut B::Buffer
        ) is "norm, backward", writes dx as "the gradient of the residual stream";
        rope(qkv: &mut B::Buffer, shape: AttentionShape, inverse: bool)
            is "rotary embedding", writes qkv as "queries, keys and values";
        attention(qkv: &B::Buffer, shape: AttentionShape, out: &mut B::Buffer, lse: &mut B::Buffer)
            is "attention", writes lse as "the log-sum-exp of the scores", out as "the attention's output";
        attention_backward(
            dout: &B::Buffer, qkv: &B::Buffer, out: &B::Buffer, lse: &B::Buffer, shape: AttentionShape, dqkv: &mut B::Buffer
        ) is "attention, backward", writes dqkv as "the gradient of queries, keys and values";
        append_to_cache(qkv: &B::Buffer, shape: AttentionShape, starts: &[u32], cache: &mut B::Buffer)
            is "KV cache", writes qkv as "queries, keys and values";
        attention_over_cache(
            qkv: &B::Buffer, cache: &B::Buffer, shape: AttentionShape, starts: &[u32], out: &mut B::Buffer
        ) is "attention", writes out as "the attention's output";
        swiglu(gate_up: &B::Buffer, out: &mut B::Buffer) is "SwiGLU", writes out as "silu(gate) · up";
        swiglu_backward(dout: &B::Buffer, gate_up: &mut B::Buffer)
            is "SwiGLU, backward", writes gate_up as "the gradient of gate and up";
    }

    fn lora_down(
        &mut self,
        x: &B::Buffer,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        s: &mut B::Buffer,
    ) -> Result<()> {
        self.inner.lora_down(x, group, dropout, s)?;
        let name = self.named(|| format!("X·Aᵀ of {}", group_name::<B>(group)));
        self.wrote(Wrote("LoRA X·Aᵀ", &[(&name, s)]))
    }

    fn linear(
        &mut self,
        x: &B::Buffer,
        s: Option<&B::Buffer>,
        group: &LinearGroup<Self>,
        y: &mut B::Buffer,
    ) -> Result<()> {
        self.inner.linear(x, s, group, y)?;
        let name = self.named(|| format!("the output of {}", group_name::<B>(group)));
        self.wrote(Wrote("linear", &[(&name, y)]))
    }

    fn lora_up(&mut self, dy: &B::Buffer, group: &LinearGroup<Self>, t: &mut B::Buffer) -> Result<()> {
        self.inner.lora_up(dy, group, t)?;
        let name = self.named(|| format!("dY·B of {}", group_name::<B>(group)));
        self.wrote(Wrote("LoRA dY·B", &[(&name, t)]))
    }

    fn linear_dx(
        &mut self,
        dy: &B::Buffer,
        t: Option<&B::Buffer>,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        dx: &mut B::Buffer,
    ) -> Result<()> {
        self.inner.linear_dx(dy, t, group, dropout, dx)?;
        let name = self.named(|| format!("the gradient of the input of {}", group_name::<B>(group)));
        self.wrote(Wrote("linear, backward", &[(&name, dx)]))
    }

    fn lora_gradients(
        &mut self,
        x: &B::Buffer,
        dy: &B::Buffer,
        s: &B::Buffer,
        t: &B::Buffer,
        group: &mut LinearGroup<Self>,
        dropout: Option<Dropout>,
    ) -> Result<()> {
        self.inner.lora_gradients(x, dy, s, t, group, dropout)?;
        if self.watch != Watch::Values {
            return self.wrote(Wrote("LoRA gradients", &[]));
        }
        for lora in group.segments.iter().filter_map(|segment| segment.lora.as_ref()) {
            for (factor, param, columns) in [("A", &lora.a, group.k), ("B", &lora.b, lora.r)] {
                let gradient = self.inner.gradient(param)?;
                if let Some((row, column)) = super::not_finite_at(gradient.into_iter(), columns) {
                    return Err(Error::Failed(format!(
                        "the first value that is not finite is in layer {} (model.layers.{0}): the gradient of lora_{factor} of one of \
                         {}, row {row}, column {column}",
                        group.site / 16,
                        group_name::<B>(group)
                    )));
                }
            }
        }
        Ok(())
    }

    fn loss(&mut self, x: &B::Buffer, head: &B::Table, weight: f32, dx: Option<&mut B::Buffer>) -> Result<()> {
        let kind = "output layer and loss";
        match dx {
            Some(dx) => {
                self.inner.loss(x, head, weight, Some(dx))?;
                self.wrote(Wrote(kind, &[("the gradient of the loss", dx)]))
            }
            None => {
                self.inner.loss(x, head, weight, None)?;
                self.wrote(Wrote(kind, &[]))
            }
        }
    }

    fn zero_gradients(&mut self, params: Vec<&mut B::Param>) -> Result<()> {
        self.inner.zero_gradients(params)?;
        self.wrote(Wrote("optimiser", &[]))
    }

    fn update(&mut self, updates: Vec<ParamUpdate<'_, B::Param>>, max_norm: f64) -> Result<f64> {
        let norm = self.inner.update(updates, max_norm)?;
        self.wrote(Wrote("optimiser", &[]))?;
        Ok(norm)
    }

    fn enter(&mut self, place: Place) {
        self.place = place;
    }

    fn watch(&mut self, watch: Watch) -> Result<bool> {
        self.watch = watch;
        self.kinds.clear();
        // What was marked before is none of this watch's. The first operation is timed from a mark of its own.
        self.inner.marks()?;
        if watch == Watch::Times {
            self.inner.mark()?;
        }
        Ok(true)
    }

    fn times(&mut self) -> Result<Vec<(&'static str, f64)>> {
        let seconds = self.inner.marks()?;
        let mut times: Vec<(&'static str, f64)> = Vec::new();
        for (kind, seconds) in std::mem::take(&mut self.kinds).into_iter().zip(seconds) {
            match times.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, sum)) => *sum += seconds,
                None => times.push((kind, seconds)),
            }
        }
        if self.watch == Watch::Times {
            self.inner.mark()?;
        }
        Ok(times)
    }
}
