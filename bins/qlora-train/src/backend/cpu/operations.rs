//! What the step asks of a backend, each operation handed to the module that computes it.

use super::linear::CpuWeight;
use super::operands::{rows, rows_mut};
use super::{Cpu, CpuBuffer, CpuParam, Dense, attention, cache, elementwise, linear, loss, optimizer};
use crate::backend::{
    Backend, Batch, LinearGroup, OptimizerState, ParamUpdate, Quantization, StateFormat, not_finite_at,
    waits_where_it_is,
};
use crate::error::Result;
use crate::files::tensor::{StoredType, StoredWeight, Tensor16};
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::{AttentionShape, RopeTable};
use rayon::prelude::*;
use std::time::Instant;

impl Backend for Cpu {
    type Buffer = CpuBuffer;
    type Weight = CpuWeight;
    type Table = Dense;
    type Vector = Vec<f32>;
    type Param = CpuParam;
    type Stowed = CpuBuffer;

    fn alloc(&mut self, _name: &'static str, width: usize) -> Result<CpuBuffer> {
        let data = match self.pool.get_mut(&width).and_then(Vec::pop) {
            Some(data) => data,
            None => {
                self.bytes += (self.dims.tokens * width * 4) as u64;
                vec![0.0; self.dims.tokens * width]
            }
        };
        Ok(CpuBuffer { data, width })
    }

    fn free(&mut self, mut buffer: CpuBuffer) {
        // A stale value that is read anyway must not go unnoticed.
        if cfg!(debug_assertions) {
            buffer.data.fill(f32::NAN);
        }
        self.pool.entry(buffer.width).or_default().push(buffer.data);
    }

    waits_where_it_is!(CpuBuffer);

    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<StoredWeight>,
    ) -> Result<CpuWeight> {
        let weight = CpuWeight::new(name, n, k, quantization, read()?)?;
        self.bytes += weight.bytes();
        Ok(weight)
    }

    fn table(
        &mut self,
        _name: &'static str,
        vocab: usize,
        hidden: usize,
        _gathered: bool,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<Tensor16>,
    ) -> Result<Dense> {
        let table = Dense { tensor: read()?, cols: hidden };
        assert_eq!(table.rows(), vocab, "table");
        self.bytes += table.bytes();
        Ok(table)
    }

    fn vector(
        &mut self,
        _name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let data = read()?;
        assert_eq!(data.len(), len, "vector");
        self.bytes += (len * 4) as u64;
        Ok(data)
    }

    fn param(
        &mut self,
        len: usize,
        states: Option<StateFormat>,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CpuParam> {
        let value = init()?;
        assert_eq!(value.len(), len, "trainable tensor");
        let param = optimizer::param(value, states);
        self.bytes += param.bytes();
        Ok(param)
    }

    fn free_param(&mut self, param: CpuParam) {
        self.bytes -= param.bytes();
    }

    fn param_values(&self, param: &CpuParam) -> Result<Vec<f32>> {
        Ok(param.value.clone())
    }

    fn optimizer_state(&self, param: &CpuParam) -> Result<Option<OptimizerState>> {
        Ok(param.state.clone())
    }

    fn restore(&mut self, param: &mut CpuParam, values: Vec<f32>, state: OptimizerState) -> Result<()> {
        optimizer::restore(param, values, state)
    }

    fn gradient(&self, param: &CpuParam) -> Result<Vec<f32>> {
        Ok(param.gradient.clone())
    }

    fn restore_gradient(&mut self, param: &mut CpuParam, gradient: Vec<f32>) -> Result<()> {
        optimizer::restore_gradient(param, gradient)
    }

    fn rope_table(&mut self, values: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<()> {
        let table = make();
        assert_eq!(table.cos.len(), values, "rotation angles");
        self.bytes += (values * 8) as u64;
        self.rope = Some(table);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn trim(&mut self) {
        let lengths = self.pool.drain().flat_map(|(_, free)| free.into_iter().map(|data| data.len() as u64 * 4));
        self.bytes -= lengths.sum::<u64>();
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let positions = self.rope.as_ref().map_or(0, RopeTable::positions);
        self.batch.set(batch, self.dims.tokens, positions)
    }

    fn embed(&mut self, table: &Dense, out: &mut CpuBuffer) -> Result<()> {
        assert_eq!(out.width, table.cols, "embed");
        self.batch.check_vocabulary(table.rows())?;
        let rows = out.data.par_chunks_exact_mut(table.cols).zip(&self.batch.input_ids);
        rows.with_min_len(16).for_each(|(out, &id)| table.widen(id as usize * table.cols, out));
        Ok(())
    }

    fn rms_norm(&mut self, x: &CpuBuffer, weight: &Vec<f32>, eps: f32, out: &mut CpuBuffer) -> Result<()> {
        let tokens = self.tokens();
        elementwise::rms_norm(rows(x, tokens), weight, eps, rows_mut(out, tokens));
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        x: &CpuBuffer,
        delta: &CpuBuffer,
        sum: &mut CpuBuffer,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        elementwise::add(rows(x, tokens), rows(delta, tokens), rows_mut(sum, tokens));
        elementwise::rms_norm(rows(sum, tokens), weight, eps, rows_mut(out, tokens));
        Ok(())
    }

    fn rms_norm_backward(
        &mut self,
        dy: &CpuBuffer,
        x: &CpuBuffer,
        weight: &Vec<f32>,
        eps: f32,
        accumulate: bool,
        dx: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        elementwise::rms_norm_backward(
            rows(dy, tokens),
            rows(x, tokens),
            weight,
            eps,
            accumulate,
            rows_mut(dx, tokens),
        );
        Ok(())
    }

    fn lora_down(
        &mut self,
        x: &CpuBuffer,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        s: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        linear::lora_down(&mut self.workspace, rows(x, tokens), group, dropout, rows_mut(s, tokens));
        Ok(())
    }

    fn linear(
        &mut self,
        x: &CpuBuffer,
        s: Option<&CpuBuffer>,
        group: &LinearGroup<Self>,
        y: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        linear::forward(&mut self.workspace, rows(x, tokens), s.map(|s| rows(s, tokens)), group, rows_mut(y, tokens));
        Ok(())
    }

    fn lora_up(&mut self, dy: &CpuBuffer, group: &LinearGroup<Self>, t: &mut CpuBuffer) -> Result<()> {
        let tokens = self.tokens();
        linear::lora_up(&mut self.workspace, rows(dy, tokens), group, rows_mut(t, tokens));
        Ok(())
    }

    fn linear_dx(
        &mut self,
        dy: &CpuBuffer,
        t: Option<&CpuBuffer>,
        group: &LinearGroup<Self>,
        dropout: Option<Dropout>,
        dx: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        linear::backward(
            &mut self.workspace,
            rows(dy, tokens),
            t.map(|t| rows(t, tokens)),
            group,
            dropout,
            rows_mut(dx, tokens),
        );
        Ok(())
    }

    fn lora_gradients(
        &mut self,
        x: &CpuBuffer,
        dy: &CpuBuffer,
        s: &CpuBuffer,
        t: &CpuBuffer,
        group: &mut LinearGroup<Self>,
        dropout: Option<Dropout>,
    ) -> Result<()> {
        let tokens = self.tokens();
        linear::lora_gradients(
            &mut self.workspace,
            rows(x, tokens),
            rows(dy, tokens),
            rows(s, tokens),
            rows(t, tokens),
            group,
            dropout,
        );
        Ok(())
    }

    fn rope(&mut self, qkv: &mut CpuBuffer, shape: AttentionShape, inverse: bool) -> Result<()> {
        let tokens = self.tokens();
        let table = self.rope.as_ref().expect("the model sets the rotation angles when it is built");
        elementwise::rope(rows_mut(qkv, tokens), shape, &self.batch.positions, table, inverse);
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &CpuBuffer,
        shape: AttentionShape,
        out: &mut CpuBuffer,
        lse: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        attention::forward(
            &mut self.workspace,
            rows(qkv, tokens),
            &self.batch.boundaries,
            shape,
            rows_mut(out, tokens),
            rows_mut(lse, tokens),
        );
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dout: &CpuBuffer,
        qkv: &CpuBuffer,
        out: &CpuBuffer,
        lse: &CpuBuffer,
        shape: AttentionShape,
        dqkv: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        attention::backward(
            &mut self.workspace,
            rows(dout, tokens),
            rows(qkv, tokens),
            rows(out, tokens),
            rows(lse, tokens),
            &self.batch.boundaries,
            shape,
            rows_mut(dqkv, tokens),
        );
        Ok(())
    }

    fn append_to_cache(
        &mut self,
        qkv: &CpuBuffer,
        shape: AttentionShape,
        starts: &[u32],
        cache: &mut CpuBuffer,
    ) -> Result<()> {
        cache::append(rows(qkv, self.tokens()), &self.batch, shape, starts, &mut cache.data);
        Ok(())
    }

    fn attention_over_cache(
        &mut self,
        qkv: &CpuBuffer,
        cache: &CpuBuffer,
        shape: AttentionShape,
        starts: &[u32],
        out: &mut CpuBuffer,
    ) -> Result<()> {
        let tokens = self.tokens();
        cache::attention(rows(qkv, tokens), &cache.data, &self.batch, shape, starts, rows_mut(out, tokens));
        Ok(())
    }

    fn swiglu(&mut self, gate_up: &CpuBuffer, out: &mut CpuBuffer) -> Result<()> {
        let (tokens, width) = (self.tokens(), out.width);
        elementwise::swiglu(rows(gate_up, tokens), rows_mut(out, tokens), width);
        Ok(())
    }

    fn swiglu_backward(&mut self, dout: &CpuBuffer, gate_up: &mut CpuBuffer) -> Result<()> {
        let (tokens, width) = (self.tokens(), dout.width);
        elementwise::swiglu_backward(rows(dout, tokens), rows_mut(gate_up, tokens), width);
        Ok(())
    }

    fn loss(&mut self, x: &CpuBuffer, head: &Dense, weight: f32, dx: Option<&mut CpuBuffer>) -> Result<()> {
        let tokens = self.tokens();
        self.loss = loss::linear_cross_entropy(
            &mut self.workspace,
            rows(x, tokens),
            head,
            &self.batch.targets,
            &self.batch.weights,
            weight,
            dx.map(|dx| rows_mut(dx, tokens)),
        );
        Ok(())
    }

    fn loss_sum(&mut self) -> Result<f64> {
        Ok(self.loss)
    }

    fn logits(&mut self, x: &CpuBuffer, head: &Dense, token: usize) -> Result<Vec<f32>> {
        Ok(loss::logits(&mut self.workspace, &rows(x, self.batch.input_ids.len())[token * x.width..][..x.width], head))
    }

    fn zero_gradients(&mut self, params: Vec<&mut CpuParam>) -> Result<()> {
        params.into_iter().for_each(|p| p.gradient.fill(0.0));
        Ok(())
    }

    fn update(&mut self, updates: Vec<ParamUpdate<'_, CpuParam>>, max_norm: f64) -> Result<f64> {
        Ok(optimizer::update(updates, max_norm))
    }

    fn mark(&mut self) -> Result<()> {
        self.marks.push(Instant::now());
        Ok(())
    }

    fn marks(&mut self) -> Result<Vec<f64>> {
        let marks = std::mem::take(&mut self.marks);
        Ok(marks.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
    }

    fn first_not_finite(&mut self, buffer: &CpuBuffer) -> Result<Option<(usize, usize)>> {
        Ok(not_finite_at(rows(buffer, self.tokens()).iter().copied(), buffer.width))
    }
}
