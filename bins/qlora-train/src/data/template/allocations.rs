//! Memory of a thread, counted in the global allocator of the process.
//!
//! A template makes values of any size in one step (`'{:>9999}'.format(x)` a million times over, lists doubled sixty
//! times, their text), and its engine does not limit their memory. An allocator may neither fail, which would end the
//! process, nor unwind. So a thread that takes too much is stopped at its request: the request never returns, and the
//! waiting caller learns the reason. Threads that are not metered only check one flag.
//!
//! Work that goes too deep into its stack is stopped in the same way: `{% set n.s = n %}` makes a value whose text has
//! no end, and each level of it asks for memory.
//!
//! Many threads at work may take a small share each, of memory and of stack. Beyond its share a thread needs the
//! allowance, which one thread has at a time: the others wait where they ask, with no more than their share, until the
//! work that has it is done. Work is stopped for the memory that it takes itself, never for what others take.
//!
//! All that any thread holds is counted too, in steps, so that a plan can name the most that was held.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

/// Interval at which a thread that waits for the allowance checks for it.
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
    /// Bytes of one piece: bounds the work of one step that makes a text or a list
    pub piece: i64,
    /// Bytes of all requests, whatever was given back: bounds the work of making values over and over
    pub asked: i64,
    /// Number of requests for memory: bounds the work of copying or comparing values
    pub requests: u64,
    /// Bytes of the stack
    pub stack: usize,
    /// Bytes of them that are taken without the allowance
    pub stack_share: usize,
}

/// Part of a quota that finished work used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Number of requests for memory
    pub requests: u64,
    /// Bytes of all requests
    pub asked: i64,
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
#[repr(u8)]
pub(super) enum Beyond {
    Bytes = 1,
    Piece,
    Asked,
    Requests,
    Stack,
}

/// State of a metered thread: stopped, or waiting.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    beyond: AtomicU8,
    waits: AtomicBool,
    has_allowance: AtomicBool,
    /// Set once the thread took more of its stack than a share, which it keeps until it ends.
    is_deep: AtomicBool,
    /// Set when nobody waits for the work any more.
    given_up: AtomicBool,
}

impl Verdict {
    pub fn get(&self) -> Option<Beyond> {
        match self.beyond.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Beyond::Bytes),
            2 => Some(Beyond::Piece),
            3 => Some(Beyond::Asked),
            4 => Some(Beyond::Requests),
            _ => Some(Beyond::Stack),
        }
    }

    /// True if the thread waits for the allowance.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// True if the thread took more of its stack than a share.
    pub fn is_deep(&self) -> bool {
        self.is_deep.load(Ordering::Acquire)
    }

    /// Gives the work up. It gets no allowance from now on, and one that it holds is lost.
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
        // If the work is given up at this moment, either that side sees the allowance taken, or it is noticed here.
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
        self.beyond.store(beyond as u8, Ordering::Release);
    }
}

struct Meter {
    /// Set while work is metered.
    verdict: Cell<Option<&'static Verdict>>,
    allowance: Cell<Option<&'static Allowance>>,
    /// Bytes that are left
    bytes: Cell<i64>,
    /// Bytes that must be left without the allowance
    reserved: Cell<i64>,
    /// Bytes that one piece may have
    piece: Cell<i64>,
    /// Bytes that may still be asked for
    asked: Cell<i64>,
    requests: Cell<u64>,
    /// Address that the stack, which grows downwards, may not come below
    deepest: Cell<usize>,
    /// Address that the stack may not come below without the allowance
    shared: Cell<usize>,
    /// Bytes that this thread took, less those freed, since it last added them to the total of all threads
    uncounted: Cell<i64>,
}

thread_local! {
    // Created without an allocation, and never destroyed: it exists whenever the allocator is called.
    static METER: Meter = const {
        Meter {
            verdict: Cell::new(None),
            allowance: Cell::new(None),
            bytes: Cell::new(0),
            reserved: Cell::new(0),
            piece: Cell::new(0),
            asked: Cell::new(0),
            requests: Cell::new(0),
            deepest: Cell::new(0),
            shared: Cell::new(0),
            uncounted: Cell::new(0),
        }
    };
}

/// Runs `work` on this thread within a quota; returns its result and what it used. Beyond the quota it does not return,
/// and the verdict has the reason.
pub(super) fn metered<T>(quota: Quota, verdict: &'static Verdict, work: impl FnOnce() -> T) -> (T, Used) {
    METER.with(|meter| {
        meter.bytes.set(quota.bytes);
        meter.reserved.set((quota.bytes - quota.share).max(0));
        meter.allowance.set(Some(quota.allowance));
        meter.piece.set(quota.piece);
        meter.asked.set(quota.asked);
        meter.requests.set(quota.requests);
        let here = stack_address();
        meter.deepest.set(here.saturating_sub(quota.stack));
        meter.shared.set(here.saturating_sub(quota.stack_share));
        meter.verdict.set(Some(verdict));
    });
    let done = work();
    METER.with(|meter| {
        meter.verdict.set(None);
        verdict.give_back(quota.allowance);
        let (requests, asked) = (quota.requests - meter.requests.get(), quota.asked - meter.asked.get());
        (done, Used { requests, asked })
    })
}

/// Largest size of the heap so far, in bytes, with the system allocator's overhead for each piece.
pub fn heap_peak() -> u64 {
    u64::try_from(MOST.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Counts the heap's largest size from now on: the memory for reading the command line is free again when rows are
/// read. Until the heap is trimmed, large pieces return to the system when they are freed: otherwise the allocator
/// would keep ever larger ones, depending on the order of threads, and the process would hold more than the heap.
pub fn begin_heap_peak() {
    MOST.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
    return_large_pieces();
}

/// Freed pieces of a MiB and more return to the system from now on, in place of being kept by the heap of the thread
/// that asked for them.
pub fn return_large_pieces() {
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

/// Returns memory that the heap has freed but kept to the system, so that the process holds only what is in use,
/// whatever the order of threads. Freed pieces are kept from now on: each step of a run asks for the same.
pub fn trim_heap() {
    // SAFETY: the call works on the allocator's own state, under its locks, and touches no piece in use.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
    // The largest value that the allocator accepts, and the one that it would adapt to by itself.
    keep_pieces_below(32 << 20);
}

impl Meter {
    /// Adds bytes to the total of all threads.
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

/// Address of about the end of this thread's stack.
#[inline(never)]
fn stack_address() -> usize {
    let here = std::hint::black_box(0u8);
    std::ptr::from_ref(&here).addr()
}

/// Counts a request for more memory, or for less, for a piece that has so many bytes then.
fn count(bytes: i64, piece: i64) {
    METER.with(|meter| {
        let Some(verdict) = meter.verdict.get() else { return };
        let here = stack_address();
        if here < meter.deepest.get() {
            meter.stop(verdict, Beyond::Stack);
        }
        if piece > meter.piece.get() {
            meter.stop(verdict, Beyond::Piece);
        }
        let left = meter.asked.get().saturating_sub(bytes.max(0));
        meter.asked.set(left);
        if left < 0 {
            meter.stop(verdict, Beyond::Asked);
        }
        let left = meter.bytes.get().saturating_sub(bytes);
        meter.bytes.set(left);
        if left < 0 {
            meter.stop(verdict, Beyond::Bytes);
        }
        let is_deep = here < meter.shared.get();
        if is_deep {
            verdict.is_deep.store(true, Ordering::Release);
        }
        if left < meter.reserved.get() || (is_deep && !verdict.has_allowance.load(Ordering::Relaxed)) {
            meter.take_allowance(verdict);
        }
        match meter.requests.get().checked_sub(1) {
            None => meter.stop(verdict, Beyond::Requests),
            Some(left) => meter.requests.set(left),
        }
    });
}

/// Counts an allocation; a null pointer counts nothing.
fn taken(pointer: *mut u8, bytes: i64) -> *mut u8 {
    if !pointer.is_null() {
        METER.with(|meter| meter.hold(piece(bytes)));
    }
    pointer
}

/// Counts a reallocation. Up to a size it is a copy, and both pieces exist for a moment.
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

/// Bytes of a piece with its overhead: one more word, rounded up to two words, at least four.
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
        count(size(layout.size()), size(layout.size()));
        // SAFETY: the caller's promise.
        taken(unsafe { System.alloc(layout) }, size(layout.size()))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()), size(layout.size()));
        // SAFETY: the caller's promise.
        taken(unsafe { System.alloc_zeroed(layout) }, size(layout.size()))
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let (before, after) = (size(layout.size()), size(bytes));
        count(after.saturating_sub(before), after);
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
mod tests;
