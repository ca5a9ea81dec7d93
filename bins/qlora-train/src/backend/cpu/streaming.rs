//! Frozen weights that stay in the checkpoint's files.
//!
//! Two layers are in memory: the one that is computed and the one that is used next, which a thread reads meanwhile
//! into the memory of the one before. The model names both in its own order, 0 to L - 1 forward and L - 1 to 0
//! backward, so that the last two layers of a forward pass are there when the backward pass begins, and the first two
//! when the next micro-batch does.

use super::memory::{Held, HostMemory};
use super::numa::Interleaved;
use crate::backend::DiskTraffic;
use crate::base::Nf4OnDisk;
use crate::error::Result;
use crate::files::worker::Worker;
use qlora_kernels::nf4::Nf4Matrix;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// The line of the memory plan.
pub const LINE: &str = "NF4 weights of two layers, read from disk";

/// Layers that are in memory at one time.
const LAYERS: usize = 2;

/// A weight whose matrix is in memory while its layer is used.
pub struct OnDisk {
    layer: usize,
    stored: Nf4OnDisk,
    matrix: RwLock<Option<Nf4Matrix>>,
}

impl OnDisk {
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// # Panics
    ///
    /// If the weight's layer was not waited for.
    #[inline]
    pub fn with<R>(&self, use_matrix: impl FnOnce(&Nf4Matrix) -> R) -> R {
        let matrix = self.matrix.read().unwrap_or_else(PoisonError::into_inner);
        use_matrix(matrix.as_ref().expect("a layer is waited for before it is computed"))
    }

    fn take(&self) -> Option<Nf4Matrix> {
        self.matrix.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, matrix: Nf4Matrix) {
        *self.matrix.write().unwrap_or_else(PoisonError::into_inner) = Some(matrix);
    }
}

/// The weights of one layer, and matrices whose memory they may have.
struct Job {
    weights: Vec<Arc<OnDisk>>,
    reused: Vec<Nf4Matrix>,
}

/// The thread that reads; of one layer each, bytes and seconds.
type Reader = Worker<Job, Result<(u64, f64)>>;

/// Reads the matrices of one layer; returns the bytes that were read, and the seconds that it took.
fn read(Job { weights, mut reused }: Job) -> Result<(u64, f64)> {
    let (_spread, start) = (Interleaved::begin(), Instant::now());
    let mut targets = Vec::with_capacity(weights.len());
    for weight in weights {
        let same = |old: &Nf4Matrix| weight.stored.shape() == [old.rows(), old.cols()];
        let old = reused.iter().position(same).map(|index| reused.swap_remove(index));
        targets.push((weight, old));
    }
    // Matrices that this layer has no use for are freed before more is taken.
    drop(reused);
    let mut bytes = 0;
    for (weight, old) in targets {
        weight.put(weight.stored.read(old)?);
        bytes += weight.stored.stored_bytes();
    }
    Ok((bytes, start.elapsed().as_secs_f64()))
}

/// The layers whose weights stay on disk.
pub struct Streaming {
    memory: Rc<HostMemory>,
    layers: BTreeMap<usize, Vec<Arc<OnDisk>>>,
    /// Bytes of each layer in memory
    bytes: BTreeMap<usize, u64>,
    /// Counts the memory of the layers that are in memory.
    held: Option<Held<()>>,
    reader: Option<Reader>,
    /// In memory, at most [`LAYERS`] with the pending one
    loaded: Vec<usize>,
    pending: Option<usize>,
    /// Layer that is computed
    current: Option<usize>,
    /// Shared with the output layer, where that stays on disk too; none where nothing does
    read: Rc<Cell<Option<DiskTraffic>>>,
}

impl Streaming {
    pub fn new(memory: Rc<HostMemory>) -> Self {
        Self {
            memory,
            layers: BTreeMap::new(),
            bytes: BTreeMap::new(),
            held: None,
            reader: None,
            loaded: Vec::new(),
            pending: None,
            current: None,
            read: Rc::default(),
        }
    }

    pub fn add(&mut self, layer: usize, stored: Nf4OnDisk) -> Arc<OnDisk> {
        self.counted();
        let weight = Arc::new(OnDisk { layer, stored, matrix: RwLock::new(None) });
        self.layers.entry(layer).or_default().push(weight.clone());
        weight
    }

    /// Counts a weight of `layer` that takes `bytes` bytes while it is in memory: there is room for the largest layers.
    pub fn count(&mut self, layer: usize, bytes: u64) {
        *self.bytes.entry(layer).or_default() += bytes;
        let largest = self.bytes.values().copied().max().unwrap_or(0);
        let room = largest * self.bytes.len().min(LAYERS) as u64;
        // Given back first, so that the peak is not of both.
        self.held = None;
        self.held = Some(self.memory.hold(LINE, room, ()));
    }

    /// The place where more that is read of weights is counted.
    pub fn counted(&self) -> Rc<Cell<Option<DiskTraffic>>> {
        self.read.set(Some(self.read.get().unwrap_or_default()));
        self.read.clone()
    }

    pub fn weights_read(&self) -> Option<DiskTraffic> {
        self.read.get()
    }

    /// Begins to read a layer.
    pub fn prefetch(&mut self, layer: usize) -> Result<()> {
        if self.pending == Some(layer) || self.loaded.contains(&layer) {
            return Ok(());
        }
        self.collect()?;
        let mut reused = Vec::new();
        if self.loaded.len() >= LAYERS {
            let last = self.loaded.len() - 1;
            let oldest = self.loaded.iter().position(|&loaded| Some(loaded) != self.current).unwrap_or(last);
            let given_up = self.loaded.remove(oldest);
            reused.extend(self.layers[&given_up].iter().filter_map(|weight| weight.take()));
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::start("read-weights", "reads weights from disk", read)?);
        }
        let job = Job { weights: self.layers[&layer].clone(), reused };
        let reader = self.reader.as_ref().expect("it was started");
        reader.send(job)?;
        self.pending = Some(layer);
        Ok(())
    }

    /// Has the layer in memory, from now on until another is waited for.
    pub fn wait(&mut self, layer: usize) -> Result<()> {
        self.prefetch(layer)?;
        if self.pending == Some(layer) {
            self.collect()?;
        }
        self.current = Some(layer);
        Ok(())
    }

    /// Waits for the layer that is being read, if there is one.
    fn collect(&mut self) -> Result<()> {
        let (Some(layer), Some(reader)) = (self.pending.take(), &self.reader) else { return Ok(()) };
        let start = Instant::now();
        let (bytes, seconds) = reader.receive()??;
        let mut read = self.read.get().unwrap_or_default();
        read.waited += start.elapsed().as_secs_f64();
        read.bytes += bytes;
        read.seconds += seconds;
        self.read.set(Some(read));
        self.loaded.push(layer);
        Ok(())
    }
}
