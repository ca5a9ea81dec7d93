//! Sums of the gradients over the ranks of a run: bucket by bucket, beside the backward pass where that can be.
//!
//! Layers are done from the last to the first. Each bucket has the gradients of some that follow each other, and its
//! sum begins as soon as they are final, while the layers below compute: in a thread that talks to the other ranks, or
//! on the GPUs. Buckets are the same on all ranks and in the same order, whenever a rank comes to them, and every value
//! is summed by itself: what comes out does not depend on when a sum begins.

pub(super) use super::buckets::AfterLayer;

use super::beside::{ON_THE_WAY, beside};
use super::buckets::Buckets;
use super::{Layer, Llama};
use crate::arch::Arch;
use crate::backend::{Backend, MaybeTrained};
use crate::comm::{BUCKET, Communicator, Watched};
use crate::error::Result;
use std::ops::Range;

/// Buckets in one sum on the GPUs, where a sum has to be large to be fast
const ON_DEVICE: usize = 8;

/// Bytes that a step's sums take in the host's memory on one of several ranks, where the largest trainable tensor has
/// `largest` values: the buckets on their way, of which the last may be the size of one beyond; one that is filled, and
/// a gradient that is copied; the others' parts of a bucket's sum, and the sum.
pub fn reduce_bytes(largest: usize) -> u64 {
    4 * (ON_THE_WAY * BUCKET + 5 * (BUCKET + largest)) as u64
}

impl<B: Backend> Layer<B> {
    /// Its trainable tensors, norms included. Without the E of AdaLoRA: its gradient follows from the sum of that of A.
    fn trained_mut(&mut self, arch: &Arch, layer: usize) -> Vec<&mut B::Param> {
        let (groups, norms) = self.parts_mut(arch, layer);
        let mut params = Vec::new();
        let segments = groups.into_iter().flat_map(|group| group.segments.iter_mut());
        for lora in segments.filter_map(|segment| segment.lora.as_mut()) {
            params.extend([&mut lora.a, &mut lora.b]);
            params.extend(lora.magnitude.as_mut().map(|magnitude| &mut magnitude.m));
        }
        params.extend(norms.into_iter().filter_map(|(_, norm)| norm.param_mut()));
        params
    }
}

impl<B: Backend> Llama<B> {
    /// The trainable tensors of these layers, those of the last one first, and, if asked for, those outside of all
    /// layers: the order in which gradients are final.
    pub(super) fn tensors(&mut self, layers: Range<usize>, outside: bool) -> Vec<&mut B::Param> {
        let (arch, first) = (&self.spec.arch, layers.start);
        let mut params = Vec::new();
        for (at, layer) in self.layers[layers].iter_mut().enumerate().rev() {
            params.extend(layer.trained_mut(arch, first + at));
        }
        if outside {
            params.extend(self.embedding.param_mut());
            params.extend(self.final_norm.param_mut());
            params.extend(self.head.as_mut().and_then(|head| head.param_mut()));
        }
        params
    }

    /// The pass of a rank that has no micro-batch left: no gradient changes any more. Returns its loss, 0.
    pub(super) fn without_batch(&mut self, backend: &mut B, after_layer: AfterLayer<'_, B>) -> Result<f64> {
        (0..self.layers.len()).rev().try_for_each(|layer| after_layer(backend, self, layer))?;
        Ok(0.0)
    }
}

/// Does `work`, a rank's last forward and backward pass in a step, which tells when layers are done and returns its
/// loss. Replaces the gradients of all its micro-batches by those of all ranks. Returns the sum of their losses, where
/// `loss` is that of the rank's earlier ones. In one process nothing is touched, unless its GPU adds up by itself.
pub(super) fn summed<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut dyn Communicator,
    loss: f64,
    work: impl FnOnce(&mut B, &mut Llama<B>, AfterLayer<'_, B>) -> Result<f64>,
) -> Result<f64> {
    if backend.adds_up() {
        return on_device(backend, model, comm, loss, work);
    }
    if comm.world_size() == 1 {
        return Ok(loss + work(backend, model, &mut |_, _, _| Ok(()))?);
    }
    if let Some(comm) = comm.beside() {
        return beside(backend, model, comm, loss, work);
    }
    let mut totals = [loss + work(backend, model, &mut |_, _, _| Ok(()))?];
    let buckets = Buckets::of(backend, model, comm.bucket());
    for at in 0..buckets.count() {
        let mut values = buckets.read(backend, model, at)?;
        let of_bucket: &mut [f64] = if buckets.is_last(at) { &mut totals } else { &mut [] };
        comm.all_reduce_sum(&mut values, of_bucket)?;
        buckets.put_back(backend, model, at, &values)?;
    }
    Ok(totals[0])
}

/// Sums on the GPUs, which begin with the layers that are done; a rank without a micro-batch begins the same ones.
fn on_device<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut dyn Communicator,
    loss: f64,
    work: impl FnOnce(&mut B, &mut Llama<B>, AfterLayer<'_, B>) -> Result<f64>,
) -> Result<f64> {
    let (layers, full) = (model.layers.len(), ON_DEVICE * comm.bucket());
    // The last layer whose sum is begun, and values of those before it that are done.
    let (mut begun, mut values) = (layers, 0);
    let mut after_layer = |backend: &mut B, model: &mut Llama<B>, layer: usize| -> Result<()> {
        let own = model.tensors(layer..layer + 1, false);
        values += own.iter().map(|param| backend.gradient_len(param)).sum::<usize>();
        // The first layer goes with what is outside of all.
        if values < full || layer == 0 {
            return Ok(());
        }
        let mut others = Watched::new(&mut *comm);
        let sum = backend.begin_sum(model.tensors(layer..begun, false), &mut others);
        (begun, values) = (layer, 0);
        others.explain(sum)
    };
    let own = work(backend, model, &mut after_layer);
    let done = own.and_then(|own| {
        let mut others = Watched::new(&mut *comm);
        let sum = backend.begin_sum(model.tensors(0..begun, true), &mut others);
        others.explain(sum)?;
        // All meet before anyone waits for the GPUs: a rank that does not come is named.
        let mut totals = [loss + own];
        comm.all_reduce_sum(&mut [], &mut totals)?;
        let mut others = Watched::new(&mut *comm);
        let sums = backend.finish_sums(model.tensors(0..layers, true), &mut others);
        others.explain(sums)?;
        Ok(totals[0])
    });
    if done.is_err() {
        backend.abandon_sums(model.tensors(0..layers, true));
    }
    done
}
