//! Work of an emulated device that is recorded instead of queued, to be queued again by each launch of a graph.

use super::driver::Queue;
use crate::error::{CudaError, Result};
use std::rc::Rc;

/// Work that may be done more than once.
pub type Repeated = Rc<dyn Fn() -> Result<()>>;

/// The number of a recording, and that of a mark in it.
pub type CapturedMark = (u64, usize);

pub enum Step {
    Do(Queue, Repeated),
    /// The next mark
    Mark(Queue),
    /// For the mark of this number
    Wait(Queue, usize),
}

/// A recording of the stream of kernels, and of the one beside it from where that waits for it.
pub struct Capture {
    number: u64,
    steps: Vec<Step>,
    marks: usize,
    /// The side stream follows this one and has not joined it.
    forked: bool,
    /// The last mark of the side stream, where nothing has followed it
    side_end: Option<usize>,
    /// The first thing asked for that cannot be recorded
    fault: Option<CudaError>,
}

fn refused(what: &str) -> CudaError {
    CudaError::Device(format!("a stream that is recorded: {what}"))
}

impl Capture {
    pub fn new(number: u64) -> Self {
        Self { number, steps: Vec::new(), marks: 0, forked: false, side_end: None, fault: None }
    }

    /// True if work of this queue is recorded.
    pub fn has(&self, queue: Queue) -> bool {
        queue == Queue::Compute || (queue == Queue::Side && self.forked)
    }

    /// Notes what cannot be recorded: the error of the call, and of the end.
    pub fn refuse(&mut self, what: &str) -> CudaError {
        self.fault.get_or_insert_with(|| refused(what)).clone()
    }

    pub fn put(&mut self, queue: Queue, work: Repeated) {
        if queue == Queue::Side {
            self.side_end = None;
        }
        self.steps.push(Step::Do(queue, work));
    }

    pub fn mark(&mut self, queue: Queue) -> CapturedMark {
        let mark = self.marks;
        self.steps.push(Step::Mark(queue));
        self.marks += 1;
        if queue == Queue::Side {
            self.side_end = Some(mark);
        }
        (self.number, mark)
    }

    /// Work that is put on `queue` from now on comes after the mark.
    pub fn wait(&mut self, queue: Queue, (number, mark): CapturedMark) -> Result<()> {
        if number != self.number {
            return Err(self.refuse("it waits for another recording"));
        }
        match queue {
            Queue::Side => (self.forked, self.side_end) = (true, None),
            Queue::Compute => self.forked &= self.side_end != Some(mark),
            _ => return Err(self.refuse("a copy beside it waits for it")),
        }
        self.steps.push(Step::Wait(queue, mark));
        Ok(())
    }

    /// The steps. An error if something could not be recorded.
    pub fn end(self) -> Result<Vec<Step>> {
        match (self.fault, self.forked) {
            (Some(fault), _) => Err(fault),
            (None, true) => Err(refused("the stream beside it has not joined it")),
            (None, false) => Ok(self.steps),
        }
    }
}
