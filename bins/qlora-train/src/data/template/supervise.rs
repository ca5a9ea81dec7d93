//! Work on templates, done by threads that can be given up: comparisons, joins and texts of lists that hold others many
//! times over take no fuel, and nested values and expressions take stack.
//!
//! Fuel ends what is slow by its instructions. Memory ends nearly all of the rest: bytes at once, bytes of one text or
//! list, bytes over time, and requests. All of them are counted, with the same result everywhere. The clock is the last
//! resort, far above the time in which a counted limit is reached: it ends work that needs neither instructions nor
//! memory, such as comparing texts of megabytes a million times over.
//!
//! Only one piece of work at a time may take that much, however many threads render: a piece of work that needs more
//! than a small share waits until it is the only one that does (see `allocations`). Work that is given up keeps its
//! memory. Then nothing of that size is rendered any more, and the error ends the command.

use std::cell::Cell;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::super::guard::guarded;
use super::allocations::{Allowance, Beyond, Quota, Used, Verdict, metered};

/// Address space; memory is only taken for what is used of it.
const STACK_BYTES: usize = 512 << 20;
/// Stack of one piece of work, of which there is twice as much.
pub(super) const MAX_STACK: usize = STACK_BYTES / 2;
/// Stack that each piece of work may take at the same time as others.
const SHARE_STACK: usize = 16 << 20;
/// Processor time of one piece of work: some thirty times what a template takes to come to a counted limit. A fuzzer
/// takes a second for a finding.
pub(super) const MAX_SECONDS: u64 = match (FUZZED, cfg!(debug_assertions)) {
    (true, _) => 1,
    (false, false) => 30,
    (false, true) => 300,
};
/// Smaller limits for a fuzzer: work that is given up keeps its memory, and a fuzzer continues.
#[allow(unexpected_cfgs)]
pub(super) const FUZZED: bool = cfg!(fuzzing);
/// Memory of one piece of work. The longest text that is tokenized takes a tenth.
pub(super) const MAX_BYTES: i64 = if FUZZED { 8 << 20 } else { 256 << 20 };
/// Memory that each piece of work may take at the same time as others: far more than a usual conversation needs.
const SHARE_BYTES: i64 = if FUZZED { MAX_BYTES } else { 16 << 20 };
/// Memory beyond a share, for one piece of work at a time.
static ALLOWANCE: Allowance = Allowance::new();
/// Memory of one text or list: a text as long as one that is tokenized grows to twice its bytes. It is made within a
/// second.
pub(super) const MAX_PIECE: i64 = MAX_BYTES / 16 * 3;
/// Bytes of all requests for memory. Fuel pays for a sixth as many bytes of text.
pub(super) const MAX_ASKED: i64 = 8 * MAX_BYTES;
/// Requests for memory: two for each instruction that a template has fuel for.
pub(super) const MAX_REQUESTS: u64 = if FUZZED { 200_000 } else { 10_000_000 };
/// Seconds of wall time that count as one of processor time, where that is not known.
const CLOCK_SECONDS: f64 = 4.0;
/// Interval at which longer work is checked.
const LOOK: Duration = Duration::from_millis(20);

/// The reason why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Time,
    Memory,
    /// One text or list takes too much memory.
    Piece,
    /// Too much memory is taken over time: values are made without end.
    Asked,
    /// Too many requests for memory: values are copied or compared without end.
    Requests,
    /// Too much of the stack: values are nested too deeply, or hold themselves.
    Stack,
    /// Other work took too much, and left no memory beyond a share.
    Crowded,
    Panic,
    NoThread,
}

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Sender<Job>,
    /// The reason why it stopped, if it did.
    verdict: &'static Verdict,
    /// Its folder in `/proc`, where there is one.
    place: Option<String>,
}

thread_local! {
    /// The worker of this thread, while it is idle.
    static WORKER: Cell<Option<Worker>> = const { Cell::new(None) };
}

/// Limits of one piece of work.
struct Limits {
    /// Processor time.
    seconds: f64,
    memory: Quota,
}

/// The result of `work`. A worker that takes too much is left behind: the caller ends with an error before long, and
/// the process with it.
pub(super) fn supervised<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    supervised_costed(work).map(|(done, _)| done)
}

/// [`supervised`], which also returns what the work used.
pub(super) fn supervised_costed<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, Used), Stopped> {
    let memory = Quota {
        bytes: MAX_BYTES,
        share: SHARE_BYTES,
        allowance: &ALLOWANCE,
        piece: MAX_PIECE,
        asked: MAX_ASKED,
        requests: MAX_REQUESTS,
        stack: MAX_STACK,
        stack_share: SHARE_STACK,
    };
    supervised_within(&Limits { seconds: MAX_SECONDS as f64, memory }, work)
}

fn supervised_within<T: Send + 'static>(
    limits: &Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, Used), Stopped> {
    let worker = WORKER.take().or_else(Worker::start).ok_or(Stopped::NoThread)?;
    let (sender, result) = mpsc::sync_channel(1);
    let (memory, verdict) = (limits.memory, worker.verdict);
    let job = Box::new(move || {
        let (done, used) = metered(memory, verdict, || guarded(work));
        drop(sender.send(done.map(|done| (done, used))));
    });
    worker.jobs.send(job).map_err(|_| Stopped::NoThread)?;
    let mut started = Instant::now();
    let mut before: Option<f64> = None;
    let give_up = |why| {
        verdict.give_up(memory.allowance);
        Err(why)
    };
    let done = loop {
        match result.recv_timeout(LOOK) {
            Ok(Some(done)) => break Ok(done),
            Ok(None) | Err(RecvTimeoutError::Disconnected) => break Err(Stopped::Panic),
            Err(RecvTimeoutError::Timeout) => {
                match verdict.get() {
                    Some(Beyond::Bytes) => return Err(Stopped::Memory),
                    Some(Beyond::Piece) => return Err(Stopped::Piece),
                    Some(Beyond::Asked) => return Err(Stopped::Asked),
                    Some(Beyond::Requests) => return Err(Stopped::Requests),
                    Some(Beyond::Stack) => return Err(Stopped::Stack),
                    None if verdict.waits() && memory.allowance.is_lost() => return give_up(Stopped::Crowded),
                    // Waiting does not count as time.
                    None if verdict.waits() => started = Instant::now(),
                    None => {}
                }
                let seconds = match worker.processor_seconds() {
                    Some(now) => now - *before.get_or_insert(now),
                    None => started.elapsed().as_secs_f64() / CLOCK_SECONDS,
                };
                if seconds > limits.seconds {
                    return give_up(Stopped::Time);
                }
            }
        }
    };
    // A thread that went deep gives its stack back by ending.
    if !verdict.is_deep() {
        WORKER.set(Some(worker));
    }
    done
}

impl Worker {
    fn start() -> Option<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (sender, place) = mpsc::sync_channel(1);
        let run = move || {
            let own = fs::read_link("/proc/thread-self").ok();
            let _ = sender.send(own.map(|own| format!("/proc/{}", own.display())));
            for job in queue {
                job();
            }
        };
        thread::Builder::new().name("template".into()).stack_size(STACK_BYTES).spawn(run).ok()?;
        Some(Self { jobs, verdict: Box::leak(Box::default()), place: place.recv().ok()? })
    }

    /// Processor time of the thread so far, where it is known.
    fn processor_seconds(&self) -> Option<f64> {
        let place = self.place.as_ref()?;
        let nanoseconds = fs::read_to_string(format!("{place}/schedstat")).ok()?;
        Some(nanoseconds.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
    }
}

#[cfg(test)]
mod tests;
