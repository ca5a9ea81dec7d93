//! Queues of the emulated device: each in order, none before the marks that it waits for, and as late as something
//! waits for them. Launches come to them by the streams that the C interface takes.

use super::capture::{Capture, CapturedMark, Repeated, Step};
use super::driver::Queue;
use super::emulation;
use crate::error::{CudaError, Result};
use crate::sys;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::rc::{Rc, Weak};

const QUEUES: [Queue; 5] = [Queue::Compute, Queue::Side, Queue::ToDevice, Queue::ToHost, Queue::Sums];

/// A point in a queue: as much of its work is done.
#[derive(Clone, Copy)]
pub struct Point {
    queue: Queue,
    number: u64,
}

/// The place of an event: in a queue, or in a recording.
#[derive(Clone, Copy)]
pub enum Mark {
    Queued(Point),
    Captured(CapturedMark),
}

enum Work {
    Wait(Point),
    Do(Box<dyn FnOnce() -> Result<()>>),
}

#[derive(Default)]
struct Fifo {
    done: u64,
    waiting: VecDeque<Work>,
}

#[derive(Default)]
pub struct Queues {
    fifos: [RefCell<Fifo>; QUEUES.len()],
    /// While work is recorded
    capture: RefCell<Option<Capture>>,
    captures: Cell<u64>,
}

impl Queues {
    /// Queues whose streams take launches of this OS thread.
    pub fn with_streams() -> Rc<Self> {
        let queues = Rc::<Self>::default();
        STREAMS.with_borrow_mut(|streams| {
            streams.retain(|others| others.strong_count() > 0);
            streams.push(Rc::downgrade(&queues));
        });
        // SAFETY: sets a function of this OS thread, which takes what it is given as it is promised there.
        unsafe { qk_emulation_take_work(Some(take)) };
        queues
    }

    /// An address in place of a `CUstream`: no other stream has it, and nobody reads it.
    pub fn stream(self: &Rc<Self>, queue: Queue) -> *mut c_void {
        Rc::as_ptr(self).cast::<c_void>().wrapping_byte_add(queue as usize).cast_mut()
    }

    fn fifo(&self, queue: Queue) -> &RefCell<Fifo> {
        &self.fifos[queue as usize]
    }

    pub fn put(&self, queue: Queue, work: impl FnOnce() -> Result<()> + 'static) {
        self.fifo(queue).borrow_mut().waiting.push_back(Work::Do(Box::new(work)));
    }

    /// Records the work if the queue is recorded, and queues it otherwise.
    pub fn put_or_record(&self, queue: Queue, work: Repeated) {
        match self.recording(queue) {
            Some(mut capture) => capture.put(queue, work),
            None => self.put(queue, move || work()),
        }
    }

    /// The recording of this queue's work.
    fn recording(&self, queue: Queue) -> Option<RefMut<'_, Capture>> {
        let capture = self.capture.borrow_mut();
        RefMut::filter_map(capture, |capture| capture.as_mut().filter(|capture| capture.has(queue))).ok()
    }

    pub fn is_recorded(&self) -> bool {
        self.capture.borrow().is_some()
    }

    /// An error where work is recorded: `what` cannot be.
    pub fn refuse_recorded(&self, what: &str) -> Result<()> {
        self.capture.borrow_mut().as_mut().map_or(Ok(()), |capture| Err(capture.refuse(what)))
    }

    pub fn begin_capture(&self) -> Result<()> {
        self.refuse_recorded("it is recorded already")?;
        self.captures.set(self.captures.get() + 1);
        *self.capture.borrow_mut() = Some(Capture::new(self.captures.get()));
        Ok(())
    }

    pub fn end_capture(&self) -> Result<Vec<Step>> {
        let capture = self.capture.borrow_mut().take();
        capture.ok_or_else(|| CudaError::Device("no stream is recorded".into()))?.end()
    }

    /// Queues all that was recorded, each part on its queue.
    pub fn launch(&self, steps: &[Step]) -> Result<()> {
        self.refuse_recorded("a graph is launched")?;
        let mut marks = Vec::new();
        for step in steps {
            match step {
                Step::Do(queue, work) => {
                    let work = work.clone();
                    self.put(*queue, move || work());
                }
                Step::Mark(queue) => marks.push(self.end(*queue)),
                Step::Wait(queue, mark) => self.wait(*queue, marks[*mark]),
            }
        }
        Ok(())
    }

    /// The end of what `queue` has so far, recorded or not.
    pub fn mark(&self, queue: Queue) -> Mark {
        match self.recording(queue) {
            Some(mut capture) => Mark::Captured(capture.mark(queue)),
            None => Mark::Queued(self.end(queue)),
        }
    }

    /// Work that is put on `queue` from now on comes after the mark.
    pub fn wait_for(&self, queue: Queue, mark: Mark) -> Result<()> {
        match (self.capture.borrow_mut().as_mut(), mark) {
            (Some(capture), Mark::Captured(mark)) => capture.wait(queue, mark),
            (Some(capture), Mark::Queued(_)) if capture.has(queue) => {
                Err(capture.refuse("it waits for work that is not recorded"))
            }
            (_, Mark::Queued(point)) => {
                self.wait(queue, point);
                Ok(())
            }
            (None, Mark::Captured(_)) => Err(unrecorded()),
        }
    }

    /// The point of a mark that the host may wait for.
    pub fn point(&self, mark: Mark) -> Result<Point> {
        match mark {
            Mark::Queued(point) => Ok(point),
            Mark::Captured(_) => {
                self.refuse_recorded("the host waits for it")?;
                Err(unrecorded())
            }
        }
    }

    /// Work that is put on `queue` from now on comes after the point.
    pub fn wait(&self, queue: Queue, point: Point) {
        if point.queue != queue {
            self.fifo(queue).borrow_mut().waiting.push_back(Work::Wait(point));
        }
    }

    /// The point after the work that `queue` has so far.
    pub fn end(&self, queue: Queue) -> Point {
        let fifo = self.fifo(queue).borrow();
        Point { queue, number: fifo.done + fifo.waiting.len() as u64 }
    }

    /// True if the point is reached by nothing more than waits that are over.
    pub fn is_reached(&self, point: Point) -> bool {
        loop {
            let fifo = self.fifo(point.queue).borrow();
            if fifo.done >= point.number {
                return true;
            }
            let Some(&Work::Wait(other)) = fifo.waiting.front() else { return false };
            drop(fifo);
            if !self.is_reached(other) {
                return false;
            }
            let mut fifo = self.fifo(point.queue).borrow_mut();
            fifo.waiting.pop_front();
            fifo.done += 1;
        }
    }

    /// Does the work up to the point, and that of other queues which it waits for. Failed: a part of it fails; the next
    /// call goes on behind that.
    pub fn reach(&self, point: Point) -> Result<()> {
        loop {
            let mut fifo = self.fifo(point.queue).borrow_mut();
            if fifo.done >= point.number {
                return Ok(());
            }
            let work = fifo.waiting.pop_front();
            fifo.done += 1;
            drop(fifo);
            match work.expect("a point is at most the end of its queue") {
                Work::Wait(other) => self.reach(other)?,
                Work::Do(work) => work()?,
            }
        }
    }
}

/// The error of waiting for an event that nothing has reached but a recording.
fn unrecorded() -> CudaError {
    CudaError::Device("an event was recorded in a graph, where nothing else can wait for it".into())
}

thread_local! {
    static STREAMS: RefCell<Vec<Weak<Queues>>> = const { RefCell::new(Vec::new()) };
}

/// The queue that this stream stands for.
fn queue_of(stream: *mut c_void) -> Option<(Rc<Queues>, Queue)> {
    let of = |queues: Rc<Queues>| {
        let queue = QUEUES.into_iter().find(|&queue| queues.stream(queue) == stream)?;
        Some((queues, queue))
    };
    STREAMS.with_borrow(|streams| streams.iter().filter_map(Weak::upgrade).find_map(of))
}

/// Does `work`, or queues it where `stream` is that of a device that is late or records.
pub fn put_on(stream: *mut c_void, work: impl Fn() + 'static) {
    match queue_of(stream) {
        None => work(),
        Some((queues, queue)) => queues.put_or_record(
            queue,
            Rc::new(move || -> Result<()> {
                work();
                Ok(())
            }),
        ),
    }
}

/// Does all work that `stream` has, where it is that of a device that is late: what comes next is done by the stream.
pub fn finish(stream: *mut c_void) -> Result<()> {
    queue_of(stream).map_or(Ok(()), |(queues, queue)| queues.reach(queues.end(queue)))
}

type Run = unsafe extern "C" fn(work: *mut c_void) -> i32;
type Release = unsafe extern "C" fn(work: *mut c_void);
type Take = extern "C" fn(stream: *mut c_void, work: *mut c_void, run: Run, release: Release) -> i32;

unsafe extern "C" {
    fn qk_emulation_take_work(take: Option<Take>);
}

/// A launch that only this queue knows.
struct Launch {
    work: *mut c_void,
    run: Run,
    release: Release,
}

impl Launch {
    fn run(&self) -> Result<()> {
        // SAFETY: the work that the function came with; it is released later.
        let code = unsafe { (self.run)(self.work) };
        let text = match code {
            sys::QK_OK => return Ok(()),
            sys::QK_ERROR_EMULATION => emulation::message(),
            _ => "a launch failed".into(),
        };
        Err(CudaError::Driver { what: "the work on the GPU".into(), code, text })
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        // SAFETY: the work that the function came with, once.
        unsafe { (self.release)(self.work) }
    }
}

/// Takes a launch if its stream is one of a device that is late or records: 1, or 0.
extern "C" fn take(stream: *mut c_void, work: *mut c_void, run: Run, release: Release) -> i32 {
    let Some((queues, queue)) = queue_of(stream) else { return 0 };
    let launch = Launch { work, run, release };
    queues.put_or_record(queue, Rc::new(move || launch.run()));
    1
}

#[cfg(test)]
mod tests;
