//! The place where the processes of a run add up gradients: their GPUs, by NCCL, or the memory of the host.

use super::identity::{Identity, recorded_sums};
use crate::backend::cuda::READING_BYTES;
use crate::bail_usage;
use crate::comm::{Communicator, from_first};
use crate::config::Settings;
use crate::error::{Context, Error, Result};
use crate::model::optimizer_step::reduce_bytes;
use crate::report::status;
use crate::session::Device;
use qlora_kernels::device::{KERNELS, Kernels, Nccl};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Variable of the environment that chooses one of the two
pub(super) const VARIABLE: &str = "QLORA_SUMS";

/// The problem of a process without a GPU
const ON_CPU: &str = "it computes on the CPU";

/// The place where gradients are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sums {
    /// In the order of the processes
    Host,
    Nccl,
}

impl Sums {
    /// The way of a run, on which all ranks agree, and its note. Refused: NCCL is asked for, or is the way of the run
    /// that goes on, and cannot be used; ranks that ask for different ways.
    pub(super) fn choose(
        comm: &mut dyn Communicator,
        device: &Device,
        settings: &Settings,
        output: &Path,
        identity: &Identity,
    ) -> Result<Self> {
        let asked = asked_by_environment()?;
        // The sum of one process is made on request, to try NCCL on one GPU.
        if comm.world_size() == 1 && asked != Some(Self::Nccl) {
            return Ok(Self::Host);
        }
        let of_run = || Ok(recorded_sums(settings, output, &identity.settings));
        let recorded = from_first(comm, "how the run began", of_run)?;
        const WHAT: &str = "means of adding up";
        let own = serde_json::to_vec(&Means::of(device, asked)?).context(|| WHAT.to_owned())?;
        let all = comm.all_gather(WHAT, &own)?;
        let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).context(|| WHAT.to_owned());
        let all: Vec<Means> = all.iter().map(read).collect::<Result<_>>()?;
        let names: Vec<String> = (0..all.len()).map(|rank| comm.name_of(rank)).collect();
        let (sums, why) = decide(&all, &names, recorded.as_deref(), KERNELS == Kernels::Cuda)?;
        match sums {
            Self::Nccl => status!("gradients are added up on the GPUs, by NCCL {why}"),
            Self::Host if device.is_cpu() => {}
            Self::Host => status!("gradients are added up in the memory of the host ({why})"),
        }
        Ok(sums)
    }

    /// The way of a run in several processes that is planned: the one asked for, or else the one that a run of this
    /// program would take here. Refused: NCCL is asked for, on a CPU.
    pub fn planned(device: &Device) -> Result<Self> {
        match asked_by_environment()? {
            Some(Self::Nccl) if device.is_cpu() => Err(unusable(ON_CPU)),
            Some(sums) => Ok(sums),
            None if !device.is_cpu() && KERNELS == Kernels::Cuda && Nccl::version().is_ok() => Ok(Self::Nccl),
            None => Ok(Self::Host),
        }
    }

    /// Bytes that a step's sums take in the host's memory on each of several ranks, where the largest trainable tensor
    /// has `largest` values. None in one process.
    pub fn host_bytes(self, device: &Device, world_size: usize, largest: usize) -> Option<u64> {
        let pinned = if device.is_cpu() { 0 } else { READING_BYTES };
        match self {
            _ if world_size == 1 => None,
            Self::Host => Some(reduce_bytes(largest) + pinned),
            Self::Nccl => Some(0),
        }
    }

    /// The entry in a run's identity. A run in one process has no order of sums: it keeps the entry that it had before.
    pub(super) fn recorded(
        self,
        comm: &dyn Communicator,
        settings: &Settings,
        output: &Path,
        identity: &Identity,
    ) -> Option<String> {
        match comm.world_size() {
            1 => recorded_sums(settings, output, &identity.settings),
            _ => Some(self.in_words().to_owned()),
        }
    }

    /// The way that the environment asks for, in its own word; none: it asks for none. Refused: another word.
    pub fn asked_word() -> Result<Option<&'static str>> {
        Ok(asked_by_environment()?.map(|sums| match sums {
            Self::Host => "host",
            Self::Nccl => "nccl",
        }))
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Host => "in the order of the processes",
            Self::Nccl => "by NCCL",
        }
    }
}

fn asked_by_environment() -> Result<Option<Sums>> {
    asked(std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

/// The refusal of NCCL where it is asked for.
fn unusable(problem: &str) -> Error {
    Error::Refused(format!(
        "environment variable {VARIABLE}: found \"nccl\", which cannot be used: {problem}; unset it to add up in the \
         memory of the host"
    ))
}

/// The way that the environment asks for, if any.
fn asked(value: Option<&str>) -> Result<Option<Sums>> {
    match value.map(str::trim) {
        None | Some("") => Ok(None),
        Some("nccl") => Ok(Some(Sums::Nccl)),
        Some("host") => Ok(Some(Sums::Host)),
        Some("mpi") => bail_usage!(
            "environment variable {VARIABLE}: found \"mpi\", expected \"nccl\" or \"host\": MPI moves sums in the memory of \
             the host, with QLORA_COMM=mpi"
        ),
        Some(found) => bail_usage!("environment variable {VARIABLE}: found {found:?}, expected \"nccl\" or \"host\""),
    }
}

/// The means that a rank can add up with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Means {
    asked: Option<Sums>,
    /// A text that no other GPU has; none on the CPU
    gpu: Option<String>,
    /// Version of NCCL, or why there is none
    nccl: Result<String, String>,
}

impl Means {
    fn of(device: &Device, asked: Option<Sums>) -> Result<Self> {
        let gpu = device.identity()?;
        let nccl = match gpu {
            Some(_) => Nccl::version().map_err(|error| error.to_string()),
            None => Err(ON_CPU.to_owned()),
        };
        Ok(Self { asked, gpu, nccl })
    }
}

/// The way for ranks of these `names`, with the version of NCCL or why it is not used. `recorded` is the way of the run
/// that goes on; `by_itself`: NCCL is used unless something else is said.
fn decide(all: &[Means], names: &[String], recorded: Option<&str>, by_itself: bool) -> Result<(Sums, String)> {
    let asked = all[0].asked;
    if let Some(rank) = all.iter().position(|means| means.asked != asked) {
        let of = |asked: Option<Sums>| match asked {
            None => "nothing",
            Some(Sums::Host) => "host",
            Some(Sums::Nccl) => "nccl",
        };
        let (there, here) = (of(all[rank].asked), of(asked));
        bail_usage!(
            "environment variable {VARIABLE}: {there} for {}, {here} for {}; set it alike for all ranks",
            names[rank],
            names[0]
        );
    }
    let found = usable(all, names);
    let was = |sums: Sums| recorded == Some(sums.in_words());
    match (asked, found) {
        (Some(Sums::Host), _) => Ok((Sums::Host, format!("{VARIABLE}=host"))),
        (Some(Sums::Nccl), Ok(version)) => Ok((Sums::Nccl, version)),
        (Some(Sums::Nccl), Err(problem)) => Err(unusable(&problem)),
        (None, _) if was(Sums::Host) => Ok((Sums::Host, "as the run began".to_owned())),
        (None, Ok(version)) if by_itself || was(Sums::Nccl) => Ok((Sums::Nccl, version)),
        (None, Ok(_)) => Ok((Sums::Host, format!("{VARIABLE}=nccl tries the stand-in for NCCL"))),
        // Another way would be another run, which may take the place of this one.
        (None, Err(problem)) if was(Sums::Nccl) => Err(Error::Refused(format!(
            "this run began with sums by NCCL, which cannot be used now: {problem}; go on where it can be, or in one \
             process, or choose another output_dir"
        ))),
        (None, Err(problem)) => Ok((Sums::Host, problem)),
    }
}

/// The version of NCCL that all ranks have, each with a GPU of its own; or why they cannot use it.
fn usable(all: &[Means], names: &[String]) -> Result<String, String> {
    for (rank, Means { gpu, nccl, .. }) in all.iter().enumerate() {
        let (own, first) = (nccl.as_ref().map_err(|problem| format!("{}: {problem}", names[rank]))?, &all[0].nccl);
        if first.as_ref() != Ok(own) {
            let first = first.as_deref().unwrap_or("none");
            return Err(format!("{} has NCCL {own}, {} has {first}", names[rank], names[0]));
        }
        if let Some(other) = all[..rank].iter().position(|other| other.gpu == *gpu) {
            return Err(format!("{} and {} share one GPU, which NCCL does not allow", names[other], names[rank]));
        }
    }
    all[0].nccl.clone()
}

#[cfg(test)]
mod tests;
