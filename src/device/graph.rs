//! Graphs of a device's stream: work that is recorded once and launched as one, again and again.

use super::driver::Driver;
use super::{Device, Implementation};
use crate::error::Result;
use std::rc::Rc;

/// Work that was recorded between [`Device::begin_capture`] and [`Device::end_capture`]. A launch does all of it, in
/// its order, with what is in its memory then.
pub struct Graph {
    driver: Rc<Implementation>,
    graph: <Implementation as Driver>::Graph,
    nodes: usize,
}

impl Device {
    /// Records what is queued on the device's stream, and on a [`SideStream`](super::SideStream) that follows it, from
    /// now on instead of doing it. Until the end neither the host nor a copy beside the stream may wait for it, and no
    /// memory is allocated but in an [`Arena`](super::Arena): either is an error then, or when the recording ends.
    pub fn begin_capture(&self) -> Result<()> {
        self.driver().bind()?;
        self.driver().begin_capture()
    }

    /// Ends the recording. An error if what was asked for meanwhile cannot be recorded, or if the side stream was not
    /// joined; nothing of it is done then.
    pub fn end_capture(&self) -> Result<Graph> {
        self.driver().bind()?;
        let (graph, nodes) = self.driver().end_capture()?;
        Ok(Graph { driver: self.driver().clone(), graph, nodes })
    }
}

impl Graph {
    /// Launches, copies and clearings that it has.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Queues all of it on the device's stream.
    ///
    /// # Safety
    ///
    /// All memory that was used while it was recorded is allocated still, and nobody uses a part of it for anything
    /// else before the work is done.
    pub unsafe fn launch(&self) -> Result<()> {
        self.driver.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(&self.graph) }
    }
}

#[cfg(all(test, kernels = "emulated"))]
mod tests;
