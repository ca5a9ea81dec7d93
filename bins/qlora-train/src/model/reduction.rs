//! Sums of the gradients over the ranks of a run: bucket by bucket, beside the backward pass where that can be.
//!
//! Layers are done from the last to the first. Each bucket has the gradients of some that follow each other, and its
//! sum begins as soon as they are final, while the layers below compute: in a thread that talks to the other ranks, or
//! on the GPUs. Buckets are the same on all ranks and in the same order, whenever a rank comes to them, and every value
//! is summed by itself: what comes out does not depend on when a sum begins.

use super::{Layer, Llama};
use crate::arch::Arch;
use crate::backend::{Backend, MaybeTrained};
use crate::comm::{BUCKET, Communicator, Watched};
use crate::error::{Context, Error, Result};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// Buckets on their way to the other ranks at a time
const ON_THE_WAY: usize = 8;

/// Buckets in one sum on the GPUs, where a sum has to be large to be fast
const ON_DEVICE: usize = 8;

/// Bytes that a step's sums take in the host's memory on one of several ranks, where the largest trainable tensor has
/// `largest` values: the buckets on their way, of which the last may be the size of one beyond; one that is filled, and
/// a gradient that is copied; what the others give to a sum of a bucket, and what comes back.
pub fn reduce_bytes(world_size: usize, largest: usize) -> u64 {
    if world_size == 1 { 0 } else { 4 * (ON_THE_WAY * BUCKET + 5 * (BUCKET + largest)) as u64 }
}

/// Called after the backward pass of each layer, the last one first, with the layer's number: its gradients are final.
pub(super) type AfterLayer<'a, B> = &'a mut dyn FnMut(&mut B, &mut Llama<B>, usize) -> Result<()>;

impl<B: Backend> Layer<B> {
    /// Its trainable tensors, norms included.
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
    fn tensors(&mut self, layers: Range<usize>, outside: bool) -> Vec<&mut B::Param> {
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
    if backend.has_gradients_on_host()
        && let Some(comm) = comm.beside()
    {
        return beside(backend, model, comm, loss, work);
    }
    let loss = loss + work(backend, model, &mut |_, _, _| Ok(()))?;
    let mut buckets = Buckets::of(model, comm.bucket());
    while !buckets.are_all_taken() {
        if let Some(mut bucket) = buckets.take(backend, model)? {
            comm.all_reduce_sum(&mut bucket.values, &mut bucket.totals)?;
            buckets.put_back(backend, model, &bucket)?;
        }
    }
    let mut bucket = buckets.last(loss);
    comm.all_reduce_sum(&mut bucket.values, &mut bucket.totals)?;
    buckets.put_back(backend, model, &bucket)?;
    Ok(bucket.totals[0])
}

/// Gradients of trainable tensors that follow each other, on their way to a sum and back.
#[derive(Default)]
struct Bucket {
    /// Place of the first tensor in the order in which gradients are final
    first: usize,
    lengths: Vec<usize>,
    values: Vec<f32>,
    /// The loss, with the last bucket
    totals: Vec<f64>,
}

/// The gradients of a model in buckets. A bucket ends with the tensor by which it is full.
struct Buckets {
    /// Layer of each tensor, and its place there; none: outside of all layers
    places: Vec<(Option<usize>, usize)>,
    /// Values from which on a bucket is full
    full: usize,
    /// The first tensor that is in no bucket yet
    next: usize,
    /// The bucket that is not full yet
    filling: Bucket,
}

impl Buckets {
    fn of<B: Backend>(model: &mut Llama<B>, full: usize) -> Self {
        let mut places = Vec::new();
        for layer in (0..model.layers.len()).rev() {
            let count = model.tensors(layer..layer + 1, false).len();
            places.extend((0..count).map(|at| (Some(layer), at)));
        }
        let count = model.tensors(0..0, true).len();
        places.extend((0..count).map(|at| (None, at)));
        Self { places, full, next: 0, filling: Bucket::default() }
    }

    fn are_all_taken(&self) -> bool {
        self.next == self.places.len()
    }

    /// Whether the next gradient is final once `layer` is done.
    fn is_final_after(&self, layer: usize) -> bool {
        matches!(self.places.get(self.next), Some((Some(of), _)) if *of >= layer)
    }

    /// Takes the next gradient. Returns the bucket that is full by it, unless it is the last one.
    fn take<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>) -> Result<Option<Bucket>> {
        let gradient = backend.gradient(self.tensor(model, self.next))?;
        self.next += 1;
        self.filling.lengths.push(gradient.len());
        self.filling.values.extend(gradient);
        if self.filling.values.len() < self.full || self.are_all_taken() {
            return Ok(None);
        }
        let next = Bucket { first: self.next, ..Bucket::default() };
        Ok(Some(std::mem::replace(&mut self.filling, next)))
    }

    /// The bucket that is left when all gradients are taken, with the loss.
    fn last(&mut self, loss: f64) -> Bucket {
        Bucket { totals: vec![loss], ..std::mem::take(&mut self.filling) }
    }

    fn tensor<'a, B: Backend>(&self, model: &'a mut Llama<B>, at: usize) -> &'a mut B::Param {
        let (layer, at) = self.places[at];
        let mut tensors = match layer {
            Some(layer) => model.tensors(layer..layer + 1, false),
            None => model.tensors(0..0, true),
        };
        tensors.swap_remove(at)
    }

    fn put_back<B: Backend>(&self, backend: &mut B, model: &mut Llama<B>, bucket: &Bucket) -> Result<()> {
        let mut rest = &bucket.values[..];
        for (at, &length) in bucket.lengths.iter().enumerate() {
            let (own, others) = rest.split_at(length);
            backend.restore_gradient(self.tensor(model, bucket.first + at), own.to_vec())?;
            rest = others;
        }
        Ok(())
    }
}

/// Sums in a thread of their own, which has the communicator for as long as that takes.
///
/// An error of this rank ends the thread after the sum that it is in, to which the others come as well or fail.
fn beside<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut (dyn Communicator + Send),
    loss: f64,
    work: impl FnOnce(&mut B, &mut Llama<B>, AfterLayer<'_, B>) -> Result<f64>,
) -> Result<f64> {
    let buckets = Buckets::of(model, comm.bucket());
    let (given, to_add) = channel::<Bucket>();
    let (back, added) = channel::<Bucket>();
    std::thread::scope(|scope| {
        let add_up = move || -> Result<()> {
            for mut bucket in to_add {
                comm.all_reduce_sum(&mut bucket.values, &mut bucket.totals)?;
                // Where this rank has failed, nobody waits for it, nor for those that were given after it.
                if back.send(bucket).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("sums".to_owned());
        let thread = thread.spawn_scoped(scope, add_up).context(|| "the thread that adds up gradients".to_owned())?;
        let mut flow = Flow { buckets, given, added, values: 0, count: 0, is_cut: false };
        let done = flow.run(backend, model, loss, work);
        let is_cut = flow.is_cut;
        // The thread ends with it.
        drop(flow);
        let ended = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (done, ended) {
            (done, Ok(())) => done,
            (Err(error), Err(_)) if !is_cut => Err(error),
            (_, Err(error)) => Err(error),
        }
    })
}

/// Buckets between the backward pass and the thread that adds up.
struct Flow {
    buckets: Buckets,
    given: Sender<Bucket>,
    added: Receiver<Bucket>,
    /// Values on their way, in so many buckets
    values: usize,
    count: usize,
    /// Whether the thread has ended, which says why
    is_cut: bool,
}

impl Flow {
    fn run<B: Backend>(
        &mut self,
        backend: &mut B,
        model: &mut Llama<B>,
        loss: f64,
        work: impl FnOnce(&mut B, &mut Llama<B>, AfterLayer<'_, B>) -> Result<f64>,
    ) -> Result<f64> {
        let own = work(backend, model, &mut |backend, model, layer| self.after_layer(backend, model, layer))?;
        while !self.buckets.are_all_taken() {
            while !self.has_room() {
                self.receive(backend, model)?;
            }
            self.take(backend, model)?;
        }
        let last = self.buckets.last(loss + own);
        self.send(last)?;
        let mut total = loss + own;
        while self.count > 0 {
            total = self.receive(backend, model)?.unwrap_or(total);
        }
        Ok(total)
    }

    /// Sends what is final, as far as there is room for it, and takes what has come back.
    fn after_layer<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, layer: usize) -> Result<()> {
        loop {
            match self.added.try_recv() {
                Ok(bucket) => self.put_back(backend, model, &bucket)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(self.cut()),
            }
        }
        while self.has_room() && self.buckets.is_final_after(layer) {
            self.take(backend, model)?;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.values < ON_THE_WAY * self.buckets.full
    }

    fn take<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>) -> Result<()> {
        match self.buckets.take(backend, model)? {
            Some(bucket) => self.send(bucket),
            None => Ok(()),
        }
    }

    fn send(&mut self, bucket: Bucket) -> Result<()> {
        (self.values, self.count) = (self.values + bucket.values.len(), self.count + 1);
        self.given.send(bucket).map_err(|_| self.cut())
    }

    /// Waits for the next bucket. Returns its total, which the last one has.
    fn receive<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>) -> Result<Option<f64>> {
        let bucket = self.added.recv().map_err(|_| self.cut())?;
        self.put_back(backend, model, &bucket)?;
        Ok(bucket.totals.first().copied())
    }

    fn put_back<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, bucket: &Bucket) -> Result<()> {
        (self.values, self.count) = (self.values - bucket.values.len(), self.count - 1);
        self.buckets.put_back(backend, model, bucket)
    }

    fn cut(&mut self) -> Error {
        self.is_cut = true;
        Error::Failed("the sums over all ranks have ended".to_owned())
    }
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
        others.settled(sum)
    };
    let own = work(backend, model, &mut after_layer);
    let done = own.and_then(|own| {
        let mut others = Watched::new(&mut *comm);
        let sum = backend.begin_sum(model.tensors(0..begun, true), &mut others);
        others.settled(sum)?;
        // All meet before anyone waits for the GPUs: a rank that does not come is told by its name.
        let mut totals = [loss + own];
        comm.all_reduce_sum(&mut [], &mut totals)?;
        let mut others = Watched::new(&mut *comm);
        let sums = backend.finish_sums(model.tensors(0..layers, true), &mut others);
        others.settled(sums)?;
        Ok(totals[0])
    });
    if done.is_err() {
        backend.abandon_sums(model.tensors(0..layers, true));
    }
    done
}
