//! Digests of a checkpoint's tensors, computed by threads that run ahead of the reader of the values.
//!
//! A thread hashes 2 GB/s where the processor has instructions for SHA-256, else a fifth of that; disks read several.
//! The bytes of a tensor are hashed one after the other, but each tensor by itself, so that threads take one each. What
//! they read stays in the system's cache of files for the reader behind them: the disk is read once, by all of them at
//! a time. Each thread holds one piece of [`SCAN_BYTES`].

use super::fingerprint::{TensorDigest, digest_of};
use super::{Checkpoint, StoredTensor};
use crate::error::{Context, Error, Result};
use crate::files::safetensors::{SCAN_BYTES, TensorFile};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Size in bytes from which a tensor is worth another thread.
const LEAST: u64 = 1 << 20;

/// Threads at most: more than any disk keeps busy.
const THREADS: usize = 16;

/// Threads that hash tensors before they are read. They end when this is dropped.
pub struct DigestsAhead {
    shared: Arc<Shared>,
    /// Place in the list of each tensor, by name
    places: BTreeMap<String, usize>,
    threads: Vec<JoinHandle<()>>,
}

struct Tensor {
    name: String,
    entry: StoredTensor,
    bytes: u64,
}

/// Bytes that may be ahead of the reader now.
type Room = Box<dyn Fn() -> u64 + Send + Sync>;

struct Shared {
    files: Arc<Vec<TensorFile>>,
    /// In the order in which a model reads them
    tensors: Vec<Tensor>,
    room: Room,
    is_over: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// One for each tensor
    slots: Vec<Slot>,
    /// The first tensor that no thread has looked at
    next: usize,
    /// Bytes of tensors that threads have begun with and that nobody has asked for
    ahead: u64,
}

enum Slot {
    Waiting,
    /// A thread hashes it.
    Taken,
    Hashed(Result<TensorDigest>),
    /// It was asked for.
    Given,
}

/// A tensor that a thread hashes; without a digest where the thread panics.
struct Claim<'a> {
    shared: &'a Shared,
    place: usize,
    digest: Option<Result<TensorDigest>>,
}

impl DigestsAhead {
    /// Begins with the first tensors of `checkpoint`. `room` is asked for the bytes that may be ahead of the reader at
    /// that time: what the cache of files keeps until they are read. A tensor that is larger is left to the reader.
    pub fn begin(
        checkpoint: &Checkpoint,
        threads: usize,
        room: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self> {
        let of = |(name, _): (String, Vec<usize>)| {
            let entry = checkpoint.tensors.get(&name)?.clone();
            Some(Tensor { bytes: entry.stored_bytes(), name, entry })
        };
        let all = checkpoint.arch.tensors().into_iter().filter_map(of);
        let tensors: Vec<Tensor> = all.filter(|tensor| tensor.bytes >= LEAST).collect();
        let places = tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.clone(), place)).collect();
        let slots = tensors.iter().map(|_| Slot::Waiting).collect();
        let threads = threads.clamp(1, THREADS).min(tensors.len());
        let shared = Arc::new(Shared {
            files: checkpoint.files.clone(),
            tensors,
            room: Box::new(room),
            is_over: AtomicBool::new(false),
            state: Mutex::new(State { slots, next: 0, ahead: 0 }),
            changed: Condvar::new(),
        });
        let mut all = Self { shared, places, threads: Vec::with_capacity(threads) };
        for _ in 0..threads {
            let (shared, thread) = (all.shared.clone(), std::thread::Builder::new().name("hash-weights".to_owned()));
            let started = thread.spawn(move || shared.work());
            all.threads.push(started.context(|| "a thread that hashes weights cannot be started".to_owned())?);
        }
        Ok(all)
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Bytes that the threads hold.
    pub fn buffer_bytes(&self) -> u64 {
        (self.threads.len() * SCAN_BYTES) as u64
    }

    /// The digest of a tensor that is to be read now, for which this waits where a thread has begun with it. None: none
    /// has, and none will; whoever reads the tensor hashes it.
    pub fn take(&self, name: &str) -> Option<Result<TensorDigest>> {
        let &place = self.places.get(name)?;
        let mut state = self.shared.state();
        loop {
            match std::mem::replace(&mut state.slots[place], Slot::Given) {
                Slot::Waiting | Slot::Given => return None,
                Slot::Taken => {
                    state.slots[place] = Slot::Taken;
                    state = self.shared.wait(state);
                }
                Slot::Hashed(digest) => {
                    state.ahead -= self.shared.tensors[place].bytes;
                    drop(state);
                    self.shared.changed.notify_all();
                    return Some(digest);
                }
            }
        }
    }

    /// Ends the threads. Failed: a file was written to since the checkpoint was opened, so that what was read need not
    /// be what was hashed.
    pub fn finish(mut self) -> Result<()> {
        self.end();
        self.shared.files.iter().try_for_each(TensorFile::check_unchanged)
    }

    fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // A thread that is about to wait has the lock until it does.
        drop(self.shared.state());
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // If a thread panicked, the reader that waited for its tensor has hashed it itself.
            let _ = thread.join();
        }
    }
}

impl Drop for DigestsAhead {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(mut claim) = self.claim() {
            let Tensor { name, entry, .. } = &self.tensors[claim.place];
            claim.digest = Some(digest_of(&self.files, name, entry, &|| self.go_on()));
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn go_on(&self) -> Result<()> {
        if self.is_over() { Err(Error::Failed("nobody reads the weights any more".to_owned())) } else { Ok(()) }
    }

    /// The next tensor that nobody has begun with, as soon as there is room for it. None: there is none.
    fn claim(&self) -> Option<Claim<'_>> {
        let mut state = self.state();
        while !self.is_over() {
            let waiting = state.slots[state.next..].iter().position(|slot| matches!(slot, Slot::Waiting))?;
            let place = state.next + waiting;
            let (bytes, room) = (self.tensors[place].bytes, (self.room)());
            if bytes > room {
                state.next = place + 1;
            } else if state.ahead + bytes <= room {
                state.slots[place] = Slot::Taken;
                (state.next, state.ahead) = (place + 1, state.ahead + bytes);
                return Some(Claim { shared: self, place, digest: None });
            } else {
                state = self.wait(state);
            }
        }
        None
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.slots[self.place] = match self.digest.take() {
            Some(digest) => Slot::Hashed(digest),
            None => {
                // Whoever reads it takes nothing from here.
                state.ahead -= self.shared.tensors[self.place].bytes;
                Slot::Waiting
            }
        };
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
