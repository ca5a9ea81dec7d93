//! Sums over the ranks beside the backward pass, in a thread that talks to the other ranks.
//!
//! The gradients of a bucket are read once they are final: at once where they lie in the host's memory, otherwise
//! beside the operations that a device is busy with. The host queues those ahead of the device. After each layer it
//! looks for gradients that have arrived: those from the device go to the thread, those from the thread go back to the
//! device.

use super::Llama;
use super::buckets::{AfterLayer, Buckets};
use crate::backend::Backend;
use crate::comm::Communicator;
use crate::error::{Context, Error, Result};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

/// Buckets on their way to the other ranks at a time
pub(super) const ON_THE_WAY: usize = 8;

/// The gradients of a bucket, on their way to a sum and back.
struct Part {
    values: Vec<f32>,
    /// The loss, with the last bucket
    totals: Vec<f64>,
}

/// Does `work`, which tells when layers are done and returns a loss, with sums in a thread of their own, which has the
/// communicator for as long as that takes. Returns the sum of the losses, to which `loss` is added on this rank.
///
/// An error of this rank ends the thread after the sum that it is in, to which the others come as well or fail.
pub(super) fn beside<B: Backend>(
    backend: &mut B,
    model: &mut Llama<B>,
    comm: &mut (dyn Communicator + Send),
    loss: f64,
    work: impl FnOnce(&mut B, &mut Llama<B>, AfterLayer<'_, B>) -> Result<f64>,
) -> Result<f64> {
    let (room, buckets) = (ON_THE_WAY * comm.bucket(), Buckets::of(backend, model, comm.bucket()));
    let (given, to_add) = channel::<Part>();
    let (back, added) = channel::<Part>();
    let done: Result<f64> = std::thread::scope(|scope| {
        let add_up = move || -> Result<()> {
            for mut part in to_add {
                comm.all_reduce_sum(&mut part.values, &mut part.totals)?;
                // A rank that has failed waits neither for this part nor for later ones.
                if back.send(part).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("sums".to_owned());
        let thread = thread.spawn_scoped(scope, add_up).context(|| "the thread that adds up gradients".to_owned())?;
        let mut flow = Flow { buckets, given, added, room, values: 0, begun: 0, sent: 0, back: 0, is_cut: false };
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
    });
    if done.is_err() {
        let layers = 0..model.layers.len();
        backend.abandon_reading(model.tensors(layers, true));
    }
    done
}

/// Buckets between the backward pass and the thread that adds up, in one order on all ranks.
struct Flow {
    buckets: Buckets,
    given: Sender<Part>,
    added: Receiver<Part>,
    /// Values from which on no bucket is sent until one returns
    room: usize,
    /// Values on their way
    values: usize,
    /// The first buckets, which are final
    begun: usize,
    /// The first buckets, which went to the thread
    sent: usize,
    /// The first buckets, which returned from it
    back: usize,
    /// The thread has ended, which says why
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
        let own = loss + own;
        self.begin(backend, model, self.buckets.count())?;
        while self.sent < self.begun {
            self.take_back(backend, model)?;
            while !self.has_room() {
                self.receive(backend, model)?;
            }
            if !self.send(backend, model, true, own)? {
                return Err(Error::Failed("gradients did not come from the device".to_owned()));
            }
        }
        let mut total = own;
        while self.back < self.sent {
            total = self.receive(backend, model)?.unwrap_or(total);
        }
        let layers = 0..model.layers.len();
        backend.finish_reading(model.tensors(layers, true))?;
        Ok(total)
    }

    /// Sends final gradients that have arrived, as far as there is room for them, and takes the sums that are done.
    fn after_layer<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, layer: usize) -> Result<()> {
        self.take_back(backend, model)?;
        self.begin(backend, model, self.buckets.final_after(layer))?;
        while self.sent < self.begun && self.has_room() {
            if !self.send(backend, model, false, 0.0)? {
                break;
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.values < self.room
    }

    /// Begins to read the buckets before `end`, all of which are final.
    fn begin<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, end: usize) -> Result<()> {
        while self.begun < end {
            if backend.reads_beside() {
                backend.begin_reading(self.buckets.tensors(model, self.begun))?;
            }
            self.begun += 1;
        }
        Ok(())
    }

    /// Sends the next bucket, with the `loss` if it is the last one. Returns whether its values are there, for which it
    /// may wait.
    fn send<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, waits: bool, loss: f64) -> Result<bool> {
        let values = match backend.reads_beside() {
            true => backend.read(waits)?,
            false => Some(self.buckets.read(backend, model, self.sent)?),
        };
        let Some(values) = values else { return Ok(false) };
        let totals = if self.buckets.is_last(self.sent) { vec![loss] } else { Vec::new() };
        (self.values, self.sent) = (self.values + values.len(), self.sent + 1);
        self.given.send(Part { values, totals }).map_err(|_| self.cut())?;
        Ok(true)
    }

    /// Puts back what has come from the thread by now.
    fn take_back<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>) -> Result<()> {
        loop {
            match self.added.try_recv() {
                Ok(part) => self.put_back(backend, model, &part)?,
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(self.cut()),
            }
        }
    }

    /// Waits for the next bucket. Returns its total, which the last one has.
    fn receive<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>) -> Result<Option<f64>> {
        let part = self.added.recv().map_err(|_| self.cut())?;
        self.put_back(backend, model, &part)?;
        Ok(part.totals.first().copied())
    }

    fn put_back<B: Backend>(&mut self, backend: &mut B, model: &mut Llama<B>, part: &Part) -> Result<()> {
        match backend.reads_beside() {
            true => backend.put_back(&part.values)?,
            false => self.buckets.put_back(backend, model, self.back, &part.values)?,
        }
        (self.values, self.back) = (self.values - part.values.len(), self.back + 1);
        Ok(())
    }

    fn cut(&mut self) -> Error {
        self.is_cut = true;
        Error::Failed("the sums over all ranks have ended".to_owned())
    }
}
