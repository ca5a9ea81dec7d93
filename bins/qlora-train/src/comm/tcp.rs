//! A communicator over TCP, with a connection between any two of W ranks. For a sum each rank receives one of W slices
//! from all others, adds it up in the order of the ranks, and sends the result to all. For N bytes each rank sends and
//! receives 2 · N · (W − 1) / W, the least possible. Small messages go through rank 0.

use super::Communicator;
use super::launch::Launch;
use super::link::Links;
use super::places;
use super::rendezvous::{Timeouts, join};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::failpoint;
use std::ops::Range;
use std::time::Duration;

/// Advice where a rank does something else
pub(super) const ALIKE: &str = "start all ranks with the same program, settings, data and base";

/// One of several processes, connected with the others.
pub struct Tcp {
    rank: usize,
    /// Number among those of the machine, where the launcher gives it
    local_rank: Option<usize>,
    links: Links,
    /// Operations so far: the same on all ranks
    number: u64,
    /// True if a thread may add up while the backward pass goes on
    overlaps: bool,
}

/// Variable of the environment that says whether gradients are added up beside the backward pass
const OVERLAP: &str = "QLORA_OVERLAP";

/// Refused: neither "on" nor "off".
fn overlaps(value: Option<&str>) -> Result<bool> {
    match value.map(str::trim) {
        None | Some("" | "on") => Ok(true),
        Some("off") => Ok(false),
        Some(found) => bail_usage!("environment variable {OVERLAP}: found {found:?}, expected \"on\" or \"off\""),
    }
}

pub(super) fn overlaps_by_environment() -> Result<bool> {
    overlaps(std::env::var_os(OVERLAP).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

impl Tcp {
    /// Connects to the other processes of a launch. `build` identifies the program, which must be the same for all.
    /// Failed: they did not come, or do not fit together.
    pub fn join(launch: &Launch, build: &str, timeouts: Timeouts) -> Result<Self> {
        let links = join(launch, build, timeouts)?;
        // The other ranks are connected and get the error.
        let overlaps = overlaps_by_environment().inspect_err(|error| links.abort(error))?;
        Ok(Self { rank: launch.rank, local_rank: launch.local_rank, links, number: 0, overlaps })
    }

    /// The ranks beside rank 0
    fn others(&self) -> Range<usize> {
        1..self.world_size()
    }

    /// The ranks beside this one, beginning with the next: not all send to the same at once.
    fn all_others(&self) -> impl Iterator<Item = usize> + use<> {
        let (own, all) = (self.rank, self.world_size());
        (1..all).map(move |by| (own + by) % all)
    }

    /// Receives as many numbers as expected. Failed: there are more or fewer.
    fn receive_numbers(&self, rank: usize, what: &str, totals: usize, count: usize) -> Result<(Vec<f64>, Vec<f32>)> {
        let bytes = self.receive(rank, what)?;
        let expected = totals * size_of::<f64>() + count * size_of::<f32>();
        if bytes.len() != expected {
            let (there, found) = (self.links.name(rank), bytes.len());
            let text = format!("{there} gave {found} bytes to a sum, expected {expected}: {ALIKE}");
            self.links.fail(self.rank, text)?;
        }
        let (of_totals, rest) = bytes.split_at(bytes.len().min(totals * size_of::<f64>()));
        let of_totals = of_totals.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
        Ok((of_totals.collect(), rest.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    fn send(&self, rank: usize, what: &str, parts: &[&[u8]]) -> Result<()> {
        self.links.send(rank, self.number, what, parts)
    }

    /// Receives the other end's part of the same operation. Failed: it is at another one.
    fn receive(&self, rank: usize, what: &str) -> Result<Vec<u8>> {
        let frame = self.links.receive(rank, what)?;
        if (frame.number, frame.label.as_str()) != (self.number, what) {
            let (here, there) = (self.links.name(self.rank), self.links.name(rank));
            self.links.fail(
                self.rank,
                format!(
                    "{there} is at operation {} ({}), {here} at {} ({what}): they do not do the same; {ALIKE}",
                    frame.number, frame.label, self.number
                ),
            )?;
        }
        Ok(frame.bytes)
    }

    /// Leaves the others: after success when all have arrived, after an error at once, with the reason.
    pub fn leave(mut self, error: Option<&Error>) -> Result<()> {
        match error {
            // Agreed on by all of them.
            None | Some(Error::Interrupted(_)) => self.end(),
            Some(error) => {
                self.links.abort(error);
                Ok(())
            }
        }
    }

    /// Waits until all ranks are at their end. Rank 0 releases the others, which may be gone before it looks again.
    fn end(&mut self) -> Result<()> {
        const WHAT: &str = "end";
        self.number += 1;
        if self.rank > 0 {
            self.links.leave();
            self.send(0, WHAT, &[])?;
            self.receive(0, WHAT)?;
            self.links.end();
            return Ok(());
        }
        for rank in self.others() {
            self.receive(rank, WHAT)?;
        }
        self.links.end();
        for rank in self.others() {
            // One that was killed just now has nothing left to do.
            let _ = self.send(rank, WHAT, &[]);
        }
        Ok(())
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.links.peers().len()
    }

    fn on_this_machine(&self) -> (usize, usize) {
        let (before, here) = places::on_machine_of(self.links.peers(), self.rank);
        (self.local_rank.unwrap_or(before), here)
    }

    fn on_these_processors(&self) -> usize {
        places::on_processors_of(self.links.peers(), self.rank)
    }

    fn machine_of(&self, rank: usize) -> usize {
        places::machine_of(self.links.peers(), rank)
    }

    fn machines(&self) -> usize {
        places::machines(self.links.peers())
    }

    fn name_of(&self, rank: usize) -> String {
        self.links.name(rank)
    }

    fn all_reduce_sum(&mut self, gradients: &mut [f32], totals: &mut [f64]) -> Result<()> {
        self.number += 1;
        // The totals are few: rank 0 adds them up beside its slice.
        let slices = slices(gradients.len(), self.world_size());
        let count = totals.len();
        let to_first = |rank: usize| if rank == 0 { count } else { 0 };
        for rank in self.all_others() {
            let of_rank = &gradients[slices[rank].clone()];
            let parts = [bytemuck::cast_slice(&totals[..to_first(rank)]), bytemuck::cast_slice(of_rank)];
            self.send(rank, "sum", &parts)?;
        }
        if !gradients.is_empty() {
            failpoint::moment("sum");
        }
        let own = slices[self.rank].clone();
        let mut sum: Option<(Vec<f64>, Vec<f32>)> = None;
        for rank in 0..self.world_size() {
            let part = match rank == self.rank {
                true => (totals[..to_first(rank)].to_vec(), gradients[own.clone()].to_vec()),
                false => self.receive_numbers(rank, "sum", to_first(self.rank), own.len())?,
            };
            match &mut sum {
                None => sum = Some(part),
                Some(sum) => {
                    sum.0.iter_mut().zip(part.0).for_each(|(sum, x)| *sum += x);
                    sum.1.iter_mut().zip(part.1).for_each(|(sum, x)| *sum += x);
                }
            }
        }
        let (of_totals, of_own) = sum.unwrap_or_default();
        gradients[own].copy_from_slice(&of_own);
        if self.rank == 0 {
            totals.copy_from_slice(&of_totals);
        }
        for rank in self.all_others() {
            self.send(rank, "result", &[bytemuck::cast_slice(&of_totals), bytemuck::cast_slice(&of_own)])?;
        }
        for rank in self.all_others() {
            let slice = slices[rank].clone();
            let (found, numbers) = self.receive_numbers(rank, "result", to_first(rank), slice.len())?;
            gradients[slice].copy_from_slice(&numbers);
            totals[..to_first(rank)].copy_from_slice(&found);
        }
        Ok(())
    }

    fn beside(&mut self) -> Option<&mut (dyn Communicator + Send)> {
        if self.overlaps { Some(self) } else { None }
    }

    fn check(&self) -> Result<()> {
        self.links.check()
    }

    fn patience(&self) -> Duration {
        self.links.stall()
    }

    fn all_gather(&mut self, what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.number += 1;
        if self.rank > 0 {
            self.send(0, what, &[own])?;
            return unpacked(&self.receive(0, what)?, self.world_size());
        }
        let mut all = vec![own.to_vec()];
        for rank in self.others() {
            all.push(self.receive(rank, what)?);
        }
        let packed = packed(&all);
        self.others().try_for_each(|rank| self.send(rank, what, &[&packed]))?;
        Ok(all)
    }

    fn broadcast(&mut self, what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        self.number += 1;
        if self.rank > 0 {
            return self.receive(0, what);
        }
        self.others().try_for_each(|rank| self.send(rank, what, &[&own]))?;
        Ok(own)
    }
}

/// The part of `count` numbers that each rank adds up.
pub(super) fn slices(count: usize, world_size: usize) -> Vec<Range<usize>> {
    let end = |rank: usize| count / world_size * rank + (count % world_size).min(rank);
    (0..world_size).map(|rank| end(rank)..end(rank + 1)).collect()
}

/// Byte strings one after the other, each behind its length in 8 bytes.
pub(super) fn packed(all: &[Vec<u8>]) -> Vec<u8> {
    all.iter().flat_map(|one| (one.len() as u64).to_le_bytes().into_iter().chain(one.iter().copied())).collect()
}

pub(super) fn unpacked(bytes: &[u8], count: usize) -> Result<Vec<Vec<u8>>> {
    let mut rest = bytes;
    let mut take = |length: usize| {
        let (one, others) = rest.split_at_checked(length)?;
        rest = others;
        Some(one)
    };
    let mut one = || -> Option<Vec<u8>> {
        let length = u64::from_le_bytes(take(8)?.try_into().ok()?);
        take(usize::try_from(length).ok()?).map(<[u8]>::to_vec)
    };
    let all: Option<Vec<Vec<u8>>> = (0..count).map(|_| one()).collect();
    all.ok_or_else(|| Error::Failed(format!("rank 0 sent {} bytes that are not what {count} ranks gave", bytes.len())))
}

#[cfg(test)]
mod tests;
