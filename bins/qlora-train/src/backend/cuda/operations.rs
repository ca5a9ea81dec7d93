//! The operations, each a call of one kernel.

use super::operands::{CudaBuffer, CudaParam, CudaTable, CudaVector, CudaWeight, Storage};
use super::{Cuda, Rope, limits, linear};
use crate::backend::{Backend, Batch, LinearGroup, OptimizerState, ParamUpdate, Quantization, StateFormat};
use crate::checkpoint::{StoredType, StoredWeight, Tensor16};
use crate::error::Result;
use qlora_kernels::cuda::attention::{self, Attention};
use qlora_kernels::cuda::layer::{self, Residual};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AttentionShape, RopeTable};

impl Cuda {
    fn buffer(&mut self, name: &str, width: usize, f32: bool) -> Result<CudaBuffer> {
        let len = self.dims.tokens * width;
        let data = match self.pool.get_mut(&(width, f32)).and_then(Vec::pop) {
            Some(data) => data,
            None if f32 => Storage::F32(self.zeros(name, len)?),
            None => Storage::Bf16(self.zeros(name, len)?),
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

    fn alloc(&mut self, name: &'static str, width: usize) -> Result<CudaBuffer> {
        self.buffer(name, width, false)
    }

    fn alloc_f32(&mut self, name: &'static str, width: usize) -> Result<CudaBuffer> {
        self.buffer(name, width, true)
    }

    fn free(&mut self, buffer: CudaBuffer) {
        self.pool.entry((buffer.width, buffer.data.is_f32())).or_default().push(buffer.data);
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
        self.load_weight(name, n, k, quantization, read()?)
    }

    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<Tensor16>,
    ) -> Result<CudaTable> {
        self.load_table(name, vocab, hidden, read()?)
    }

    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaVector> {
        self.load_vector(name, len, &read()?)
    }

    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaParam> {
        let values = init()?;
        assert_eq!(values.len(), len, "trainable tensor");
        self.new_param(&values, states)
    }

    fn free_param(&mut self, param: CudaParam) {
        self.bytes -= param.bytes();
    }

    fn param_values(&self, param: &CudaParam) -> Result<Vec<f32>> {
        Ok(self.device.download(&param.value)?)
    }

    fn optimizer_state(&self, param: &CudaParam) -> Result<Option<OptimizerState>> {
        param.training.as_ref().map(|training| self.download_states(&training.states)).transpose()
    }

    fn restore(&mut self, param: &mut CudaParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
        self.put_back(param, &values, &state)
    }

    fn gradient(&self, param: &CudaParam) -> Result<Vec<f32>> {
        match &param.training {
            Some(training) => Ok(self.device.download(&training.gradient)?),
            None => Ok(Vec::new()),
        }
    }

    fn restore_gradient(&mut self, param: &mut CudaParam, gradient: Vec<f32>) -> Result<()> {
        self.put_gradient_back(param, &gradient)
    }

    fn rope_table(&mut self, values: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()> {
        let table = make();
        assert_eq!(table.cos.len(), values, "rotation angles");
        let positions = table.positions();
        let what = "rotation angles";
        let (cosines, sines) = (self.upload(what, &table.cos)?, self.upload(what, &table.sin)?);
        self.rope = Some(Rope { half: values / positions.max(1), positions, cosines, sines });
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn trim(&mut self) {
        let freed: u64 = self.pool.drain().flat_map(|(_, free)| free).map(|storage| storage.bytes()).sum();
        self.bytes -= freed;
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let positions = self.rope.as_ref().map_or(0, |rope| rope.positions);
        self.batch.set(batch, self.dims.tokens, positions)?;
        let (device, memory) = (&self.device, &mut self.on_device);
        // Two documents at least begin at different tokens, but empty ones may be any number.
        self.batch_documents.clear();
        self.batch_documents.extend(batch.boundaries.windows(2).map(|bounds| bounds[0] < bounds[1]));
        self.batch.boundaries.dedup();
        device.write(&mut memory.input_ids, &self.batch.input_ids)?;
        device.write(&mut memory.positions, &self.batch.positions)?;
        device.write(&mut memory.boundaries, &self.batch.boundaries)?;
        Ok(device.write(&mut memory.targets, &self.batch.targets)?)
    }

    fn embed(&mut self, table: &CudaTable, out: &mut CudaBuffer) -> Result<()> {
        let (m, stream) = (self.tokens(), self.device.stream());
        self.batch.check_vocabulary(table.vocab)?;
        let ids = self.on_device.input_ids.view().first(m);
        Ok(layer::embedding(ids, table.data.view(), table.vocab, table.hidden, out.rows_mut(m), stream)?)
    }

    fn rms_norm(&mut self, x: &CudaBuffer, weight: &CudaVector, eps: f32, out: &mut CudaBuffer) -> Result<()> {
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream) = (self.tokens(), self.device.stream());
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
        let (m, stream, width) = (self.tokens(), self.device.stream(), out.width);
        Ok(layer::swiglu(gate_up.rows(m), width, out.rows_mut(m), stream)?)
    }

    fn swiglu_backward(&mut self, dout: &CudaBuffer, gate_up: &mut CudaBuffer) -> Result<()> {
        let (m, stream, width) = (self.tokens(), self.device.stream(), dout.width);
        Ok(layer::swiglu_backward(dout.rows(m), gate_up.rows_mut(m), width, None, stream)?)
    }

    fn loss(&mut self, x: &CudaBuffer, head: &CudaTable, weight: f32, dx: Option<&mut CudaBuffer>) -> Result<f64> {
        self.cross_entropy(x, head, weight, dx)
    }

    fn logits(&mut self, x: &CudaBuffer, head: &CudaTable, token: usize) -> Result<Vec<f32>> {
        Ok(self.logits_of(x, head, &[token])?.remove(0))
    }

    fn logits_of_tokens(&mut self, x: &CudaBuffer, head: &CudaTable, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logits_of(x, head, tokens)
    }

    fn zero_gradients(&mut self, params: Vec<&mut CudaParam>) -> Result<()> {
        let trained = params.into_iter().filter_map(|param| param.training.as_mut());
        for training in trained {
            self.device.clear(&mut training.gradient)?;
        }
        Ok(())
    }

    fn gradient_norm(&mut self, params: Vec<&mut CudaParam>) -> Result<f64> {
        self.norm(params)
    }

    fn adamw(&mut self, updates: Vec<ParamUpdate<'_, CudaParam>>, gradient_scale: f32) -> Result<()> {
        self.update(updates, gradient_scale)
    }
}
