//! Work on templates, done by threads that can be given up: comparisons, joins and texts of lists that hold others many
//! times over take no fuel, and nested values and expressions take stack.
//!
//! Fuel ends what is slow by its instructions. Memory, and how often it is asked for, ends nearly all of the rest; both
//! are counted, with the same result everywhere. Processor time is for what is left, which no template that is meant
//! well comes near to.
//!
//! The process takes so much once, however many threads render: a piece of work that needs more than a small share
//! waits until it is the only one that does (see `allocations`). What is given up keeps what it has. Then nothing of
//! that size is rendered any more, and the error ends the command.

use std::cell::Cell;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::super::guard::guarded;
use super::allocations::{Allowance, Beyond, Quota, Verdict, metered};

/// Address space; memory is only taken for what is used of it.
const STACK_BYTES: usize = 512 << 20;
/// Processor time of one piece of work. A template uses up its fuel in a third.
pub(super) const MAX_SECONDS: u64 = if cfg!(debug_assertions) { 60 } else { 1 };
/// Work that is given up keeps its memory, and a fuzzer goes on after it.
#[allow(unexpected_cfgs)]
pub(super) const FUZZED: bool = cfg!(fuzzing);
/// Memory of one piece of work. The longest text that is tokenized takes a tenth.
pub(super) const MAX_BYTES: i64 = if FUZZED { 8 << 20 } else { 256 << 20 };
/// Memory of one piece of work that others may take meanwhile: far more than a conversation of usual length needs.
const SHARE_BYTES: i64 = if FUZZED { MAX_BYTES } else { 16 << 20 };
/// Memory beyond a share, for one piece of work at a time.
static ALLOWANCE: Allowance = Allowance::new();
/// Requests for memory: two for each instruction that a template has fuel for.
pub(super) const MAX_REQUESTS: u64 = if FUZZED { 200_000 } else { 10_000_000 };
/// Seconds by the clock that stand for one of processor time, where that is not known.
const CLOCK_SECONDS: f64 = 12.0;
/// How often work that takes longer is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Time,
    Memory,
    /// Values are copied or compared without end.
    Requests,
    /// Others took too much, and left no memory for what is beyond a share.
    Crowded,
    Panic,
    NoThread,
}

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Sender<Job>,
    /// Why it stopped, if it did.
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

/// Like [`supervised`], with how often memory was asked for.
pub(super) fn supervised_costed<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, u64), Stopped> {
    let memory = Quota { bytes: MAX_BYTES, share: SHARE_BYTES, allowance: &ALLOWANCE, requests: MAX_REQUESTS };
    supervised_within(&Limits { seconds: MAX_SECONDS as f64, memory }, work)
}

fn supervised_within<T: Send + 'static>(
    limits: &Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(T, u64), Stopped> {
    let worker = WORKER.take().or_else(Worker::start).ok_or(Stopped::NoThread)?;
    let (sender, result) = mpsc::sync_channel(1);
    let (memory, verdict) = (limits.memory, worker.verdict);
    let job = Box::new(move || {
        let (done, requests) = metered(memory, verdict, || guarded(work));
        drop(sender.send(done.map(|done| (done, requests))));
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
                    Some(Beyond::Requests) => return Err(Stopped::Requests),
                    None if verdict.waits() && memory.allowance.is_lost() => return give_up(Stopped::Crowded),
                    // Whoever waits takes no time.
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
    WORKER.set(Some(worker));
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
mod tests {
    use super::*;

    #[test]
    fn results_come_back_and_panics_too() {
        assert_eq!(supervised(|| 7), Ok(7));
        assert_eq!(supervised(|| -> u8 { panic!("broken") }), Err(Stopped::Panic));
        assert_eq!(supervised(|| 8), Ok(8));
    }

    #[test]
    fn a_deep_stack_is_there() {
        fn depth(n: u64) -> u64 {
            if n == 0 { 0 } else { 1 + std::hint::black_box(depth(std::hint::black_box(n - 1))) }
        }
        assert_eq!(supervised(|| depth(1_000_000)), Ok(1_000_000));
    }

    // Each limit alone, so that a slow machine does not meet another one first.
    fn no_quota() -> Quota {
        let allowance = Box::leak(Box::new(Allowance::new()));
        Quota { bytes: i64::MAX, share: i64::MAX, allowance, requests: u64::MAX }
    }

    #[test]
    fn work_that_takes_no_end_is_given_up() {
        let started = Instant::now();
        let limits = Limits { seconds: 0.5, memory: no_quota() };
        assert_eq!(supervised_within(&limits, || while std::hint::black_box(true) {}), Err(Stopped::Time));
        assert!(started.elapsed() >= Duration::from_millis(500));
        assert_eq!(supervised(|| 9), Ok(9));
    }

    #[test]
    fn work_that_takes_all_memory_is_given_up() {
        let grow = || {
            let mut all: Vec<Vec<u8>> = Vec::new();
            loop {
                all.push(vec![1; 1 << 20]);
            }
        };
        let limits = Limits { seconds: f64::INFINITY, memory: Quota { bytes: 64 << 20, ..no_quota() } };
        assert_eq!(supervised_within::<()>(&limits, grow), Err(Stopped::Memory));
        let ask = || {
            loop {
                std::hint::black_box(vec![1u8; 16]);
            }
        };
        let limits = Limits { seconds: f64::INFINITY, memory: Quota { requests: 1000, ..no_quota() } };
        assert_eq!(supervised_within::<()>(&limits, ask), Err(Stopped::Requests));
        assert_eq!(supervised(|| 9), Ok(9));
    }

    /// Threads that all need more than a share take turns, and one that does not end lets the others go.
    #[test]
    fn what_needs_much_memory_takes_turns() {
        const SHARE: i64 = 1 << 20;
        let memory = Quota { bytes: 8 * SHARE, share: SHARE, ..no_quota() };
        let limits = |seconds| Limits { seconds, memory };
        let large = || {
            let large = std::hint::black_box(vec![1u8; 4 << 20]);
            thread::sleep(Duration::from_millis(5));
            large.len()
        };
        thread::scope(|scope| {
            let run =
                || scope.spawn(move || (0..4).map(|_| supervised_within(&limits(60.0), large)).collect::<Vec<_>>());
            let threads: Vec<_> = (0..4).map(|_| run()).collect();
            for done in threads {
                assert!(done.join().unwrap().into_iter().all(|done| done.is_ok_and(|(len, _)| len == 4 << 20)));
            }
            let endless = || {
                let large = std::hint::black_box(vec![1u8; 4 << 20]);
                while std::hint::black_box(true) {}
                large.len()
            };
            let endless = scope.spawn(move || supervised_within(&limits(1.0), endless));
            thread::sleep(Duration::from_millis(200));
            let others: Vec<_> = (0..3).map(|_| scope.spawn(move || supervised_within(&limits(60.0), large))).collect();
            assert_eq!(endless.join().unwrap(), Err(Stopped::Time));
            for other in others {
                assert_eq!(other.join().unwrap(), Err(Stopped::Crowded));
            }
            let small = || std::hint::black_box(vec![1u8; 1 << 19]).len();
            assert_eq!(supervised_within(&limits(60.0), small).map(|(len, _)| len), Ok(1 << 19));
        });
    }
}
