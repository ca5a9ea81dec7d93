//! Connections between ranks, watched: each has a thread that reads it, and one thread sends and counts signs of life
//! (heartbeats), so that a rank that dies or stops is noticed while the others compute.

use super::failure::Failure;
use super::wire::{self, Frame, Kind};
use crate::error::{Context, Error, Result};
use crate::report::print_error;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Limit above the largest bucket of gradients and the longest log of a run
pub(super) const MAX_MESSAGE: u64 = 1 << 32;
/// Interval between two checks whether the run has failed
const LOOK: Duration = Duration::from_millis(50);
/// Time in which another rank must accept the reason why the run ends
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A process of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub host: String,
    /// Name of the machine, equal for all its processes
    pub machine: String,
    /// Processors that it may use, as the system lists them
    pub processors: String,
    pub process: u32,
}

impl Peer {
    pub fn name(&self, rank: usize) -> String {
        format!("rank {rank} ({}, process {})", self.host, self.process)
    }
}

/// The other end of a connection.
struct Other {
    rank: usize,
    stream: TcpStream,
    /// Held while a frame is written
    writing: Mutex<()>,
    /// Intervals since something was last heard
    silent: AtomicU32,
}

impl Other {
    /// Sends the other end the reason why the run ends. If it accepts no more bytes, it is given up at `deadline`.
    fn tell(&self, failure: &[u8], deadline: Instant) {
        // A sign of life takes no time.
        let deadline = deadline.max(Instant::now() + LOOK);
        let _writing = loop {
            match self.writing.try_lock() {
                Ok(writing) => break writing,
                Err(TryLockError::Poisoned(error)) => break error.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK / 5),
                Err(TryLockError::WouldBlock) => {
                    // Ends the write as well.
                    let _ = self.stream.shutdown(Shutdown::Both);
                    return;
                }
            }
        };
        // A rank that is gone as well need not get the reason.
        let _ = self.stream.set_write_timeout(Some(LAST_WORDS));
        let _ = wire::write(&mut &self.stream, Kind::Abort, 0, "", &[failure]);
    }
}

/// State that the threads of a process share.
struct Shared {
    own: usize,
    peers: Vec<Peer>,
    others: Vec<Other>,
    failure: Mutex<Option<Failure>>,
    /// This process is at its end: connections to others than rank 0, which lets all go, may end.
    leaving: AtomicBool,
    /// All connections may end.
    ended: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn name(&self, rank: usize) -> String {
        self.peers.get(rank).map_or_else(|| format!("rank {rank}"), |peer| peer.name(rank))
    }

    /// Keeps the first failure, and tells all ranks but the one at fault. Nobody here learns of it before they are
    /// told: a process that ends would take its last words with it.
    fn fail(&self, failure: Failure) {
        if self.ended.load(Ordering::SeqCst) {
            return;
        }
        let mut first = locked(&self.failure);
        if first.is_some() {
            return;
        }
        let (at_fault, others): (Vec<_>, Vec<_>) = self.others.iter().partition(|other| other.rank == failure.of);
        for other in at_fault {
            // Ends a write to it that would wait for long.
            let _ = other.stream.shutdown(Shutdown::Both);
        }
        let told = serde_json::to_vec(&failure).unwrap_or_default();
        let deadline = Instant::now() + LAST_WORDS;
        others.into_iter().for_each(|other| other.tell(&told, deadline));
        *first = Some(failure);
    }

    fn failure(&self) -> Option<Failure> {
        locked(&self.failure).clone()
    }

    /// True if it is a fault that a rank is gone.
    fn is_needed(&self, rank: usize) -> bool {
        let [leaving, ended] = [&self.leaving, &self.ended].map(|flag| flag.load(Ordering::SeqCst));
        !ended && (rank == 0 || !leaving)
    }

    fn gone(&self, rank: usize, error: &io::Error) -> Failure {
        let why = match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "its connection closed".to_owned()
            }
            _ => format!("its connection failed ({error})"),
        };
        let name = self.name(rank);
        let remedy = "its own output says why; `--resume-from-checkpoint` goes on with a run";
        Failure::new(rank, format!("{name} is gone: {why}; {remedy}"))
    }

    /// Takes what arrives from the other end until there is no more.
    fn read(&self, at: usize, to: &Sender<Frame>) {
        let other = &self.others[at];
        let heard = || other.silent.store(0, Ordering::Relaxed);
        loop {
            match wire::read(&mut &other.stream, MAX_MESSAGE, &heard) {
                Ok(Frame { kind: Kind::Alive, .. }) => {}
                Ok(Frame { kind: Kind::Abort, bytes, .. }) => {
                    let unreadable = || Failure::new(other.rank, format!("{} ended the run", self.name(other.rank)));
                    self.fail(serde_json::from_slice(&bytes).unwrap_or_else(|_| unreadable()));
                    return;
                }
                Ok(frame) => {
                    if to.send(frame).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if self.is_needed(other.rank) {
                        self.fail(self.gone(other.rank, &error));
                    }
                    return;
                }
            }
        }
    }

    /// Sends signs of life, and fails if none arrives. Times are counted in turns of this thread: a process that was
    /// suspended and resumes does not take the others for dead.
    ///
    /// After a failure this process has the same time to end by itself; if it hangs, or computes for very long, it is
    /// ended here.
    fn watch(&self, interval: Duration, turns: u32, silence: Duration) {
        let mut turns_left = turns;
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(interval);
            if let Some(failure) = self.failure() {
                turns_left = turns_left.saturating_sub(1);
                if turns_left == 0 && !self.ended.load(Ordering::SeqCst) {
                    let error = failure.error();
                    print_error(&error);
                    // It exits at once: destructors and exit handlers may wait for the thread that hangs.
                    signal_hook::low_level::exit(error.exit_status().into());
                }
                continue;
            }
            for other in &self.others {
                // A frame that is being written is a sign as well.
                if let Ok(_writing) = other.writing.try_lock() {
                    let _ = wire::write(&mut &other.stream, Kind::Alive, 0, "", &[]);
                }
                if other.silent.fetch_add(1, Ordering::Relaxed) >= turns && self.is_needed(other.rank) {
                    let seconds = silence.as_secs_f64();
                    let name = self.name(other.rank);
                    let what = format!(
                        "{name} has not answered for {seconds} s: it is stopped or hangs, or the network is cut \
                         (QLORA_SILENCE_SECONDS waits longer)"
                    );
                    self.fail(Failure::new(other.rank, what));
                }
            }
        }
    }
}

/// The connections of a process to all others.
pub(super) struct Links {
    shared: Arc<Shared>,
    inboxes: Vec<Receiver<Frame>>,
    /// Time in which a rank must join an operation
    stall: Duration,
}

impl Links {
    /// `streams` by rank. `silence`: time without a sign of life after which a rank is taken for dead. `stall`: time
    /// without joining an operation after which it is taken for hanging.
    pub fn new(
        own: usize,
        peers: Vec<Peer>,
        streams: Vec<(usize, TcpStream)>,
        silence: Duration,
        stall: Duration,
    ) -> Result<Self> {
        let what = || "the connection to the other processes".to_owned();
        for (_, stream) in &streams {
            stream.set_nodelay(true).context(what)?;
            stream.set_read_timeout(None).context(what)?;
            stream.set_write_timeout(Some(silence)).context(what)?;
        }
        let other = |(rank, stream)| Other { rank, stream, writing: Mutex::new(()), silent: AtomicU32::new(0) };
        let others: Vec<Other> = streams.into_iter().map(other).collect();
        let (leaving, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { own, peers, others, failure: Mutex::new(None), leaving, ended });
        let mut inboxes = Vec::new();
        for at in 0..shared.others.len() {
            let (to, inbox) = channel();
            inboxes.push(inbox);
            let shared = shared.clone();
            std::thread::Builder::new().name("rank".to_owned()).spawn(move || shared.read(at, &to)).context(what)?;
        }
        let interval = (silence / 10).clamp(Duration::from_millis(20), Duration::from_secs(2));
        let turns = silence.as_secs_f64() / interval.as_secs_f64();
        let watched = shared.clone();
        std::thread::Builder::new()
            .name("ranks".to_owned())
            .spawn(move || watched.watch(interval, turns.ceil() as u32, silence))
            .context(what)?;
        Ok(Self { shared, inboxes, stall })
    }

    pub fn name(&self, rank: usize) -> String {
        self.shared.name(rank)
    }

    pub fn peers(&self) -> &[Peer] {
        &self.shared.peers
    }

    /// Time in which a rank must join an operation.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Fails if any rank has failed.
    pub fn check(&self) -> Result<()> {
        self.shared.failure().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Ends the run on all ranks but `of`, the one at fault, which knows already or cannot be reached.
    pub fn fail(&self, of: usize, message: String) -> Result<()> {
        self.shared.fail(Failure::new(of, message));
        self.check()
    }

    /// Tells all others that this process ends by an error.
    pub fn abort(&self, error: &Error) {
        let own = self.shared.own;
        self.shared.fail(Failure::of_error(own, &self.name(own), error));
    }

    fn at(&self, rank: usize) -> Result<usize> {
        let found = self.shared.others.iter().position(|other| other.rank == rank);
        found.ok_or_else(|| Error::Failed(format!("there is no connection to {}", self.name(rank))))
    }

    /// Sends the other end its part of an operation.
    pub fn send(&self, rank: usize, number: u64, label: &str, parts: &[&[u8]]) -> Result<()> {
        self.check()?;
        let other = &self.shared.others[self.at(rank)?];
        let written = {
            let _writing = locked(&other.writing);
            wire::write(&mut &other.stream, Kind::Data, number, label, parts)
        };
        if let Err(error) = written {
            // Its own last word, if it had one, says more.
            std::thread::sleep(2 * LOOK);
            self.shared.fail(self.shared.gone(rank, &error));
            self.check()?;
        }
        Ok(())
    }

    /// Waits for the other end's part of an operation, as long as all ranks send signs of life.
    pub fn receive(&self, rank: usize, what: &str) -> Result<Frame> {
        let inbox = &self.inboxes[self.at(rank)?];
        // Rank 0 may itself wait for the one at fault, and knows its name first.
        let patience = if rank == 0 { self.stall + self.stall / 2 } else { self.stall };
        let begun = Instant::now();
        loop {
            match inbox.recv_timeout(LOOK) {
                Ok(frame) => return Ok(frame),
                Err(RecvTimeoutError::Timeout) => {
                    self.check()?;
                    if begun.elapsed() > patience {
                        let (name, seconds) = (self.name(rank), patience.as_secs_f64());
                        let told = format!(
                            "{name} lives, but did not come to the others ({what}) for {seconds} s: it hangs, or computes \
                             for longer (QLORA_STALL_SECONDS)"
                        );
                        self.fail(self.shared.own, told)?;
                    }
                }
                // The reading thread has recorded the reason before it ends.
                Err(RecvTimeoutError::Disconnected) => {
                    self.check()?;
                    self.fail(rank, format!("{} is gone: its connection closed", self.name(rank)))?;
                }
            }
        }
    }

    /// From now on it is no fault that a connection to another rank than 0 ends.
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::SeqCst);
    }

    /// From now on it is no fault that a connection ends.
    pub fn end(&self) {
        self.shared.ended.store(true, Ordering::SeqCst);
    }
}

/// The threads that read end with the connections.
impl Drop for Links {
    fn drop(&mut self) {
        self.end();
        for other in &self.shared.others {
            let _ = other.stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests;
