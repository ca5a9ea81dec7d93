//! Work on templates, done by threads that can be given up: comparisons, joins and texts of lists that hold others many
//! times over take no fuel, and nested values and expressions take stack.
//!
//! Fuel ends what is slow by its instructions, with the same result everywhere. This is for the rest, which no template
//! that is meant well comes near to.

use std::cell::Cell;
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::super::guard::guarded;

/// Address space; memory is only taken for what is used of it.
const STACK_BYTES: usize = 512 << 20;
/// Processor time of one piece of work. A template uses up its fuel in less.
pub(super) const MAX_SECONDS: u64 = if cfg!(debug_assertions) { 60 } else { 3 };
/// Growth of the whole process meanwhile.
pub(super) const MAX_BYTES: u64 = 2 << 30;
/// Seconds by the clock that stand for one of processor time, where that is not known.
const CLOCK_SECONDS: f64 = 12.0;
/// How often work that takes longer is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    Time,
    Memory,
    Panic,
    NoThread,
}

type Job = Box<dyn FnOnce() + Send>;

struct Worker {
    jobs: Sender<Job>,
    /// Its folder in `/proc`, where there is one.
    place: Option<String>,
}

thread_local! {
    /// The worker of this thread, while it is idle.
    static WORKER: Cell<Option<Worker>> = const { Cell::new(None) };
}

/// What one piece of work may take.
struct Limits {
    /// Processor time.
    seconds: f64,
    /// Growth of the whole process.
    bytes: u64,
}

/// The result of `work`. A worker that takes too much is left behind: the caller ends with an error before long, and
/// the process with it.
pub(super) fn supervised<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    supervised_within(&Limits { seconds: MAX_SECONDS as f64, bytes: MAX_BYTES }, work)
}

fn supervised_within<T: Send + 'static>(
    limits: &Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stopped> {
    let worker = WORKER.take().or_else(Worker::start).ok_or(Stopped::NoThread)?;
    let (sender, result) = mpsc::sync_channel(1);
    let job = Box::new(move || drop(sender.send(guarded(work))));
    worker.jobs.send(job).map_err(|_| Stopped::NoThread)?;
    let started = Instant::now();
    let mut before: Option<Usage> = None;
    let done = loop {
        match result.recv_timeout(LOOK) {
            Ok(Some(done)) => break Ok(done),
            Ok(None) | Err(RecvTimeoutError::Disconnected) => break Err(Stopped::Panic),
            Err(RecvTimeoutError::Timeout) => {
                let now = worker.usage();
                let before = *before.get_or_insert(now);
                let seconds = match (before.seconds, now.seconds) {
                    (Some(before), Some(now)) => now - before,
                    _ => started.elapsed().as_secs_f64() / CLOCK_SECONDS,
                };
                if seconds > limits.seconds {
                    return Err(Stopped::Time);
                }
                if now.bytes.saturating_sub(before.bytes) > limits.bytes {
                    return Err(Stopped::Memory);
                }
            }
        }
    };
    WORKER.set(Some(worker));
    done
}

#[derive(Clone, Copy)]
struct Usage {
    /// Processor time of the worker.
    seconds: Option<f64>,
    /// Memory of the process; 0 where it is not known.
    bytes: u64,
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
        Some(Self { jobs, place: place.recv().ok()? })
    }

    fn usage(&self) -> Usage {
        let number = |file: &str, index: usize| -> Option<f64> {
            fs::read_to_string(file).ok()?.split_whitespace().nth(index)?.parse().ok()
        };
        let nanoseconds = self.place.as_ref().and_then(|place| number(&format!("{place}/schedstat"), 0));
        // Resident pages, of 4 KiB at least.
        let pages = number("/proc/self/statm", 1).unwrap_or(0.0);
        Usage { seconds: nanoseconds.map(|ns| ns * 1e-9), bytes: pages as u64 * 4096 }
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

    // Each limit alone, so that a slow machine does not meet the other one first.
    #[test]
    fn work_that_takes_no_end_is_given_up() {
        let started = Instant::now();
        let limits = Limits { seconds: 0.5, bytes: u64::MAX };
        assert_eq!(supervised_within(&limits, || while std::hint::black_box(true) {}), Err(Stopped::Time));
        assert!(started.elapsed() >= Duration::from_millis(500));
        assert_eq!(supervised(|| 9), Ok(9));
    }

    #[test]
    fn work_that_takes_all_memory_is_given_up() {
        let grow = || {
            let mut all: Vec<Vec<u8>> = Vec::new();
            while all.len() < 40 {
                all.push(vec![1; 16 << 20]);
                thread::sleep(Duration::from_millis(30));
            }
            thread::sleep(Duration::from_secs(600));
        };
        let limits = Limits { seconds: f64::INFINITY, bytes: 256 << 20 };
        assert_eq!(supervised_within(&limits, grow), Err(Stopped::Memory));
    }
}
