//! A communicator over a message-passing library. Ranks announce each operation by short notes, so that a rank that is
//! missing, ends or does something else can be named; then the library moves the data. It does nothing else: sums are
//! computed here, in the order of the ranks, and have the same bits as the sums over TCP.

use super::Communicator;
use super::failure::Failure;
use super::link::Peer;
use super::places;
use super::tcp::{ALIKE, slices};
use super::watchdog::Watchdog;
use crate::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::cell::{OnceCell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// Polls before a waiting rank yields its processor to others
const LOOKS: u32 = 1000;
/// Pause between two polls from then on
const PAUSE: Duration = Duration::from_micros(200);
/// Time in which the others must hear that one of them is lost
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Numbers or bytes of one operation, which such libraries count in 32 bits
const MOST: usize = i32::MAX as usize;
/// Characters of the reason for which a run ends
const REASON: usize = 1000;

/// Bytes of the unread notes to a rank, with a library's overhead: at most three announcements and the last note.
pub(super) const UNREAD: usize = 16 << 10;

/// Message passing as a library offers it. Notes are posted without waiting; everything else is a collective operation,
/// which returns when this rank has its result.
pub(super) trait Transport: Send {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// Hands a note over without waiting for the other rank.
    fn post(&mut self, to: usize, note: &[u8]);

    /// The next note of a rank, in the order in which it posted them; none if it has not come.
    fn poll(&self, from: usize) -> Option<Vec<u8>>;

    /// Gives every rank its slice of `own`. `parts`: this rank's slice of all ranks, one after the other.
    fn exchange(&mut self, own: &[f32], slices: &[Range<usize>], parts: &mut [f32]);

    /// Gives all ranks the numbers `own`, which are this rank's slice of `all`.
    fn spread(&mut self, own: &[f32], slices: &[Range<usize>], all: &mut [f32]);

    /// Gives all ranks the bytes `own`. `all`: those of all ranks, of these lengths, one after the other.
    fn gather(&mut self, own: &[u8], lengths: &[usize], all: &mut [u8]);

    /// Gives all ranks the bytes of rank 0.
    fn broadcast(&mut self, bytes: &mut [u8]);
}

/// Announcement of a rank that it has reached an operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Come {
    /// Number of the operation
    number: u64,
    /// Subject of the operation
    what: String,
    /// Numbers or bytes that it contributes
    length: usize,
    totals: usize,
}

#[derive(Serialize, Deserialize)]
enum Note {
    Come(Come),
    /// The reason why the run ends for the rank, which posts no more notes
    Last(Failure),
}

/// Notes that have arrived, by rank.
struct Notes {
    /// Announcements that were not taken yet
    come: Vec<VecDeque<Come>>,
    /// The last one
    last: Vec<Option<Failure>>,
}

/// One of several processes, over a library.
pub(super) struct Meeting<T: Transport> {
    /// Dropped before the watchdog, which makes sure that the library ends.
    transport: T,
    /// By rank, once all have said who they are
    peers: Vec<Peer>,
    /// Number among those of the machine, where the launcher tells it
    local_rank: Option<usize>,
    /// Time in which a rank has to come to an operation
    stall: Duration,
    /// Operations so far: the same on all ranks
    number: u64,
    notes: RefCell<Notes>,
    /// True if a thread may add up while the backward pass goes on
    overlaps: bool,
    /// The first reason why the run ends, of this rank or another
    failure: OnceCell<Failure>,
    /// A rank is gone and will not come back
    is_lost: bool,
    watchdog: Watchdog,
}

impl<T: Transport> Meeting<T> {
    pub fn new(transport: T, local_rank: Option<usize>, overlaps: bool, stall: Duration, watchdog: Watchdog) -> Self {
        let world_size = transport.world_size();
        let notes = Notes { come: vec![VecDeque::new(); world_size], last: vec![None; world_size] };
        Self {
            transport,
            peers: Vec::new(),
            local_rank,
            stall,
            number: 0,
            notes: RefCell::new(notes),
            overlaps,
            failure: OnceCell::new(),
            is_lost: false,
            watchdog,
        }
    }

    /// Exchanges the identities of all ranks. Refused: they do not run the same program.
    pub fn introduce(&mut self, own: &Peer, build: &str) -> Result<()> {
        let what = || "an introduction".to_owned();
        let said = serde_json::to_vec(&(build, own)).context(what)?;
        let mut builds: Vec<String> = Vec::new();
        for bytes in self.all_gather("introductions", &said)? {
            let (build, peer) = serde_json::from_slice(&bytes).context(what)?;
            builds.push(build);
            self.peers.push(peer);
        }
        match builds.iter().position(|other| *other != builds[0]) {
            None => Ok(()),
            // All of them find that.
            Some(rank) => Err(Error::Refused(format!(
                "{} runs another program, {} instead of {} as {} does: install the same one everywhere",
                self.name(rank),
                builds[rank],
                builds[0],
                self.name(0)
            ))),
        }
    }

    fn name(&self, rank: usize) -> String {
        self.peers.get(rank).map_or_else(|| format!("rank {rank}"), |peer| peer.name(rank))
    }

    fn others(&self) -> Vec<usize> {
        let own = self.transport.rank();
        (0..self.transport.world_size()).filter(|rank| *rank != own).collect()
    }

    fn post(&mut self, note: &Note) {
        let bytes = serde_json::to_vec(note).unwrap_or_default();
        for rank in self.others() {
            self.transport.post(rank, &bytes);
        }
    }

    /// Takes all notes that have come.
    fn look(&self) {
        let mut notes = self.notes.borrow_mut();
        for rank in self.others() {
            while let Some(bytes) = self.transport.poll(rank) {
                match serde_json::from_slice(&bytes) {
                    Ok(Note::Come(come)) => notes.come[rank].push_back(come),
                    Ok(Note::Last(failure)) => notes.last[rank] = Some(failure),
                    Err(error) => {
                        let message = format!("{} said what this program does not know: {error}", self.name(rank));
                        notes.last[rank] = Some(Failure::new(rank, message));
                    }
                }
            }
        }
    }

    /// The ranks that have not reached the next operation, and the reason why one of them will not.
    fn missing(&self, ranks: &[usize]) -> (Vec<usize>, Option<Failure>) {
        self.look();
        let notes = self.notes.borrow();
        let missing: Vec<usize> = ranks.iter().copied().filter(|rank| notes.come[*rank].is_empty()).collect();
        // One that has come and ended then is needed for the operation after it only.
        let failure = missing.iter().find_map(|rank| notes.last[*rank].clone());
        (missing, failure)
    }

    /// Ends the run on this rank, for the first reason that there is; the others hear of it when it leaves.
    fn fail<R>(&self, failure: Failure) -> Result<R> {
        Err(self.failure.get_or_init(|| failure).error())
    }

    /// Announces the next operation, and waits until all ranks have. Returns the announcement of each. Failed: one has
    /// ended, is at another operation, or did not come in time.
    fn meet(&mut self, what: &str, length: usize, totals: usize) -> Result<Vec<Come>> {
        self.number += 1;
        let own = Come { number: self.number, what: what.to_owned(), length, totals };
        self.post(&Note::Come(own.clone()));
        let (others, begun) = (self.others(), self.watchdog.now());
        let mut looks = 0;
        loop {
            let (missing, failure) = self.missing(&others);
            if missing.is_empty() {
                break;
            }
            if let Some(failure) = failure {
                return self.fail(failure);
            }
            if self.watchdog.now() - begun > self.stall {
                return self.give_up(&missing, what);
            }
            looks += 1;
            if looks < LOOKS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(PAUSE);
            }
        }
        let rank = self.transport.rank();
        let next = |inbox: &mut VecDeque<Come>| inbox.pop_front().unwrap_or_default();
        let mut come: Vec<Come> = self.notes.get_mut().come.iter_mut().map(next).collect();
        come[rank] = own.clone();
        match come.iter().position(|other| (other.number, &other.what) != (own.number, &own.what)) {
            None => Ok(come),
            Some(other) => {
                let (here, there, found) = (self.name(rank), self.name(other), &come[other]);
                let text = format!(
                    "{there} is at operation {} ({}), {here} at {} ({what}): they do not do the same; {ALIKE}",
                    found.number, found.what, own.number
                );
                self.fail(Failure::new(rank, text))
            }
        }
    }

    /// Ends the run, because these ranks did not come.
    fn give_up<R>(&mut self, missing: &[usize], what: &str) -> Result<R> {
        self.is_lost = true;
        let names: Vec<String> = missing.iter().map(|rank| self.name(*rank)).collect();
        let text = format!(
            "{} did not come to the others ({what}) for {} s: stopped, hanging, or computing for longer \
             (QLORA_STALL_SECONDS)",
            names.join(" and "),
            self.stall.as_secs_f64()
        );
        self.fail(Failure::new(missing[0], text))
    }

    /// Lets the library move the data once all ranks are there; the library itself would not say which rank it waits
    /// for.
    fn moved<R>(&mut self, what: &str, work: impl FnOnce(&mut T) -> R) -> R {
        let patience = self.stall + self.stall / 2;
        let text = format!(
            "all ranks came to each other ({what}), and their data did not arrive within {} s: one of them is \
             stopped, or the network is cut (QLORA_STALL_SECONDS waits longer)",
            patience.as_secs_f64()
        );
        self.watchdog.limit(patience, Failure::new(self.transport.rank(), text));
        let done = work(&mut self.transport);
        self.watchdog.lift();
        done
    }

    /// Leaves the others: after success when all have arrived, after an error when all have heard the reason, so that
    /// no note is left unread, which some libraries treat as a fault.
    pub fn leave(mut self, error: Option<&Error>) -> Result<()> {
        let own = self.transport.rank();
        let ended = match error {
            // Agreed on by all of them.
            None | Some(Error::Interrupted(_)) => self.meet("end", 0, 0).map(drop),
            Some(error) => {
                self.failure.get_or_init(|| Failure::of_error(own, &self.name(own), error));
                Ok(())
            }
        };
        if let Some(failure) = self.failure.get().cloned() {
            self.part(&failure);
        }
        ended
    }

    /// Sends the others the reason why the run ends, and waits until they end as well.
    fn part(&mut self, failure: &Failure) {
        let message = failure.message.chars().take(REASON).collect();
        self.post(&Note::Last(Failure { message, ..failure.clone() }));
        let patience = if self.is_lost { LAST_WORDS } else { self.stall };
        let (others, begun) = (self.others(), self.watchdog.now());
        loop {
            self.look();
            if others.iter().all(|rank| self.notes.get_mut().last[*rank].is_some()) {
                return;
            }
            if self.watchdog.now() - begun > patience {
                self.watchdog.end(failure);
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The library waits for all ranks when it ends, but for none after a panic.
impl<T: Transport> Drop for Meeting<T> {
    fn drop(&mut self) {
        let own = self.transport.rank();
        let (patience, why) = match std::thread::panicking() {
            true => (Duration::ZERO, "has a fault"),
            false => (self.stall, "is at its end, and another rank is not"),
        };
        self.watchdog.limit(patience, Failure::new(own, format!("{} {why}", self.name(own))));
    }
}

impl<T: Transport> Communicator for Meeting<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn world_size(&self) -> usize {
        self.transport.world_size()
    }

    fn on_this_machine(&self) -> (usize, usize) {
        let (before, here) = places::on_machine_of(&self.peers, self.rank());
        (self.local_rank.unwrap_or(before), here)
    }

    fn on_these_processors(&self) -> usize {
        places::on_processors_of(&self.peers, self.rank())
    }

    fn machine_of(&self, rank: usize) -> usize {
        places::machine_of(&self.peers, rank)
    }

    fn machines(&self) -> usize {
        places::machines(&self.peers)
    }

    fn name_of(&self, rank: usize) -> String {
        self.name(rank)
    }

    fn all_reduce_sum(&mut self, gradients: &mut [f32], totals: &mut [f64]) -> Result<()> {
        const WHAT: &str = "sum";
        ensure_countable(WHAT, gradients.len())?;
        let own = (gradients.len(), totals.len());
        let come = self.meet(WHAT, own.0, own.1)?;
        if let Some(rank) = come.iter().position(|other| (other.length, other.totals) != own) {
            let (there, (found, expected)) = (self.name(rank), (come[rank].length + come[rank].totals, own.0 + own.1));
            let text = format!("{there} gave {found} numbers to a sum, expected {expected}: {ALIKE}");
            return self.fail(Failure::new(self.rank(), text));
        }
        let (rank, world_size) = (self.rank(), self.world_size());
        let slices = slices(gradients.len(), world_size);
        let count = slices[rank].len();
        let mut parts = vec![0f32; count * world_size];
        self.moved(WHAT, |transport| transport.exchange(gradients, &slices, &mut parts));
        let (sum, others) = parts.split_at_mut(count);
        for part in others.chunks(count.max(1)) {
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        let sum = &*sum;
        self.moved(WHAT, |transport| transport.spread(sum, &slices, gradients));
        if totals.is_empty() {
            return Ok(());
        }
        let mut all = vec![0f64; totals.len() * world_size];
        let lengths = vec![size_of_val(totals); world_size];
        let of_all: &mut [u8] = bytemuck::cast_slice_mut(&mut all);
        self.moved(WHAT, |transport| transport.gather(bytemuck::cast_slice(&totals[..]), &lengths, of_all));
        let (first, others) = all.split_at(totals.len());
        totals.copy_from_slice(first);
        for of_rank in others.chunks(totals.len()) {
            totals.iter_mut().zip(of_rank).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }

    fn beside(&mut self) -> Option<&mut (dyn Communicator + Send)> {
        if self.overlaps { Some(self) } else { None }
    }

    fn check(&self) -> Result<()> {
        self.look();
        let ended = self.notes.borrow().last.iter().flatten().next().cloned();
        match ended.or_else(|| self.failure.get().cloned()) {
            Some(failure) => self.fail(failure),
            None => Ok(()),
        }
    }

    fn patience(&self) -> Duration {
        self.stall
    }

    fn all_gather(&mut self, what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths: Vec<usize> = self.meet(what, own.len(), 0)?.iter().map(|come| come.length).collect();
        let length = lengths.iter().fold(0usize, |sum, length| sum.saturating_add(*length));
        ensure_countable(what, length)?;
        let mut all = vec![0; length];
        if length > 0 {
            self.moved(what, |transport| transport.gather(own, &lengths, &mut all));
        }
        let mut rest = &all[..];
        let take = |length: usize| {
            let (one, others) = rest.split_at(length);
            rest = others;
            one.to_vec()
        };
        Ok(lengths.into_iter().map(take).collect())
    }

    fn broadcast(&mut self, what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        let is_first = self.rank() == 0;
        let come = self.meet(what, if is_first { own.len() } else { 0 }, 0)?;
        let length = come[0].length;
        ensure_countable(what, length)?;
        let mut bytes = if is_first { own } else { vec![0; length] };
        if length > 0 {
            self.moved(what, |transport| transport.broadcast(&mut bytes));
        }
        Ok(bytes)
    }
}

/// Refuses what the library cannot count, on all ranks alike.
fn ensure_countable(what: &str, count: usize) -> Result<()> {
    match count <= MOST {
        true => Ok(()),
        false => Err(Error::Failed(format!("{what}: an operation over MPI has at most {MOST} values, found {count}"))),
    }
}

#[cfg(test)]
mod tests;
