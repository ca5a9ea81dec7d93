//! Graphs of the parts of a step in which a small model has hundreds of short launches: the forward pass up to the
//! loss, the backward pass behind it, and the clearing of gradients. The loss between them has few launches, and its
//! grids follow from the tokens that are learned from, which are others in each batch: it is launched as ever.
//!
//! A part is recorded when a batch of its shape comes for the second time, and launched as one from then on. The
//! model's code runs all the same: it takes and gives back the same memory, and its operations launch nothing. Whatever
//! differs from batch to batch is read in memory that is written before: ids, positions, boundaries, and the step of
//! dropout. Bits are those of separate launches, by the same kernels in the same order.

// For the one call that launches a graph.
#![allow(unsafe_code)]

use super::memory::{DeviceMemory, StagedBuffer};
use crate::backend::StepPart;
use crate::backend::run_shape::RunShape;
use crate::error::Result;
use qlora_kernels::device::{Graph, View};

/// Graphs that are kept: of two passes of 8 shapes, and of the clearing.
pub const KEPT: usize = 2 * 8 + 1;

/// Shapes without a graph that are remembered until they come again. Not more than graphs are kept: one that comes more
/// rarely would be recorded each time, which takes longer than its launches, and be gone before it is launched again.
const SEEN: usize = KEPT;

/// Everything that grids and addresses of a part follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub part: StepPart,
    pub tokens: usize,
    /// Rounded up, see [`Graphs::documents`]
    pub documents: usize,
    /// Memory in use where the part begins
    pub state: u64,
    /// Memory in use where the forward pass began
    pub before: u64,
}

pub struct Kept {
    pub key: Key,
    pub graph: Graph,
    /// Hash of the places that the part takes, in their order
    pub places: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Operations are launched.
    #[default]
    Launching,
    /// They are recorded, and find in memory what differs from batch to batch.
    Recording,
    /// They launch nothing, as a graph does.
    Replaying,
}

/// The work of graphs so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    pub recorded: usize,
    pub launched: usize,
    /// Launches, copies and clearings in all graphs that were launched, each as often as it was
    pub nodes: usize,
}

/// The graphs of a run.
pub struct Graphs {
    /// False: parts are never recorded
    pub is_on: bool,
    pub mode: Mode,
    /// The one that was used last is the last.
    kept: Vec<Kept>,
    seen: Vec<Key>,
    /// State where the forward pass began
    pub before: u64,
    /// `[1]`, with dropout: the step of its masks, and the one that was written
    step: Option<StagedBuffer<u32>>,
    written: Option<u32>,
    pub counts: GraphCounts,
}

impl Graphs {
    /// Takes equal memory with graphs and without: a plan is made before the choice.
    pub fn new(memory: &DeviceMemory, dims: &RunShape) -> Result<Self> {
        let has_masks = dims.training && dims.dropout;
        let step = has_masks.then(|| StagedBuffer::new(memory, "batch", 1)).transpose()?;
        Ok(Self {
            is_on: dims.graphs,
            mode: Mode::default(),
            kept: Vec::new(),
            seen: Vec::new(),
            before: 0,
            step,
            written: None,
            counts: GraphCounts::default(),
        })
    }

    /// Documents that attention gets for a batch with `documents` of at most `tokens` tokens: rounded up, so that
    /// batches of one length have few shapes. The surplus ones are empty.
    pub fn documents(&self, documents: usize, tokens: usize) -> usize {
        if self.is_on { documents.next_power_of_two().min(tokens) } else { documents }
    }

    /// True while operations launch nothing.
    pub fn is_replaying(&self) -> bool {
        self.mode == Mode::Replaying
    }

    /// The step of dropout as kernels find it; none: it is a parameter of their launches.
    pub fn step(&self) -> Option<View<'_, u32>> {
        self.step.as_ref().filter(|_| self.mode == Mode::Recording).map(StagedBuffer::view)
    }

    /// Notes this shape; true if it was seen before.
    pub fn was_seen(&mut self, key: Key) -> bool {
        let found = self.seen.iter().position(|other| *other == key);
        if let Some(at) = found {
            self.seen.remove(at);
        } else if self.seen.len() == SEEN {
            self.seen.remove(0);
        }
        self.seen.push(key);
        found.is_some()
    }

    /// The graph of this shape, which [`launch`](Self::launch) gives back.
    pub fn take(&mut self, key: Key) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| kept.key == key)?;
        Some(self.kept.remove(at))
    }

    /// Launches a graph and keeps it, and as many others as there is room for.
    pub fn launch(&mut self, kept: Kept) -> Result<()> {
        // SAFETY: all that a part uses is of the run's arena, which lives as long as the backend, and of buffers that
        // have the places which they had when it was recorded: memory in use is the same, and so was all that was taken
        // since. Work is queued in the order of one stream.
        unsafe { kept.graph.launch() }?;
        self.counts.launched += 1;
        self.counts.nodes += kept.graph.nodes();
        if self.kept.len() == KEPT {
            self.kept.remove(0);
        }
        self.kept.push(kept);
        Ok(())
    }

    /// Writes the step of dropout to where recorded kernels read it.
    pub fn write_step(&mut self, draw: Option<u32>) -> Result<()> {
        match (&mut self.step, draw) {
            (Some(step), Some(draw)) if self.written != Some(draw) => {
                step.set(&[draw])?;
                self.written = Some(draw);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
