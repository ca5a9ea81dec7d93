//! Memory that a thread takes, counted where it is taken: the global allocator of the process.
//!
//! A template makes values of any size in one step (`'{:>9999}'.format(x)` a million times over, lists doubled sixty
//! times, their text), and what it makes is charged nothing by its engine. An allocator may neither fail, which would
//! end the process, nor unwind. So a thread that takes too much is stopped where it asks: its request never returns,
//! and who waits for its work finds out why. Threads that are not metered pay for a look at one flag.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

/// Limits of a metered piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Bytes at once
    pub bytes: i64,
    /// Times that memory is asked for: the work of what copies or compares values
    pub requests: u64,
}

/// The limit that a thread went beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Bytes,
    Requests,
}

/// The place where a stopped thread says that it is.
#[derive(Debug, Default)]
pub(super) struct Verdict(AtomicU8);

impl Verdict {
    pub fn get(&self) -> Option<Beyond> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Beyond::Bytes),
            _ => Some(Beyond::Requests),
        }
    }

    fn set(&self, beyond: Beyond) {
        self.0.store(if beyond == Beyond::Bytes { 1 } else { 2 }, Ordering::Release);
    }
}

struct Meter {
    /// Set while work is metered.
    verdict: Cell<Option<&'static Verdict>>,
    bytes: Cell<i64>,
    requests: Cell<u64>,
}

thread_local! {
    // Made without an allocation, and never destroyed: it is there whenever the allocator is called.
    static METER: Meter =
        const { Meter { verdict: Cell::new(None), bytes: Cell::new(0), requests: Cell::new(0) } };
}

/// Runs `work` on this thread within a quota, and says how often it asked for memory. Beyond the quota, this does not
/// return, and the verdict says why.
pub(super) fn metered<T>(quota: Quota, verdict: &'static Verdict, work: impl FnOnce() -> T) -> (T, u64) {
    METER.with(|meter| {
        meter.bytes.set(quota.bytes);
        meter.requests.set(quota.requests);
        meter.verdict.set(Some(verdict));
    });
    let done = work();
    METER.with(|meter| meter.verdict.set(None));
    (done, quota.requests - METER.with(|meter| meter.requests.get()))
}

/// Counts a request for more memory, or for less.
fn count(bytes: i64) {
    METER.with(|meter| {
        let Some(verdict) = meter.verdict.get() else { return };
        let bytes = meter.bytes.get() - bytes;
        meter.bytes.set(bytes);
        let beyond = match meter.requests.get().checked_sub(1) {
            _ if bytes < 0 => Beyond::Bytes,
            None => Beyond::Requests,
            Some(left) => return meter.requests.set(left),
        };
        // Nothing below asks for memory.
        meter.verdict.set(None);
        verdict.set(beyond);
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    });
}

fn give_back(bytes: i64) {
    METER.with(|meter| {
        if meter.verdict.get().is_some() {
            meter.bytes.set(meter.bytes.get() + bytes);
        }
    });
}

struct Counted;

/// A layout has at most isize::MAX bytes.
fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

// SAFETY: every request is the system's own, with the arguments that came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(size(bytes) - size(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give_back(size(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What a thread of its own answers, or what it went beyond.
    fn run(quota: Quota, work: fn() -> usize) -> Result<usize, Beyond> {
        let verdict: &'static Verdict = Box::leak(Box::default());
        let (sender, done) = mpsc::sync_channel(1);
        thread::spawn(move || sender.send(metered(quota, verdict, work).0));
        loop {
            match (done.recv_timeout(Duration::from_millis(1)), verdict.get()) {
                (Ok(answer), _) => return Ok(answer),
                (_, Some(beyond)) => return Err(beyond),
                _ => {}
            }
        }
    }

    fn take(bytes: usize) -> usize {
        std::hint::black_box(vec![1u8; bytes]).len()
    }

    #[test]
    fn work_is_stopped_where_it_asks_for_too_much() {
        let quota = Quota { bytes: 1 << 20, requests: 1000 };
        // What is given back may be taken again, 900 times.
        assert_eq!(run(quota, || (0..900).map(|_| take(1 << 19)).sum()), Ok(900 << 19));
        assert_eq!(run(quota, || take((1 << 20) + 1)), Err(Beyond::Bytes));
        assert_eq!(run(quota, || (0..4).map(|_| vec![0u8; 300 << 10]).collect::<Vec<_>>().len()), Err(Beyond::Bytes));
        assert_eq!(run(quota, || (0..1001).map(|_| take(1)).sum()), Err(Beyond::Requests));
        let grow = || {
            let mut text = String::new();
            (0..2 << 20).for_each(|_| text.push('a'));
            text.len()
        };
        assert_eq!(run(quota, grow), Err(Beyond::Bytes));
        assert_eq!(run(quota, || vec![0u8; 2 << 20].len()), Err(Beyond::Bytes));
    }

    #[test]
    fn work_that_is_not_metered_takes_what_it_likes() {
        let verdict: &'static Verdict = Box::leak(Box::default());
        assert_eq!(metered(Quota { bytes: 1 << 10, requests: 10 }, verdict, || take(1)), (1, 1));
        assert_eq!((0..100).map(|_| take(1 << 20)).sum::<usize>(), 100 << 20);
        assert_eq!(verdict.get(), None);
    }
}
