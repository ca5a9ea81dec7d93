//! The operations, each a call of one kernel.

use super::operands::{CudaBuffer, CudaParam, CudaStowed, CudaTable, CudaVector, CudaWeight, Storage};
use super::{Cuda, Rope, limits, linear};
use crate::backend::{
    Backend, Batch, LinearGroup, OptimizerState, ParamUpdate, Quantization, StateFormat, not_finite_at,
};
use crate::error::Result;
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use qlora_kernels::device::EventTimer;
use qlora_kernels::ops::attention::{self, Attention};
use qlora_kernels::ops::layer::{self, Residual};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AttentionShape, RopeTable};

impl Cuda {
    fn buffer(&mut self, name: &'static str, width: usize, f32: bool) -> Result<CudaBuffer> {
        let len = self.dims.tokens * width;
        let data = match f32 {
            true => Storage::F32(self.memory.take(name, len)?),
            false => Storage::Bf16(self.memory.take(name, len)?),
        };
        Ok(CudaBuffer { data, width })
    }

    fn attention_input<'a>(&'a self, qkv: &'a CudaBuffer, shape: AttentionShape) -> Attention<'a> {
        let m = self.tokens();
        Attention { shape, m, qkv: qkv.rows(m), boundaries: self.boundaries(), window: None }
    }
}

impl Backend for Cuda {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Table = CudaTable;
    type Vector = CudaVector;
    type Param = CudaParam;
    type Stowed = CudaStowed;

    fn alloc(&mut self, name: &'static str, width: usize) -> Result<CudaBuffer> {
        self.buffer(name, width, false)
    }

    fn alloc_f32(&mut self, name: &'static str, width: usize) -> Result<CudaBuffer> {
        self.buffer(name, width, true)
    }

    fn free(&mut self, buffer: CudaBuffer) {
        // Back to the arena.
        drop(buffer);
    }

    fn stow(&mut self, buffer: CudaBuffer) -> Result<CudaStowed> {
        self.put_away(buffer)
    }

    fn keep(&mut self, buffer: CudaBuffer) -> CudaStowed {
        CudaStowed::Here(buffer)
    }

    fn fetch(&mut self, stowed: CudaStowed) -> Result<CudaStowed> {
        self.bring_back(stowed)
    }

    fn unstow(&mut self, stowed: CudaStowed) -> Result<CudaBuffer> {
        self.brought_back(stowed)
    }

    fn low_rank_columns(group: &LinearGroup<Self>) -> usize {
        linear::columns(group)
    }

    fn accept(&mut self, name: &str, group: &LinearGroup<Self>) -> Result<()> {
        limits::check_group(name, group)?;
        self.make_room_for_gradients(group)
    }

    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<StoredWeight>,
    ) -> Result<CudaWeight> {
        self.load_weight(name, n, k, quantization, read)
    }

    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        gathered: bool,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<Tensor16>,
    ) -> Result<CudaTable> {
        self.load_table(name, vocab, hidden, gathered, read)
    }

    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaVector> {
        self.load_vector(name, len, read)
    }

    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaParam> {
        self.new_param(len, states, init)
    }

    fn param_values(&self, param: &CudaParam) -> Result<Vec<f32>> {
        self.memory.download(&param.value)
    }

    fn optimizer_state(&self, param: &CudaParam) -> Result<Option<OptimizerState>> {
        param.training.as_ref().map(|training| self.download_states(&training.states)).transpose()
    }

    fn restore(&mut self, param: &mut CudaParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
        self.put_back(param, &values, &state)
    }

    fn gradient(&self, param: &CudaParam) -> Result<Vec<f32>> {
        match &param.training {
            Some(training) => self.memory.download(&training.gradient),
            None => Ok(Vec::new()),
        }
    }

    fn restore_gradient(&mut self, param: &mut CudaParam, gradient: Vec<f32>) -> Result<()> {
        self.put_gradient_back(param, &gradient)
    }

    fn rope_table(&mut self, values: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()> {
        let (memory, name) = (&self.memory, "rotation angles");
        let table = memory.device().map(|_| make());
        let (cos, sin) = table.as_ref().map(|table| (&table.cos[..], &table.sin[..])).unzip();
        let (cosines, sines) = (memory.upload(name, values, cos)?, memory.upload(name, values, sin)?);
        self.rope = Some(Rope { half: self.half, positions: values / self.half.max(1), cosines, sines });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.memory.peak().bytes
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let positions = self.rope.as_ref().map_or(0, |rope| rope.positions);
        self.batch.set(batch, self.dims.tokens, positions)?;
        // Two documents at least begin at different tokens, but empty ones may be any number.
        self.batch_documents.clear();
        self.batch_documents.extend(batch.boundaries.windows(2).map(|bounds| bounds[0] < bounds[1]));
        self.batch.boundaries.dedup();
        self.on_device.set(&self.memory, &self.batch)
    }

    fn embed(&mut self, table: &CudaTable, out: &mut CudaBuffer) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        self.batch.check_vocabulary(table.vocab)?;
        let ids = self.on_device.input_ids.view().first(m);
        Ok(layer::embedding(ids, table.data.view(), table.vocab, table.hidden, out.rows_mut(m), stream)?)
    }

    fn rms_norm(&mut self, x: &CudaBuffer, weight: &CudaVector, eps: f32, out: &mut CudaBuffer) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        Ok(layer::rms_norm(Residual::Plain(x.rows(m)), weight.f32.view(), eps, out.rows_mut(m), stream)?)
    }

    fn add_rms_norm(
        &mut self,
        x: &CudaBuffer,
        delta: &CudaBuffer,
        sum: &mut CudaBuffer,
        weight: &CudaVector,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        let residual = Residual::Add { x: x.rows(m), delta: delta.rows(m), sum: sum.rows_mut(m) };
        Ok(layer::rms_norm(residual, weight.f32.view(), eps, out.rows_mut(m), stream)?)
    }

    fn rms_norm_backward(
        &mut self,
        dy: &CudaBuffer,
        x: &CudaBuffer,
        weight: &CudaVector,
        eps: f32,
        accumulate: bool,
        dx: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        let (dy, x, weight) = (dy.rows(m), x.rows(m), weight.f32.view());
        Ok(layer::rms_norm_backward(dy, x, weight, eps, accumulate, dx.rows_mut(m), stream)?)
    }

    fn lora_down(
        &mut self,
        x: &CudaBuffer,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        s: &mut CudaBuffer,
    ) -> Result<()> {
        self.project(x, group, dropout, s)
    }

    fn linear(
        &mut self,
        x: &CudaBuffer,
        s: Option<&CudaBuffer>,
        group: &LinearGroup<Self>,
        y: &mut CudaBuffer,
    ) -> Result<()> {
        self.forward(x, s, group, y)
    }

    fn lora_up(&mut self, dy: &CudaBuffer, group: &LinearGroup<Self>, t: &mut CudaBuffer) -> Result<()> {
        self.project_back(dy, group, t)
    }

    fn linear_dx(
        &mut self,
        dy: &CudaBuffer,
        t: Option<&CudaBuffer>,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        dx: &mut CudaBuffer,
    ) -> Result<()> {
        self.backward(dy, t, group, dropout, dx)
    }

    fn lora_gradients(
        &mut self,
        x: &CudaBuffer,
        dy: &CudaBuffer,
        s: &CudaBuffer,
        t: &CudaBuffer,
        group: &mut LinearGroup<Self>,
        dropout: Option<Dropout>,
    ) -> Result<()> {
        self.add_gradients(x, dy, s, t, group, dropout)
    }

    fn rope(&mut self, qkv: &mut CudaBuffer, shape: AttentionShape, inverse: bool) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        let table = self.rope.as_ref().expect("the model sets the rotation angles when it is built").table();
        let (ldx, heads) = (qkv.width, shape.heads + shape.kv_heads);
        Ok(layer::rope(qkv.rows_mut(m), ldx, heads, self.positions(), table, inverse, stream)?)
    }

    fn attention(
        &mut self,
        qkv: &CudaBuffer,
        shape: AttentionShape,
        out: &mut CudaBuffer,
        lse: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        Ok(attention::attention(&self.attention_input(qkv, shape), out.rows_mut(m), lse.f32_rows_mut(m), stream)?)
    }

    fn attention_backward(
        &mut self,
        dout: &CudaBuffer,
        qkv: &CudaBuffer,
        out: &CudaBuffer,
        lse: &CudaBuffer,
        shape: AttentionShape,
        dqkv: &mut CudaBuffer,
    ) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let m = self.tokens();
        // Fields one by one: the workspace is written while the boundaries are read.
        let boundaries = self.on_device.boundaries.view().first(self.batch.boundaries.len());
        let input = Attention { shape, m, qkv: qkv.rows(m), boundaries, window: None };
        let (dout, out, lse, dqkv) = (dout.rows(m), out.rows(m), lse.f32_rows(m), dqkv.rows_mut(m));
        let workspace = self.attention.view_mut();
        Ok(attention::attention_backward(&input, dout, out, lse, dqkv, workspace, stream)?)
    }

    fn append_to_cache(
        &mut self,
        qkv: &CudaBuffer,
        shape: AttentionShape,
        starts: &[u32],
        cache: &mut CudaBuffer,
    ) -> Result<()> {
        self.append(qkv, shape, starts, cache)
    }

    fn attention_over_cache(
        &mut self,
        qkv: &CudaBuffer,
        cache: &CudaBuffer,
        shape: AttentionShape,
        starts: &[u32],
        out: &mut CudaBuffer,
    ) -> Result<()> {
        self.attend(qkv, cache, shape, starts, out)
    }

    fn swiglu(&mut self, gate_up: &CudaBuffer, out: &mut CudaBuffer) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, width) = (self.tokens(), out.width);
        Ok(layer::swiglu(gate_up.rows(m), width, out.rows_mut(m), stream)?)
    }

    fn swiglu_backward(&mut self, dout: &CudaBuffer, gate_up: &mut CudaBuffer) -> Result<()> {
        let Some(stream) = self.memory.stream() else { return Ok(()) };
        let (m, width) = (self.tokens(), dout.width);
        Ok(layer::swiglu_backward(dout.rows(m), gate_up.rows_mut(m), width, None, stream)?)
    }

    fn loss(&mut self, x: &CudaBuffer, head: &CudaTable, weight: f32, dx: Option<&mut CudaBuffer>) -> Result<()> {
        self.cross_entropy(x, head, weight, dx)
    }

    fn loss_sum(&mut self) -> Result<f64> {
        self.read_loss()
    }

    fn logits(&mut self, x: &CudaBuffer, head: &CudaTable, token: usize) -> Result<Vec<f32>> {
        Ok(self.logits_of(x, head, &[token])?.remove(0))
    }

    fn logits_of_tokens(&mut self, x: &CudaBuffer, head: &CudaTable, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logits_of(x, head, tokens)
    }

    fn prepare_update(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        self.prepare_optimizer(params)
    }

    fn zero_gradients(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        let Some(device) = self.memory.device() else { return Ok(()) };
        for training in params.into_iter().filter_map(|param| param.training.as_mut()) {
            device.clear(&mut training.gradient)?;
        }
        Ok(())
    }

    fn update(&mut self, updates: Vec<ParamUpdate<'_, CudaParam>>, max_norm: f64) -> Result<f64> {
        self.clip_and_update(updates, max_norm)
    }

    fn mark(&mut self) -> Result<()> {
        let Some(device) = self.memory.device() else { return Ok(()) };
        let marks = match &mut self.marks {
            Some(marks) => marks,
            none => none.insert(EventTimer::new(device)?),
        };
        Ok(marks.record()?)
    }

    fn marks(&mut self) -> Result<Vec<f64>> {
        match &mut self.marks {
            Some(marks) => Ok(marks.elapsed()?),
            None => Ok(Vec::new()),
        }
    }

    fn first_not_finite(&mut self, buffer: &CudaBuffer) -> Result<Option<(usize, usize)>> {
        let Some(device) = self.memory.device() else { return Ok(None) };
        let (len, width) = (self.tokens() * buffer.width, buffer.width);
        Ok(match &buffer.data {
            Storage::F32(data) => not_finite_at(device.download(data)?.into_iter().take(len), width),
            Storage::Bf16(data) => not_finite_at(device.download(data)?.iter().take(len).map(|x| x.to_f32()), width),
        })
    }
}
