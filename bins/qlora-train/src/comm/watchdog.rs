//! A thread that ends the process where something takes longer than it may.
//!
//! Time is counted in turns of the thread: a process that was suspended and resumes does not take the others for
//! hanging.

use super::failure::Failure;
use crate::error::{Context, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Milliseconds of a turn
const TURN: u64 = 50;

#[derive(Default)]
struct State {
    is_over: bool,
    /// Turn at which the process ends, and its failure
    limit: Option<(u64, Failure)>,
}

struct Shared {
    turns: AtomicU64,
    state: Mutex<State>,
    end: Box<dyn Fn(&Failure) + Send + Sync>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(TURN));
            let turn = self.turns.fetch_add(1, Ordering::Relaxed) + 1;
            let expired = {
                let mut state = self.state();
                if state.is_over {
                    return;
                }
                state.limit.take_if(|(limit, _)| turn >= *limit)
            };
            if let Some((_, failure)) = expired {
                (self.end)(&failure);
            }
        }
    }
}

/// The thread, as long as this is held.
pub(super) struct Watchdog(Arc<Shared>);

impl Watchdog {
    /// `end` ends the process.
    pub fn start(end: impl Fn(&Failure) + Send + Sync + 'static) -> Result<Self> {
        let (turns, state) = (AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared { turns, state, end: Box::new(end) });
        let watched = shared.clone();
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watched.watch())
            .context(|| "the thread that watches the other processes".to_owned())?;
        Ok(Self(shared))
    }

    /// Time since the start, without that in which the process was stopped.
    pub fn now(&self) -> Duration {
        Duration::from_millis(TURN * self.0.turns.load(Ordering::Relaxed))
    }

    /// Ends the process by `failure` unless the limit is lifted within `patience`.
    pub fn limit(&self, patience: Duration, failure: Failure) {
        let turns = (patience.as_millis() as u64).div_ceil(TURN).max(1);
        self.0.state().limit = Some((self.0.turns.load(Ordering::Relaxed) + turns, failure));
    }

    /// Takes the limit away.
    pub fn lift(&self) {
        self.0.state().limit = None;
    }

    /// Ends the process now.
    pub fn end(&self, failure: &Failure) {
        (self.0.end)(failure);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.state().is_over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_limit_ends_the_process_unless_it_is_lifted_in_time() {
        let (to, ended) = channel();
        let to = Mutex::new(to);
        let watchdog = Watchdog::start(move |failure| {
            let _ = to.lock().unwrap().send(failure.message.clone());
        })
        .unwrap();
        let failure = |message: &str| Failure::new(0, message.to_owned());
        watchdog.limit(Duration::from_secs(600), failure("late"));
        // Long enough for a busy machine to come to the next line.
        watchdog.limit(Duration::from_millis(800), failure("lifted"));
        watchdog.lift();
        assert!(ended.recv_timeout(Duration::from_millis(1200)).is_err());
        let begun = watchdog.now();
        watchdog.limit(Duration::from_millis(120), failure("passed"));
        assert_eq!(ended.recv().unwrap(), "passed");
        assert!(watchdog.now() - begun >= Duration::from_millis(120));
        // Once.
        assert!(ended.recv_timeout(Duration::from_millis(200)).is_err());
        watchdog.limit(Duration::ZERO, failure("at once"));
        assert_eq!(ended.recv().unwrap(), "at once");
        watchdog.end(&failure("now"));
        assert_eq!(ended.recv().unwrap(), "now");
        watchdog.limit(Duration::from_millis(100), failure("over"));
        drop(watchdog);
        // The thread has gone, and with it the other end.
        assert!(ended.recv().is_err());
    }
}
