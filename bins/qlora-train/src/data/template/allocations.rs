//! Memory that a thread takes, counted where it is taken: the global allocator of the process.
//!
//! A template makes values of any size in one step (`'{:>9999}'.format(x)` a million times over, lists doubled sixty
//! times, their text), and what it makes is charged nothing by its engine. An allocator may neither fail, which would
//! end the process, nor unwind. So a thread that takes too much is stopped where it asks: its request never returns,
//! and who waits for its work finds out why. Threads that are not metered pay for a look at one flag.
//!
//! Many threads at work may take a small share each. Beyond its share a thread needs the allowance, which one thread
//! has at a time: the others wait where they ask, with no more than their share, until the work that has it is done.
//! Whether work is stopped depends on what it takes itself, never on what others take.
//!
//! All that any thread holds is counted too, in steps, so that a plan can name the most that was held.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

/// How often a thread that waits for the allowance looks.
const LOOK: Duration = Duration::from_millis(1);
/// Bytes that a thread takes or gives back before they are added to those of all threads.
const STEP: i64 = 64 << 10;

/// Larger pieces of memory grow without being copied.
const COPIED: i64 = 32 << 20;

/// Bytes of the heap that all threads hold, and the most that they held so far.
static HELD: AtomicI64 = AtomicI64::new(0);
static MOST: AtomicI64 = AtomicI64::new(0);

/// Limits of a metered piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Bytes at once
    pub bytes: i64,
    /// Bytes of them that are taken without the allowance
    pub share: i64,
    pub allowance: &'static Allowance,
    /// Times that memory is asked for: the work of what copies or compares values
    pub requests: u64,
}

/// Memory beyond a share, for one piece of work at a time.
#[derive(Debug)]
pub(super) struct Allowance(AtomicU8);

const FREE: u8 = 0;
const TAKEN: u8 = 1;
/// The work that has it was given up, and holds its memory.
const LOST: u8 = 2;

impl Allowance {
    pub const fn new() -> Self {
        Self(AtomicU8::new(FREE))
    }

    pub fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire) == LOST
    }

    fn set(&self, state: u8) {
        self.0.store(state, Ordering::Release);
    }
}

/// The limit that a thread went beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Bytes,
    Requests,
}

/// The place where a metered thread says that it is stopped, or waits.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    beyond: AtomicU8,
    waits: AtomicBool,
    has_allowance: AtomicBool,
    /// Set by who no longer waits for the work.
    given_up: AtomicBool,
}

impl Verdict {
    pub fn get(&self) -> Option<Beyond> {
        match self.beyond.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Beyond::Bytes),
            _ => Some(Beyond::Requests),
        }
    }

    /// Whether the thread waits for the allowance.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Says that nobody waits for the work any more. It takes no allowance from now on, and what it has is lost.
    pub fn give_up(&self, allowance: &Allowance) {
        self.given_up.store(true, Ordering::SeqCst);
        if self.has_allowance.load(Ordering::SeqCst) {
            allowance.set(LOST);
        }
    }

    /// Takes the allowance if it is free and someone waits for the work.
    fn takes(&self, allowance: &Allowance) -> bool {
        let take = || allowance.0.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if self.given_up.load(Ordering::SeqCst) || !take() {
            return false;
        }
        self.has_allowance.store(true, Ordering::SeqCst);
        // Who gives the work up at this moment sees that it has the allowance, or is seen here.
        let is_wanted = !self.given_up.load(Ordering::SeqCst);
        if !is_wanted {
            self.give_back(allowance);
        }
        is_wanted
    }

    fn give_back(&self, allowance: &Allowance) {
        if self.has_allowance.swap(false, Ordering::SeqCst) {
            allowance.set(FREE);
        }
    }

    fn set(&self, beyond: Beyond) {
        self.beyond.store(if beyond == Beyond::Bytes { 1 } else { 2 }, Ordering::Release);
    }
}

struct Meter {
    /// Set while work is metered.
    verdict: Cell<Option<&'static Verdict>>,
    allowance: Cell<Option<&'static Allowance>>,
    /// Bytes that are left
    bytes: Cell<i64>,
    /// Bytes that have to be left without the allowance
    reserved: Cell<i64>,
    requests: Cell<u64>,
    /// Bytes that this thread took, less those given back, since it added them to those of all
    uncounted: Cell<i64>,
}

thread_local! {
    // Made without an allocation, and never destroyed: it is there whenever the allocator is called.
    static METER: Meter = const {
        Meter {
            verdict: Cell::new(None),
            allowance: Cell::new(None),
            bytes: Cell::new(0),
            reserved: Cell::new(0),
            requests: Cell::new(0),
            uncounted: Cell::new(0),
        }
    };
}

/// Runs `work` on this thread within a quota, and says how often it asked for memory. Beyond the quota, this does not
/// return, and the verdict says why.
pub(super) fn metered<T>(quota: Quota, verdict: &'static Verdict, work: impl FnOnce() -> T) -> (T, u64) {
    METER.with(|meter| {
        meter.bytes.set(quota.bytes);
        meter.reserved.set((quota.bytes - quota.share).max(0));
        meter.allowance.set(Some(quota.allowance));
        meter.requests.set(quota.requests);
        meter.verdict.set(Some(verdict));
    });
    let done = work();
    METER.with(|meter| {
        meter.verdict.set(None);
        verdict.give_back(quota.allowance);
        (done, quota.requests - meter.requests.get())
    })
}

/// Bytes that the heap had at its largest so far, with what the system's allocator keeps beside each piece.
pub fn heap_peak() -> u64 {
    u64::try_from(MOST.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Counts the heap's largest size from now on: what reading the command line took is gone when rows are read. Until the
/// heap is trimmed, large pieces go back to the system when they are freed, wherever they lie: the allocator would keep
/// ever larger ones, in another order of threads others, and the process would hold more than the heap had.
pub fn begin_heap_peak() {
    MOST.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    keep_pieces_below(1 << 20);
}

/// Freed pieces of this many bytes and more are not kept.
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), expect(unused_variables))]
fn keep_pieces_below(bytes: i32) {
    // SAFETY: the calls set numbers of the allocator, under its locks.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * bytes);
    }
}

/// Gives the system's memory back that the heap has freed and kept: what is left is what is held, whatever was freed
/// before, in whatever order threads worked. Freed pieces are kept from now on: each step of a run asks for the same.
pub fn trim_heap() {
    // SAFETY: the call works on the allocator's own state, under its locks, and touches no piece in use.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
    // The most that the allocator takes, and comes to by itself.
    keep_pieces_below(32 << 20);
}

impl Meter {
    /// Counts bytes among those of all threads.
    fn hold(&self, bytes: i64) {
        let bytes = self.uncounted.get().saturating_add(bytes);
        let is_step = !(-STEP..=STEP).contains(&bytes);
        self.uncounted.set(if is_step { 0 } else { bytes });
        if is_step {
            let held = HELD.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            MOST.fetch_max(held, Ordering::Relaxed);
        }
    }

    /// Waits for the allowance. Nothing here asks for memory.
    fn take_allowance(&self, verdict: &Verdict) {
        let Some(allowance) = self.allowance.get() else { return };
        while !verdict.takes(allowance) {
            verdict.waits.store(true, Ordering::Release);
            thread::sleep(LOOK);
        }
        verdict.waits.store(false, Ordering::Release);
        self.reserved.set(0);
    }

    /// Stops this thread for good.
    fn stop(&self, verdict: &Verdict, beyond: Beyond) -> ! {
        // Nothing below asks for memory.
        self.verdict.set(None);
        if let Some(allowance) = self.allowance.get()
            && verdict.has_allowance.load(Ordering::SeqCst)
        {
            allowance.set(LOST);
        }
        verdict.set(beyond);
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

/// Counts a request for more memory, or for less.
fn count(bytes: i64) {
    METER.with(|meter| {
        let Some(verdict) = meter.verdict.get() else { return };
        let left = meter.bytes.get().saturating_sub(bytes);
        meter.bytes.set(left);
        if left < 0 {
            meter.stop(verdict, Beyond::Bytes);
        }
        if left < meter.reserved.get() {
            meter.take_allowance(verdict);
        }
        match meter.requests.get().checked_sub(1) {
            None => meter.stop(verdict, Beyond::Requests),
            Some(left) => meter.requests.set(left),
        }
    });
}

/// Counts a piece of memory that was taken; nothing where there was none.
fn taken(pointer: *mut u8, bytes: i64) -> *mut u8 {
    if !pointer.is_null() {
        METER.with(|meter| meter.hold(piece(bytes)));
    }
    pointer
}

/// Counts a piece of memory whose size changed. Up to a size it is copied, and there twice for a moment.
fn resized(pointer: *mut u8, before: i64, after: i64) -> *mut u8 {
    if !pointer.is_null() {
        METER.with(|meter| match before < COPIED {
            true => {
                meter.hold(piece(after));
                meter.hold(-piece(before));
            }
            false => meter.hold(piece(after) - piece(before)),
        });
    }
    pointer
}

fn give_back(bytes: i64) {
    METER.with(|meter| {
        if meter.verdict.get().is_some() {
            meter.bytes.set(meter.bytes.get().saturating_add(bytes));
        }
        meter.hold(-piece(bytes));
    });
}

/// Bytes that a piece takes: a word beside it, in steps of two, and four at least.
fn piece(bytes: i64) -> i64 {
    (bytes.saturating_add(8 + 15) & !15).max(32)
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
        taken(unsafe { System.alloc(layout) }, size(layout.size()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise.
        taken(unsafe { System.alloc_zeroed(layout) }, size(layout.size()))
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let (before, after) = (size(layout.size()), size(bytes));
        count(after.saturating_sub(before));
        // SAFETY: the caller's promise.
        resized(unsafe { System.realloc(pointer, layout, bytes) }, before, after)
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

    /// A quota with an allowance of its own.
    fn quota(bytes: i64, share: i64, requests: u64) -> Quota {
        Quota { bytes, share, allowance: Box::leak(Box::new(Allowance::new())), requests }
    }

    /// The answer of a thread of its own, or what it went beyond.
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
        for share in [0, 1 << 18, 1 << 20] {
            let quota = || quota(1 << 20, share, 1000);
            // Memory that is given back may be taken again, 900 times.
            assert_eq!(run(quota(), || (0..900).map(|_| take(1 << 19)).sum()), Ok(900 << 19));
            assert_eq!(run(quota(), || take((1 << 20) + 1)), Err(Beyond::Bytes));
            let several = || (0..4).map(|_| vec![0u8; 300 << 10]).collect::<Vec<_>>().len();
            assert_eq!(run(quota(), several), Err(Beyond::Bytes));
            assert_eq!(run(quota(), || (0..1001).map(|_| take(1)).sum()), Err(Beyond::Requests));
            let grow = || {
                let mut text = String::new();
                (0..2 << 20).for_each(|_| text.push('a'));
                text.len()
            };
            assert_eq!(run(quota(), grow), Err(Beyond::Bytes));
            assert_eq!(run(quota(), || vec![0u8; 2 << 20].len()), Err(Beyond::Bytes));
        }
    }

    #[test]
    fn work_that_is_not_metered_takes_what_it_likes() {
        let verdict: &'static Verdict = Box::leak(Box::default());
        assert_eq!(metered(quota(1 << 10, 1 << 10, 10), verdict, || take(1)), (1, 1));
        assert_eq!((0..100).map(|_| take(1 << 20)).sum::<usize>(), 100 << 20);
        assert_eq!(verdict.get(), None);
    }

    /// Eight threads that each take ten times their share all come to an end, and never hold more together than their
    /// shares and one allowance.
    #[test]
    fn what_is_beyond_a_share_is_taken_by_one_at_a_time() {
        const SHARE: usize = 1 << 20;
        const WHOLE: usize = 10 * SHARE;
        static NOW: AtomicI64 = AtomicI64::new(0);
        let quota = quota(2 * WHOLE as i64, SHARE as i64, 1000);
        let work = || {
            let small = vec![1u8; SHARE / 2];
            let large = vec![1u8; WHOLE];
            assert_eq!(NOW.fetch_add(1, Ordering::SeqCst), 0, "another thread has the allowance");
            thread::sleep(Duration::from_millis(2));
            NOW.fetch_sub(1, Ordering::SeqCst);
            small.len() + large.len()
        };
        thread::scope(|scope| {
            let verdict = || -> &'static Verdict { Box::leak(Box::default()) };
            let run = || scope.spawn(move || (0..5).map(|_| metered(quota, verdict(), work).0).sum::<usize>());
            let threads: Vec<_> = (0..8).map(|_| run()).collect();
            threads.into_iter().for_each(|done| assert_eq!(done.join().unwrap(), 5 * (SHARE / 2 + WHOLE)));
        });
        assert!(!quota.allowance.is_lost());
    }

    /// Who waits for an allowance that is lost can see it, and takes nothing once given up.
    #[test]
    fn an_allowance_is_lost_with_the_work_that_has_it() {
        let quota = quota(4 << 20, 1 << 20, 1000);
        assert_eq!(run(quota, || take(5 << 20)), Err(Beyond::Bytes));
        assert!(!quota.allowance.is_lost(), "it was stopped before it took the allowance");
        assert_eq!(run(quota, || take(2 << 20) + vec![vec![1u8; 3 << 20]; 2].len()), Err(Beyond::Bytes));
        assert!(quota.allowance.is_lost());
        let verdict: &'static Verdict = Box::leak(Box::default());
        let (sender, done) = mpsc::sync_channel(1);
        thread::spawn(move || sender.send(metered(quota, verdict, || take(2 << 20)).0));
        while !verdict.waits() {
            thread::sleep(LOOK);
        }
        verdict.give_up(quota.allowance);
        assert_eq!(done.recv_timeout(20 * LOOK), Err(mpsc::RecvTimeoutError::Timeout));
        assert_eq!(run(quota, || take(1 << 19)), Ok(1 << 19), "a share is there for everyone");
    }

    /// The most that the heap had is known to a few steps, however it was taken.
    #[test]
    fn the_most_that_was_held_is_counted() {
        let slack = 64 * STEP as u64;
        let large = vec![1u8; 64 << 20];
        let many: Vec<Vec<u8>> = (0..64 << 10).map(|_| vec![1; 1000]).collect();
        // 1,000 bytes take 1,008 with the word beside them.
        let held = (64 << 20) + (64 << 10) * 1008;
        let most = heap_peak();
        assert!((held..held + (8 << 20)).contains(&(most + slack / 2)), "{most} of {held}");
        drop((large, many));
        assert_eq!(heap_peak(), most, "giving back is not taking");
        let mut grown: Vec<u8> = Vec::new();
        (0..160).for_each(|_| grown.extend_from_slice(&[1; 1 << 20]));
        let capacity = grown.capacity() as u64;
        assert!(heap_peak() + slack >= capacity && heap_peak() <= capacity + (32 << 20) + slack, "{capacity}");
    }
}
