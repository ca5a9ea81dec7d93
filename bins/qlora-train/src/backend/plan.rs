//! A backend that allocates nothing and computes nothing: it records what the run will hold, and for how many FLOPs.

use super::cpu::Workspace;
use super::dims::Dims;
use super::{Backend, Batch, LinearGroup, OptimizerState, ParamUpdate, Quantization, StateFormat, waits_where_it_is};
use crate::error::Result;
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use crate::model::ModelSpec;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AttentionShape, RopeTable};
use std::collections::HashMap;

/// One line of the plan: everything of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    pub name: String,
    pub bytes: u64,
}

/// A backend that can tell what a run on it would hold, without holding it.
pub trait Planner: Backend + Sized {
    /// For batches of `spec`. Refused: a model that it does not compute.
    fn of(spec: &ModelSpec) -> Result<Self>;
    /// What was held when most was, by name, largest first; the sum is [`Backend::bytes`].
    fn planned(&self) -> Vec<PlannedBuffer>;
    /// What is held in the host's memory, where that is another one.
    fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        Vec::new()
    }
    /// Multiply–adds of the operations so far, counted as two; 0 where they are not counted.
    fn flops(&self) -> f64 {
        0.0
    }
}

/// Plans a run of [`super::cpu::Cpu`].
pub struct Plan {
    dims: Dims,
    buffers: Vec<PlannedBuffer>,
    /// Free buffers by width, as the CPU's pool keeps them.
    free: HashMap<usize, usize>,
    tokens: usize,
    flops: f64,
}

pub struct PlanBuffer {
    width: usize,
}

/// Length of a planned tensor.
pub struct PlanTensor(usize);

impl Plan {
    pub fn new(dims: Dims) -> Self {
        let mut plan = Self { dims, buffers: Vec::new(), free: HashMap::new(), tokens: 0, flops: 0.0 };
        let workspace = Workspace::bytes_for(&plan.dims);
        plan.record("workspace", workspace);
        plan
    }

    fn record(&mut self, name: &str, bytes: u64) {
        match self.buffers.iter_mut().find(|b| b.name == name) {
            Some(buffer) => buffer.bytes += bytes,
            None => self.buffers.push(PlannedBuffer { name: name.to_owned(), bytes }),
        }
    }

    fn count(&mut self, per_token: usize) {
        self.flops += 2.0 * self.tokens as f64 * per_token as f64;
    }
}

impl Planner for Plan {
    fn of(spec: &ModelSpec) -> Result<Self> {
        Ok(Self::new(spec.dims()))
    }

    fn planned(&self) -> Vec<PlannedBuffer> {
        let mut buffers = self.buffers.clone();
        buffers.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        buffers
    }

    fn flops(&self) -> f64 {
        self.flops
    }
}

fn low_rank(group: &LinearGroup<Plan>) -> usize {
    group.segments.iter().filter_map(|s| s.lora.as_ref().map(|l| l.r * s.n)).sum()
}

impl Backend for Plan {
    type Buffer = PlanBuffer;
    type Weight = ();
    type Table = PlanTensor;
    type Vector = ();
    type Param = PlanTensor;
    type Stowed = PlanBuffer;

    fn alloc(&mut self, name: &'static str, width: usize) -> Result<PlanBuffer> {
        match self.free.get_mut(&width).filter(|free| **free > 0) {
            Some(free) => *free -= 1,
            None => {
                let bytes = self.dims.tokens as u64 * width as u64 * 4;
                self.record(name, bytes);
            }
        }
        Ok(PlanBuffer { width })
    }

    fn free(&mut self, buffer: PlanBuffer) {
        *self.free.entry(buffer.width).or_default() += 1;
    }

    waits_where_it_is!(PlanBuffer);

    fn weight(
        &mut self,
        _name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        stored: StoredType,
        _read: &mut dyn FnMut() -> Result<StoredWeight>,
    ) -> Result<()> {
        let (name, bytes) = match quantization {
            Quantization::Nf4 { block_size, double_quant } => {
                ("NF4 weights", Nf4Matrix::bytes_for(n, k, &Nf4Options { block_size, double_quant }))
            }
            Quantization::None => ("weights", n * k * stored.size()),
        };
        self.record(name, bytes as u64);
        Ok(())
    }

    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        _gathered: bool,
        stored: StoredType,
        _read: &mut dyn FnMut() -> Result<Tensor16>,
    ) -> Result<PlanTensor> {
        self.record(name, (vocab * hidden * stored.size()) as u64);
        Ok(PlanTensor(vocab * hidden))
    }

    fn vector(&mut self, name: &'static str, len: usize, _read: &mut dyn FnMut() -> Result<Vec<f32>>) -> Result<()> {
        self.record(name, len as u64 * 4);
        Ok(())
    }

    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        _init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<PlanTensor> {
        self.record("LoRA A and B", len as u64 * 4);
        if let Some(states) = states {
            self.record("LoRA gradients", len as u64 * 4);
            self.record("AdamW states", states.bytes(len));
        }
        Ok(PlanTensor(len))
    }

    fn param_values(&self, param: &PlanTensor) -> Result<Vec<f32>> {
        Ok(vec![0.0; param.0])
    }

    fn optimizer_state(&self, _param: &PlanTensor) -> Result<Option<OptimizerState>> {
        Ok(None)
    }

    fn restore(&mut self, _param: &mut PlanTensor, _values: Vec<f32>, _state: OptimizerState) -> Result<()> {
        Ok(())
    }

    fn gradient(&self, param: &PlanTensor) -> Result<Vec<f32>> {
        Ok(vec![0.0; param.0])
    }

    fn restore_gradient(&mut self, _param: &mut PlanTensor, _gradient: Vec<f32>) -> Result<()> {
        Ok(())
    }

    fn rope_table(&mut self, values: usize, _make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()> {
        self.record("rotation angles", values as u64 * 8);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.bytes).sum()
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.tokens = batch.tokens();
        Ok(())
    }

    fn embed(&mut self, _table: &PlanTensor, _out: &mut PlanBuffer) -> Result<()> {
        Ok(())
    }

    fn rms_norm(&mut self, _x: &PlanBuffer, _weight: &(), _eps: f32, _out: &mut PlanBuffer) -> Result<()> {
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        _x: &PlanBuffer,
        _delta: &PlanBuffer,
        _sum: &mut PlanBuffer,
        _weight: &(),
        _eps: f32,
        _out: &mut PlanBuffer,
    ) -> Result<()> {
        Ok(())
    }

    fn rms_norm_backward(
        &mut self,
        _dy: &PlanBuffer,
        _x: &PlanBuffer,
        _weight: &(),
        _eps: f32,
        _accumulate: bool,
        _dx: &mut PlanBuffer,
    ) -> Result<()> {
        Ok(())
    }

    fn lora_down(
        &mut self,
        _x: &PlanBuffer,
        group: &LinearGroup<Self>,
        _dropout: Option<Dropout>,
        _s: &mut PlanBuffer,
    ) -> Result<()> {
        self.count(group.k * group.r());
        Ok(())
    }

    fn linear(
        &mut self,
        _x: &PlanBuffer,
        _s: Option<&PlanBuffer>,
        group: &LinearGroup<Self>,
        _y: &mut PlanBuffer,
    ) -> Result<()> {
        self.count(group.k * group.n() + low_rank(group));
        Ok(())
    }

    fn lora_up(&mut self, _dy: &PlanBuffer, group: &LinearGroup<Self>, _t: &mut PlanBuffer) -> Result<()> {
        self.count(low_rank(group));
        Ok(())
    }

    fn linear_dx(
        &mut self,
        _dy: &PlanBuffer,
        _t: Option<&PlanBuffer>,
        group: &LinearGroup<Self>,
        _dropout: Option<Dropout>,
        _dx: &mut PlanBuffer,
    ) -> Result<()> {
        self.count(group.k * (group.n() + group.r()));
        Ok(())
    }

    fn lora_gradients(
        &mut self,
        _x: &PlanBuffer,
        _dy: &PlanBuffer,
        _s: &PlanBuffer,
        _t: &PlanBuffer,
        group: &mut LinearGroup<Self>,
        _dropout: Option<Dropout>,
    ) -> Result<()> {
        self.count(group.k * group.r() + low_rank(group));
        Ok(())
    }

    fn rope(&mut self, _qkv: &mut PlanBuffer, _shape: AttentionShape, _inverse: bool) -> Result<()> {
        Ok(())
    }

    fn attention(
        &mut self,
        _qkv: &PlanBuffer,
        shape: AttentionShape,
        _out: &mut PlanBuffer,
        _lse: &mut PlanBuffer,
    ) -> Result<()> {
        // Two products over half of the [M, M] scores: one document is the most that a batch can cost.
        self.count(self.tokens * shape.out());
        Ok(())
    }

    fn attention_backward(
        &mut self,
        _dout: &PlanBuffer,
        _qkv: &PlanBuffer,
        _out: &PlanBuffer,
        _lse: &PlanBuffer,
        shape: AttentionShape,
        _dqkv: &mut PlanBuffer,
    ) -> Result<()> {
        self.count(7 * self.tokens * shape.out() / 2);
        Ok(())
    }

    fn append_to_cache(
        &mut self,
        _qkv: &PlanBuffer,
        _shape: AttentionShape,
        _starts: &[u32],
        _cache: &mut PlanBuffer,
    ) -> Result<()> {
        Ok(())
    }

    fn attention_over_cache(
        &mut self,
        _qkv: &PlanBuffer,
        _cache: &PlanBuffer,
        shape: AttentionShape,
        _starts: &[u32],
        _out: &mut PlanBuffer,
    ) -> Result<()> {
        self.count(2 * self.dims.tokens * shape.out());
        Ok(())
    }

    fn swiglu(&mut self, _gate_up: &PlanBuffer, _out: &mut PlanBuffer) -> Result<()> {
        Ok(())
    }

    fn swiglu_backward(&mut self, _dout: &PlanBuffer, _gate_up: &mut PlanBuffer) -> Result<()> {
        Ok(())
    }

    fn loss(&mut self, _x: &PlanBuffer, head: &PlanTensor, _weight: f32, dx: Option<&mut PlanBuffer>) -> Result<()> {
        self.count(head.0 * if dx.is_some() { 2 } else { 1 });
        Ok(())
    }

    fn loss_sum(&mut self) -> Result<f64> {
        Ok(0.0)
    }

    fn logits(&mut self, _x: &PlanBuffer, _head: &PlanTensor, _token: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; self.dims.vocab])
    }

    fn zero_gradients(&mut self, _params: Vec<&mut PlanTensor>) -> Result<()> {
        Ok(())
    }

    fn update(&mut self, _updates: Vec<ParamUpdate<'_, PlanTensor>>, _max_norm: f64) -> Result<f64> {
        Ok(0.0)
    }
}
