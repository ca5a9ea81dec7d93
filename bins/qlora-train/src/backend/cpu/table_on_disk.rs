//! The embedding and the output layer in the files of the base.
//!
//! Rows of the embedding are read one by one. The output layer is read in parts of [`ROWS`] rows, of which two are in
//! memory: the one that is used, and the one that a thread reads meanwhile into the memory of the one before. A chunk
//! of tokens needs all of them for its logits, and all of them again for their gradient.

use super::memory::{Held, HostMemory};
use super::numa::Interleaved;
use super::operands::{Dense, Matrix};
use crate::backend::DiskTraffic;
use crate::base::RowsOnDisk;
use crate::error::{Error, Result};
use crate::files::tensor::{StoredType, TensorData};
use crate::files::worker::Worker;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// The plan's line of an output layer.
const LINE: &str = "lm_head in parts, read from disk";

/// Rows of a part: as many as their part of a gradient is computed of at one time.
pub const ROWS: usize = 4096;

/// Parts that are in memory at one time.
const PARTS: usize = 2;

/// True if an output layer of `vocab` rows is read in more parts than one.
pub fn has_parts(vocab: usize) -> bool {
    vocab > ROWS
}

/// A table `[vocab, cols]` that stays in its file.
pub struct TableOnDisk {
    /// None: in a dry run
    stored: Option<Arc<RowsOnDisk>>,
    pub vocab: usize,
    pub cols: usize,
    parts: RefCell<Parts>,
    /// Counts the memory of the parts that are in memory.
    _held: Held<()>,
}

struct Job {
    stored: Arc<RowsOnDisk>,
    rows: Range<usize>,
    reused: Option<TensorData>,
}

/// The rows that were read, and the seconds that it took.
type Done = (Result<Dense>, f64);

/// Parts of an output layer that are in memory or on their way.
struct Parts {
    worker: Option<Worker<Job, Done>>,
    loaded: Vec<(usize, Dense)>,
    pending: Option<usize>,
    /// Shared with the linear layers that stay on disk
    traffic: Rc<Cell<Option<DiskTraffic>>>,
}

fn read(Job { stored, rows, reused }: Job) -> Done {
    let _spread = Interleaved::begin();
    let start = Instant::now();
    let read = stored.read(rows.clone(), reused).map(|tensor| Dense { tensor, cols: stored.columns() });
    stored.forget_pages(rows);
    (read, start.elapsed().as_secs_f64())
}

impl TableOnDisk {
    /// `is_head`: it is used as output layer. `traffic` counts what is read of it.
    pub fn new(
        memory: &Rc<HostMemory>,
        stored: Option<RowsOnDisk>,
        [vocab, cols]: [usize; 2],
        is_head: bool,
        kind: StoredType,
        traffic: Rc<Cell<Option<DiskTraffic>>>,
    ) -> Self {
        let rows = if is_head { vocab.min(PARTS * ROWS) } else { 0 };
        let parts = Parts { worker: None, loaded: Vec::new(), pending: None, traffic };
        Self {
            stored: stored.map(Arc::new),
            vocab,
            cols,
            parts: RefCell::new(parts),
            _held: memory.hold(LINE, (rows * cols * kind.size()) as u64, ()),
        }
    }

    /// Rows that threads read.
    pub fn stored(&self) -> &RowsOnDisk {
        self.stored.as_deref().expect("a dry run computes nothing")
    }

    /// Hands over all parts in order, each with the rows that it has. The next one is read meanwhile; behind the last
    /// comes the first.
    pub fn each_part(&self, use_part: &mut dyn FnMut(Range<usize>, &Matrix)) -> Result<()> {
        let stored = self.stored.as_ref().expect("a dry run computes nothing");
        let count = self.vocab.div_ceil(ROWS);
        let rows = |part: usize| part * ROWS..self.vocab.min((part + 1) * ROWS);
        let mut parts = self.parts.borrow_mut();
        for part in 0..count {
            let dense = parts.take(stored, part, rows(part))?;
            let next = (part + 1) % count;
            if next != part {
                parts.prefetch(stored, next, rows(next))?;
            }
            use_part(rows(part), &Matrix::Dense(&dense));
            parts.loaded.push((part, dense));
        }
        Ok(())
    }
}

impl Parts {
    /// A part, which is in memory or on its way or is read now.
    fn take(&mut self, stored: &Arc<RowsOnDisk>, part: usize, rows: Range<usize>) -> Result<Dense> {
        self.prefetch(stored, part, rows)?;
        if self.pending == Some(part) {
            self.collect()?;
        }
        let at = self.loaded.iter().position(|(loaded, _)| *loaded == part);
        let at = at.ok_or_else(|| Error::Failed("a part of the output layer was not read".to_owned()))?;
        Ok(self.loaded.swap_remove(at).1)
    }

    /// Begins to read a part, in the memory of one that is not needed next.
    fn prefetch(&mut self, stored: &Arc<RowsOnDisk>, part: usize, rows: Range<usize>) -> Result<()> {
        if self.pending == Some(part) || self.loaded.iter().any(|(loaded, _)| *loaded == part) {
            return Ok(());
        }
        self.collect()?;
        let reused = self.loaded.pop().map(|(_, dense)| dense.tensor.data);
        self.loaded.clear();
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start("read-weights", "reads the output layer from disk", read)?,
        };
        worker.send(Job { stored: stored.clone(), rows, reused })?;
        self.worker = Some(worker);
        self.pending = Some(part);
        Ok(())
    }

    /// Waits for the part that is being read, if there is one.
    fn collect(&mut self) -> Result<()> {
        let (Some(part), Some(worker)) = (self.pending.take(), &self.worker) else { return Ok(()) };
        let start = Instant::now();
        let (read, seconds) = worker.receive()?;
        let dense = read?;
        let mut traffic = self.traffic.get().unwrap_or_default();
        traffic.waited += start.elapsed().as_secs_f64();
        traffic.seconds += seconds;
        traffic.bytes += dense.bytes();
        self.traffic.set(Some(traffic));
        self.loaded.push((part, dense));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
