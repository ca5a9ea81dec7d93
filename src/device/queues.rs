//! Queues of the emulated device: each in order, none before what it was told to wait for, and as late as something
//! waits for them. Launches come to them by the streams that the C interface takes.

use super::driver::Queue;
use super::emulation;
use crate::error::{CudaError, Result};
use crate::sys;
use std::cell::RefCell;
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
pub struct Queues([RefCell<Fifo>; QUEUES.len()]);

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

    /// What stands for a `CUstream`: an address that no other stream has, and that nobody looks at.
    pub fn stream(self: &Rc<Self>, queue: Queue) -> *mut c_void {
        Rc::as_ptr(self).cast::<c_void>().wrapping_byte_add(queue as usize).cast_mut()
    }

    fn fifo(&self, queue: Queue) -> &RefCell<Fifo> {
        &self.0[queue as usize]
    }

    pub fn put(&self, queue: Queue, work: impl FnOnce() -> Result<()> + 'static) {
        self.fifo(queue).borrow_mut().waiting.push_back(Work::Do(Box::new(work)));
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

    /// Whether the point is reached where nothing more is done than waits that are over.
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

/// Does `work`, or puts it on the queue that `stream` stands for, where it is one of a device that is late.
pub fn put_on(stream: *mut c_void, work: impl FnOnce() + 'static) {
    match queue_of(stream) {
        None => work(),
        Some((queues, queue)) => queues.put(queue, move || {
            work();
            Ok(())
        }),
    }
}

/// Does all work that `stream` has, where it is one of a device that is late: what comes next is done by the stream.
pub fn finish(stream: *mut c_void) -> Result<()> {
    queue_of(stream).map_or(Ok(()), |(queues, queue)| queues.reach(queues.end(queue)))
}

type Run = unsafe extern "C" fn(work: *mut c_void) -> i32;
type Release = unsafe extern "C" fn(work: *mut c_void);
type Take = extern "C" fn(stream: *mut c_void, work: *mut c_void, run: Run, release: Release) -> i32;

unsafe extern "C" {
    fn qk_emulation_take_work(take: Option<Take>);
}

/// A launch of which nobody else knows.
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

/// Takes a launch if its stream is one of a device that is late: 1, or 0.
extern "C" fn take(stream: *mut c_void, work: *mut c_void, run: Run, release: Release) -> i32 {
    let Some((queues, queue)) = queue_of(stream) else { return 0 };
    let launch = Launch { work, run, release };
    queues.put(queue, move || launch.run());
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use Queue::{Compute, Sums, ToDevice, ToHost};
    use std::cell::Cell;

    /// Puts a number on a queue; it is noted when its turn comes.
    fn note(queues: &Queues, noted: &Rc<RefCell<Vec<u32>>>, queue: Queue, number: u32) {
        let noted = noted.clone();
        queues.put(queue, move || {
            noted.borrow_mut().push(number);
            Ok(())
        });
    }

    #[test]
    fn a_queue_does_what_others_wait_for_and_no_more() {
        let (queues, noted) = (Queues::default(), Rc::default());
        note(&queues, &noted, Compute, 1);
        let computed = queues.end(Compute);
        note(&queues, &noted, Compute, 2);
        note(&queues, &noted, ToDevice, 10);
        queues.wait(ToDevice, computed);
        note(&queues, &noted, ToDevice, 11);
        let copied = queues.end(ToDevice);
        queues.wait(Compute, copied);
        note(&queues, &noted, Compute, 3);
        note(&queues, &noted, ToHost, 20);
        assert!(!queues.is_reached(copied) && !queues.is_reached(computed) && noted.borrow().is_empty());
        queues.reach(copied).unwrap();
        assert_eq!(*noted.borrow(), [10, 1, 11]);
        assert!(queues.is_reached(copied) && queues.is_reached(computed));
        queues.reach(queues.end(Compute)).unwrap();
        assert_eq!(*noted.borrow(), [10, 1, 11, 2, 3], "nothing waits for the queue to the host");
    }

    #[test]
    fn a_queue_that_only_waits_is_through_when_the_others_are() {
        let (queues, noted) = (Queues::default(), Rc::default());
        note(&queues, &noted, Compute, 1);
        queues.wait(Sums, queues.end(Compute));
        // A queue does not wait for itself.
        queues.wait(Sums, queues.end(Sums));
        let summed = queues.end(Sums);
        assert!(!queues.is_reached(summed));
        queues.reach(queues.end(Compute)).unwrap();
        assert!(queues.is_reached(summed) && *noted.borrow() == [1]);
    }

    #[test]
    fn work_after_a_part_that_failed_is_done_by_the_next_call() {
        let (queues, noted) = (Queues::default(), Rc::default());
        queues.put(Compute, || Err(CudaError::Device("lost".into())));
        note(&queues, &noted, Compute, 1);
        assert_eq!(queues.reach(queues.end(Compute)).unwrap_err().to_string(), "lost");
        assert!(noted.borrow().is_empty());
        queues.reach(queues.end(Compute)).unwrap();
        assert_eq!(*noted.borrow(), [1]);
    }

    #[test]
    fn a_stream_takes_work_as_long_as_its_queues_are_there() {
        let (queues, others) = (Queues::with_streams(), Queues::with_streams());
        let stream = queues.stream(ToHost);
        let done = Rc::new(Cell::new(0));
        let put = |stream: *mut c_void, number: u32| {
            let done = done.clone();
            put_on(stream, move || done.set(number));
        };
        put(stream, 1);
        put(others.stream(ToHost), 2);
        finish(queues.stream(Compute)).unwrap();
        assert_eq!(done.get(), 0);
        put(std::ptr::null_mut(), 3);
        assert_eq!(done.get(), 3, "nobody has the default stream");
        finish(stream).unwrap();
        assert_eq!(done.get(), 1);
        drop(queues);
        put(stream, 4);
        assert_eq!(done.get(), 4);
    }
}
