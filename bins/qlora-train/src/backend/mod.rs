//! Devices that a model is computed on.
//!
//! The model is written once over [`Backend`]: operations are data ([`Op`]), run on buffers that were allocated before.
//! [`cpu::Cpu`] computes in f32, `cuda::Cuda` on a GPU with activations in bf16. Each is also its own dry run, which
//! holds nothing, computes nothing and records what every buffer, weight and state costs: the plan is the run by
//! construction.
//!
//! A backend implements five small traits: [`Operands`] (its types), [`Memory`], [`Weights`], [`Optimizer`] and
//! [`Compute`]. What is the same on every device is written once, in [`Backend`].

mod batch;
mod compute;
pub mod cpu;
pub mod cuda;
mod group;
mod input_file;
mod memory;
mod not_finite;
mod op;
mod op_work;
mod operands;
mod optimizer;
mod optimizer_state;
pub mod run_shape;
mod trace;
mod weights;

pub use batch::{Batch, CheckedBatch};
pub use compute::Compute;
pub use group::{LinearGroup, Lora, Magnitude, RankFactors, Segment, SeveralPairs};
pub use input_file::INPUTS_OF_THREAD;
pub use memory::{DiskTraffic, Memory, NOT_PINNED, PlannedBuffer};
pub use op::{ATTENTION_BACKWARD_PRODUCTS, ATTENTION_PRODUCTS, NORM, Op, Output, Rotation, attention_flops};
pub use op_work::OpWork;
pub use operands::{BufferShape, MaybeTrained, Operands, TableShape};
pub use optimizer::{Optimizer, ParamUpdate, clip};
pub use optimizer_state::{OptimizerOnHost, OptimizerState, Paging, StateFormat};
pub use trace::{OPTIMIZER, OpTime, Scope, StepPart, Trace, TraceMode};
pub use weights::{HEAD_ON_HOST, Quantization, ReadPieces, Residency, WEIGHTS_ON_HOST, Weights};

use crate::error::{Error, Result};
use std::ops::Range;

/// The operations that the model is written in, the same on every device.
pub trait Backend: Compute + Sized {
    /// Makes `batch` the one that the following operations work on.
    fn begin(&mut self, batch: &Batch) -> Result<()> {
        let batch = match self.is_dry_run() {
            true => batch.check_planned(self.capacity())?,
            false => batch.check(self.capacity(), self.positions())?,
        };
        self.set_batch(batch)?;
        self.traced("batch", None)
    }

    /// Runs one operation on these tokens of the batch. None of them allocates an operand.
    fn run(&mut self, tokens: Range<usize>, mut op: Op<'_, Self>) -> Result<()> {
        let (all, work) = (self.batch().tokens(), op.work(tokens.len()));
        if tokens.start >= tokens.end || tokens.end > all || (work.whole_batch && tokens != (0..all)) {
            let needed = if work.whole_batch { "all of them" } else { "some of them" };
            return Err(Error::Failed(format!(
                "operation {} was given tokens {} to {} of a batch of {all}; it needs {needed}",
                work.name, tokens.start, tokens.end
            )));
        }
        self.reserve(&op)?;
        self.trace().flops += work.flops;
        if self.is_dry_run() {
            work.add_to(&mut self.trace().work);
            return Ok(());
        }
        op.check(self.batch(), &tokens)?;
        self.compute(&tokens, &mut op)?;
        self.traced(work.name, Some((&op, &tokens)))
    }

    /// Σ of the batch's cross-entropy over its supervised tokens, unweighted; NaN if one is not finite, 0 in a dry run.
    /// Waits for it, so that work which does not need it is best queued before.
    fn loss_sum(&mut self) -> Result<f64> {
        if self.is_dry_run() { Ok(0.0) } else { self.read_loss() }
    }

    /// Logits `[vocab]` of several tokens of the batch, with the soft cap of the model; zeros in a dry run.
    fn logits(
        &mut self,
        x: &Self::Buffer,
        head: &Self::Table,
        tokens: &[usize],
        soft_cap: Option<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut out = vec![vec![0.0; head.vocab()]; tokens.len()];
        let batch = 0..self.batch().tokens();
        self.run(batch, Op::Logits { x, head, tokens, out: &mut out })?;
        if let Some(cap) = soft_cap {
            out.iter_mut().for_each(|logits| cpu::soft_cap::cap_values(cap, logits));
        }
        Ok(out)
    }

    /// The weighted loss of each token of the batch that counts, in order; NaN where one is not finite, 0 in a dry run.
    fn losses(&mut self) -> Result<Vec<f64>> {
        if self.is_dry_run() {
            let batch = self.batch();
            return Ok(vec![0.0; (0..batch.targets.len()).filter(|&token| batch.counts(token)).count()]);
        }
        self.read_losses()
    }

    fn zero_gradients(&mut self, params: Vec<&mut Self::Param>) -> Result<()> {
        if self.is_dry_run() {
            return Ok(());
        }
        self.clear_gradients(params)?;
        self.traced(OPTIMIZER, None)
    }

    /// One AdamW update of all tensors, with gradients scaled down to the L2 norm `max_norm` (0: as they are). Returns
    /// their norm before; if it is not finite, nothing was updated. 0 in a dry run.
    fn update(&mut self, mut updates: Vec<ParamUpdate<'_, Self::Param>>, max_norm: f64) -> Result<f64> {
        self.prepare_update(updates.iter_mut().map(|update| &mut *update.param).collect())?;
        if updates.is_empty() || self.is_dry_run() {
            return Ok(0.0);
        }
        let norm = self.clip_and_update(updates, max_norm)?;
        self.traced(OPTIMIZER, None)?;
        Ok(norm)
    }

    /// The operations that follow belong to this part of the step.
    fn enter_scope(&mut self, scope: Scope) {
        self.trace().scope = scope;
    }

    /// Traces the operations that follow.
    fn set_trace(&mut self, mode: TraceMode) -> Result<()> {
        self.trace().restart(mode);
        // Events from before belong to no trace. The first operation is timed from an event of its own.
        self.elapsed()?;
        if mode == TraceMode::Times { self.record_event() } else { Ok(()) }
    }

    /// Times of each kind of operation since [`TraceMode::Times`] was set or since the last call, in the order of their
    /// first operation.
    fn times(&mut self) -> Result<Vec<OpTime>> {
        let seconds = self.elapsed()?;
        let times = self.trace().sums(&seconds);
        if self.trace().mode == TraceMode::Times {
            self.record_event()?;
        }
        Ok(times)
    }

    /// FLOPs of the operations so far.
    fn flops(&mut self) -> f64 {
        self.trace().flops
    }

    /// The operations of a dry run since the last call, equal ones together, in the order of their first.
    fn take_work(&mut self) -> Vec<OpWork> {
        std::mem::take(&mut self.trace().work)
    }

    /// Traces what was done under `name`, with the outputs of an operation.
    fn traced(&mut self, name: &'static str, done: Option<(&Op<'_, Self>, &Range<usize>)>) -> Result<()> {
        match (self.trace().mode, done) {
            (TraceMode::Off, _) | (TraceMode::Values, None) => Ok(()),
            (TraceMode::Times, _) => {
                let flops = done.map_or(0.0, |(op, tokens)| op.work(tokens.len()).flops);
                self.trace().kinds.push((name, flops));
                self.record_event()
            }
            (TraceMode::Values, Some((op, tokens))) => not_finite::check_outputs(self, op, tokens),
        }
    }
}

impl<B: Compute> Backend for B {}
