//! One copy of weights in host memory for the processes of a machine, in place of one in each.
//!
//! The first rank of a machine makes a file in memory, and the others open it by its place in that process (`/proc`),
//! before any of them plans: a rank that cannot, as from another container, or whose device does not pin such memory,
//! keeps a copy of its own. After a kill nothing is left of the file.

use super::device::Budget;
use crate::backend::cuda::SharedWeights;
use crate::bail_usage;
use crate::comm::Communicator;
use crate::error::{Context, Error, Result};
use crate::files::memory_file;
use crate::files::units::format_bytes;
use crate::report::{status, warning};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;

/// Variable of the environment of a rank: whether it shares weights in host memory with the others of its machine
const VARIABLE: &str = "QLORA_SHARED_WEIGHTS";

/// Bytes of the file until its size is known: a page, which a device is asked to pin
pub const PAGE: usize = 4096;

/// True if the environment lets processes of a machine share weights. Refused: neither "on" nor "off".
pub fn is_allowed() -> Result<bool> {
    allowed(std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

fn allowed(value: Option<&str>) -> Result<bool> {
    match value.map(str::trim) {
        None | Some("" | "on") => Ok(true),
        Some("off") => Ok(false),
        Some(found) => bail_usage!("environment variable {VARIABLE}: found {found:?}, expected \"on\" or \"off\""),
    }
}

/// Place of the file that the first rank of a machine has made.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Offer {
    /// Process, and its handle of the file
    place: (u32, i32),
    /// Bytes that it begins with, and no other file
    mark: Vec<u8>,
}

impl Offer {
    fn of(file: &File) -> io::Result<Self> {
        let mark: Vec<u8> = (0..2).flat_map(|part| RandomState::new().hash_one(part).to_le_bytes()).collect();
        let mut page = mark.clone();
        page.resize(PAGE, 0);
        file.write_all_at(&page, 0)?;
        Ok(Self { place: memory_file::place(file), mark })
    }
}

/// Word of a rank on the file of its machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Answer {
    /// The reason why the rank does not use it, where it cannot; none: it was set not to
    opened: Result<(), Option<String>>,
    /// Bytes that may be pinned in the rank's process
    host_limit: u64,
}

/// Ranks that may share a copy with others of their machine, and the file that it will be in.
pub struct HostCopies {
    /// By machine, in order: those that have opened one file
    groups: Vec<Vec<usize>>,
    /// Ranks that keep a copy of their own beside others of their machine, and why: that they cannot share one; none:
    /// they were set not to
    apart: Vec<(usize, Option<String>)>,
    /// The file of this rank, if it has opened one
    file: Option<File>,
}

/// Outcome for one rank.
#[derive(Default)]
pub struct Agreed {
    /// This rank's part in the copy of its machine; none: its weights are its own
    pub copy: Option<SharedWeights>,
    /// Some machine has a copy: then all ranks wait for each other before weights are used
    pub is_shared: bool,
}

/// The values of all ranks, by rank.
fn gathered<T: Serialize + DeserializeOwned>(comm: &mut dyn Communicator, what: &str, own: &T) -> Result<Vec<T>> {
    let own = serde_json::to_vec(own).context(|| what.to_owned())?;
    let all = comm.all_gather(what, &own)?;
    all.iter().map(|bytes| serde_json::from_slice(bytes).context(|| what.to_owned())).collect()
}

/// The ranks of each machine, in order.
fn machines(comm: &dyn Communicator) -> Vec<Vec<usize>> {
    let numbers: Vec<usize> = (0..comm.world_size()).map(|rank| comm.machine_of(rank)).collect();
    let of = |number: usize| (0..numbers.len()).filter(|&rank| numbers[rank] == number).collect();
    let mut distinct = numbers.clone();
    distinct.sort_unstable();
    distinct.dedup();
    distinct.into_iter().map(of).collect()
}

/// The file of a machine, as one of its ranks opens it. `made`: where the rank has made it. `pins` tries on the rank's
/// device whether it pins such a file.
fn opened(
    made: Option<&File>,
    offer: Option<&Result<Offer, String>>,
    pins: &dyn Fn(&File) -> Result<()>,
) -> Result<File, String> {
    let offer = offer.ok_or_else(|| "none was offered".to_owned())?.as_ref().map_err(String::clone)?;
    let file = match made {
        Some(file) => file.try_clone(),
        None => memory_file::open(offer.place, &offer.mark),
    };
    let file = file.map_err(|error| format!("the file in memory of this machine's first rank: {error}"))?;
    pins(&file).map_err(|error| error.to_string())?;
    Ok(file)
}

/// True if ranks that may share a copy do so: each has planned equal `bytes` in host memory, by rank.
fn share(ranks: &[usize], bytes: &[u64]) -> bool {
    ranks.len() > 1 && ranks.iter().all(|&rank| bytes[rank] > 0 && bytes[rank] == bytes[ranks[0]])
}

impl HostCopies {
    /// Offers a file to the others of the machine, or opens theirs; all ranks call it. `pins` tries whether this rank's
    /// device pins a page of it. Ranks that may share plan alike: in host memory `budget` is then that of the one that
    /// has least. None: no machine has more than one rank.
    pub fn offered(
        comm: &mut dyn Communicator,
        pins: &dyn Fn(&File) -> Result<()>,
        budget: &mut Budget,
    ) -> Result<Option<Self>> {
        let is_allowed = is_allowed()?;
        let (own, machines) = (comm.rank(), machines(comm));
        let several = |ranks: &&Vec<usize>| ranks.len() > 1;
        if !machines.iter().any(|ranks| ranks.len() > 1) {
            return Ok(None);
        }
        let here = machines.iter().filter(several).find(|ranks| ranks.contains(&own));
        // Held until the others have opened it.
        let made = here.filter(|ranks| ranks[0] == own).map(|_| memory_file::create());
        let offer = made.as_ref().map(|made| -> Result<Offer, String> {
            let offer = made.as_ref().map_err(ToString::to_string)?;
            Offer::of(offer).map_err(|error| error.to_string())
        });
        let offers: Vec<Option<Result<Offer, String>>> = gathered(comm, "a copy of weights", &offer)?;
        let file = match here {
            None => Err(Some("it is alone".to_owned())),
            Some(_) if !is_allowed => Err(None),
            Some(ranks) => {
                let made = made.as_ref().and_then(|made| made.as_ref().ok());
                opened(made, offers[ranks[0]].as_ref(), pins).map_err(Some)
            }
        };
        let answer = Answer { opened: file.as_ref().map(|_| ()).map_err(Clone::clone), host_limit: budget.host_limit };
        let answers: Vec<Answer> = gathered(comm, "the copies of weights", &answer)?;
        let (mut groups, mut apart) = (Vec::new(), Vec::new());
        for ranks in machines.iter().filter(several) {
            let mut group = Vec::new();
            for &rank in ranks {
                match &answers[rank].opened {
                    Ok(()) => group.push(rank),
                    Err(why) => apart.push((rank, why.clone())),
                }
            }
            groups.push(group);
        }
        if let Some(group) = groups.iter().find(|ranks| ranks.len() > 1 && ranks.contains(&own)) {
            budget.sharers = group.len();
            budget.host_limit = group.iter().map(|&rank| answers[rank].host_limit).fold(u64::MAX, u64::min);
        }
        Ok(Some(Self { groups, apart, file: file.ok() }))
    }

    /// Agrees with the other ranks on who shares a copy, once each rank has planned `bytes` of weights in host memory;
    /// all ranks call it. Ranks of a machine that have planned other bytes than each other keep their own.
    pub fn agree(self, comm: &mut dyn Communicator, bytes: u64) -> Result<Agreed> {
        let all: Vec<u64> = gathered(comm, "bytes of weights in host memory", &bytes)?;
        self.tell(comm, &all);
        if !self.groups.iter().any(|ranks| share(ranks, &all)) {
            return Ok(Agreed::default());
        }
        let own = comm.rank();
        let group = self.groups.iter().find(|ranks| share(ranks, &all) && ranks.contains(&own));
        let shared = group.zip(self.file.as_ref());
        let sized = match shared {
            Some((ranks, file)) if ranks[0] == own => {
                memory_file::set_last_len(file, bytes).map_err(|error| error.to_string())
            }
            _ => Ok(()),
        };
        let all: Vec<Result<(), String>> = gathered(comm, "the size of the copies of weights", &sized)?;
        if let Some((rank, Err(why))) = all.iter().enumerate().find(|(_, sized)| sized.is_err()) {
            return Err(Error::Failed(format!(
                "{} cannot make a file of {} in memory: {why}; {VARIABLE}=off gives each process a copy of its own",
                comm.name_of(rank),
                format_bytes(bytes)
            )));
        }
        let Some((ranks, file)) = shared else { return Ok(Agreed { copy: None, is_shared: true }) };
        let file = file.try_clone().context(|| "the copy of weights".to_owned())?;
        let number = ranks.iter().position(|&rank| rank == own).unwrap_or_default();
        let copy = SharedWeights::new(file, bytes, number, ranks.len())?;
        Ok(Agreed { copy: Some(copy), is_shared: true })
    }

    /// Says of ranks that have weights in host memory, by their `bytes`, why they share them with nobody.
    fn tell(&self, comm: &dyn Communicator, bytes: &[u64]) {
        for (rank, why) in self.apart.iter().filter(|(rank, _)| bytes[*rank] > 0) {
            match why {
                Some(why) => warning!(
                    "{} cannot share weights in host memory with the others of its machine, and holds a copy of its own: \
                     {why}",
                    comm.name_of(*rank)
                ),
                None => status!(
                    "{} holds a copy of its own of weights in host memory, as {VARIABLE}=off asks",
                    comm.name_of(*rank)
                ),
            }
        }
        for ranks in self.groups.iter().filter(|ranks| ranks.len() > 1 && !share(ranks, bytes)) {
            if let Some(rank) = ranks.iter().find(|&&rank| bytes[rank] != bytes[ranks[0]]) {
                status!(
                    "{} has {} of weights in host memory, {} has {}: each holds its own; settings that limit their memory \
                     alike let them share one copy",
                    comm.name_of(*rank),
                    format_bytes(bytes[*rank]),
                    comm.name_of(ranks[0]),
                    format_bytes(bytes[ranks[0]])
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
