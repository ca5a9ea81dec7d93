//! Parts of a step as graphs.

use super::Cuda;
use super::graphs::{GraphCounts, Kept, Key, Mode};
use crate::backend::{Memory, StepPart, TraceMode};
use crate::error::{Context, Error, Result};

impl Cuda {
    /// The work of graphs so far; none where there are none.
    pub fn graph_counts(&self) -> GraphCounts {
        self.graphs.counts
    }
}

/// Does `work`, which is `part` of a step: by separate launches, recorded, or by the graph of a recording.
pub fn in_graph<T>(
    cuda: &mut Cuda,
    part: StepPart,
    draw: Option<u32>,
    work: impl FnOnce(&mut Cuda) -> Result<T>,
) -> Result<T> {
    // Operations are timed or looked at one by one; sums over GPUs begin while a pass runs.
    let is_alone = cuda.trace.mode == TraceMode::Off && cuda.sums.is_none();
    if !cuda.graphs.is_on || !is_alone || cuda.is_dry_run() {
        return work(cuda);
    }
    let (tokens, documents) = match part {
        StepPart::Clear => (0, 0),
        StepPart::Forward | StepPart::Backward => (cuda.batch.tokens(), cuda.documents),
    };
    let (state, graphs) = (cuda.memory.state(), &mut cuda.graphs);
    if part != StepPart::Backward {
        graphs.before = state;
    }
    let key = Key { part, tokens, documents, state, before: graphs.before };
    let found = graphs.take(key);
    if found.is_none() && !graphs.was_seen(key) {
        return work(cuda);
    }
    graphs.write_step(draw)?;
    cuda.memory.forget_given();
    let (done, kept) = match found {
        Some(kept) => (in_mode(cuda, Mode::Replaying, work)?, kept),
        None => {
            let device = cuda.memory.opened()?;
            device.begin_capture()?;
            let done = in_mode(cuda, Mode::Recording, work);
            let graph = device.end_capture();
            let what = || "recording a CUDA graph, which `cuda_graphs: off` does without".to_owned();
            let (done, graph) = (done?, graph.map_err(Error::from).context(what)?);
            cuda.graphs.counts.recorded += 1;
            (done, Kept { key, graph, places: cuda.memory.given() })
        }
    };
    if kept.places != cuda.memory.given() {
        return Err(Error::Failed(format!(
            "the memory of a CUDA graph ({part:?}, {tokens} tokens) is not where it was recorded; use `cuda_graphs: off`"
        )));
    }
    cuda.graphs.launch(kept)?;
    Ok(done)
}

fn in_mode<T>(cuda: &mut Cuda, mode: Mode, work: impl FnOnce(&mut Cuda) -> Result<T>) -> Result<T> {
    cuda.graphs.mode = mode;
    let done = work(cuda);
    cuda.graphs.mode = Mode::Launching;
    done
}
