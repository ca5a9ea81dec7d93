//! Agreement of all ranks: values that must be equal, and decisions.

use super::Communicator;
use crate::error::{Context, Error, Result};
use crate::files::json::shown;
use serde_json::{Map, Value};

/// A value in which a rank differs from the first one that has any.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub rank: usize,
    /// Name of the value
    pub name: String,
    /// Value of that rank
    pub there: String,
    /// Value of the rank that it is compared with
    pub here: String,
}

/// All differences of ranks from the first of `all`, ordered by rank and then by the name of the value.
pub fn differences(all: &[(usize, Map<String, Value>)]) -> Vec<Difference> {
    let Some(((_, first), others)) = all.split_first() else { return Vec::new() };
    let in_words = |values: &Map<String, Value>, name: &str| values.get(name).map_or("nothing".to_owned(), shown);
    let mut found = Vec::new();
    for (rank, other) in others {
        let added = other.keys().filter(|name| !first.contains_key(*name));
        for name in first.keys().chain(added).filter(|name| first.get(*name) != other.get(*name)) {
            let (there, here) = (in_words(other, name), in_words(first, name));
            found.push(Difference { rank: *rank, name: name.clone(), there, here });
        }
    }
    found
}

/// Refuses ranks that differ in any of `values`; the error names the rank and the first value that differs. `what`
/// names the subject of the values.
pub fn agree(comm: &mut dyn Communicator, what: &str, values: &Map<String, Value>) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let own = serde_json::to_vec(values).context(|| what.to_owned())?;
    let all = comm.all_gather(what, &own)?;
    let read = |rank: usize| -> Result<(usize, Map<String, Value>)> {
        let values = serde_json::from_slice(&all[rank]).context(|| format!("{what} of {}", comm.name_of(rank)))?;
        Ok((rank, values))
    };
    let of_ranks = (0..all.len()).map(read).collect::<Result<Vec<_>>>()?;
    let Some(Difference { rank, name, there, here }) = differences(&of_ranks).into_iter().next() else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "{} differs from {} in {name}: {there} there, {here} here at rank 0; start all ranks with the same program, \
         settings, data and base",
        comm.name_of(rank),
        comm.name_of(0),
    )))
}

/// Fails if a rank has other results than rank 0: it computes something else.
pub fn agree_on_results(comm: &mut dyn Communicator, what: &str, own: &[u8]) -> Result<()> {
    if comm.world_size() == 1 {
        return Ok(());
    }
    let all = comm.all_gather(what, own)?;
    match all.iter().position(|one| *one != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Failed(format!(
            "{} has diverged from rank 0: it has another {what}; nothing more is written. Processors of different kinds, or \
             a fault of memory, may be the cause",
            comm.name_of(rank)
        ))),
    }
}

/// Message of a rank between two micro-batches: the signal that it received, and its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Signs {
    pub signal: Option<i32>,
    /// Step, and the bits of the last gradient norm: the same on all ranks
    pub step: u64,
    pub norm: u64,
}

impl Signs {
    fn bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.signal.unwrap_or(0).to_le_bytes());
        bytes[4..12].copy_from_slice(&self.step.to_le_bytes());
        bytes[12..].copy_from_slice(&self.norm.to_le_bytes());
        bytes
    }

    /// The signal that any of the ranks received, the first by rank. Failed: a rank has another result.
    pub fn agreed(self, comm: &mut dyn Communicator) -> Result<Option<i32>> {
        if comm.world_size() == 1 {
            return Ok(self.signal);
        }
        let all = comm.all_gather("signals", &self.bytes())?;
        if let Some(rank) = all.iter().position(|one| one.get(4..) != all[0].get(4..)) {
            return Err(Error::Failed(format!(
                "{} has diverged from rank 0 at step {}: its gradients have another norm after the same sum; nothing more is \
                 written. Processors of different kinds, or a fault of memory, may be the cause",
                comm.name_of(rank),
                self.step
            )));
        }
        let signal = |one: &Vec<u8>| one.first_chunk().map(|bytes| i32::from_le_bytes(*bytes)).filter(|&of| of != 0);
        Ok(all.iter().find_map(signal))
    }
}

#[cfg(test)]
mod tests;
