//! Rank and world size that a launcher of several processes put into the environment, and the address at which they
//! meet.

use crate::bail_usage;
use crate::error::Result;

/// Port at which rank 0 listens where the launcher names none: PyTorch's.
const PORT: u16 = 29500;

/// Means by which processes exchange the values that they add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over connections of the program's own
    Tcp,
    /// By the library that the build is linked with
    #[cfg(feature = "mpi")]
    Mpi,
}

/// Variable of the environment that chooses the way
const WAY: &str = "QLORA_COMM";
/// MPI, in a build that has it
#[cfg(feature = "mpi")]
const MPI: Option<Way> = Some(Way::Mpi);
#[cfg(not(feature = "mpi"))]
const MPI: Option<Way> = None;
/// Launchers that belong to a library of MPI
const OF_MPI: [&str; 3] = ["OpenMPI", "MVAPICH", "MPICH"];

impl Way {
    /// The way that the environment chooses, or else the one of the launcher.
    fn of(launcher: &str, variable: Variables) -> Result<Self> {
        let found = variable(WAY).unwrap_or_default();
        match found.trim() {
            "" if OF_MPI.contains(&launcher) => Ok(MPI.unwrap_or(Self::Tcp)),
            "" | "tcp" => Ok(Self::Tcp),
            "mpi" => match MPI {
                Some(way) => Ok(way),
                None => bail_usage!(
                    "environment variable {WAY}: found \"mpi\", but this build has no MPI: rebuild it with `--features \
                     mpi`, or unset {WAY} to let the processes meet over TCP"
                ),
            },
            _ => bail_usage!("environment variable {WAY}: found {found:?}, expected \"tcp\" or \"mpi\""),
        }
    }
}

/// Variables of a launcher
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    /// Number of a process among those of its machine
    local_rank: &'static str,
    /// Number of those processes
    local_size: &'static str,
    /// Variables that together name one of its jobs
    job: &'static [&'static str],
}

const fn launcher(
    name: &'static str,
    [rank, size, local_rank, local_size]: [&'static str; 4],
    job: &'static [&'static str],
) -> Launcher {
    Launcher { name, rank, size, local_rank, local_size, job }
}

/// In the order in which they are believed: torchrun is itself started by the others.
const LAUNCHERS: [Launcher; 5] = [
    launcher("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"], &["TORCHELASTIC_RUN_ID"]),
    launcher(
        "OpenMPI",
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
        &["PMIX_NAMESPACE"],
    ),
    launcher(
        "MVAPICH",
        ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"],
        &[],
    ),
    launcher("MPICH", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"], &[]),
    // Numbers of a step, which srun starts: a script of sbatch has those of its whole job, as rank 0, and is alone.
    launcher(
        "SLURM",
        ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""],
        &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    ),
];

/// Variables of SLURM with the number of machines, that of the step before that of the job
const SLURM_NODES: [&str; 3] = ["SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"];

/// One of several processes that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the launcher
    pub launcher: &'static str,
    /// This process, from 0
    pub rank: usize,
    /// More than 1
    pub world_size: usize,
    /// Number of this process among those of its machine, where the launcher gives it
    pub local_rank: Option<usize>,
    /// Number of processes on this machine, where the launcher gives it or all are here; an upper bound, where it gives
    /// the number of machines
    pub local_size: Option<usize>,
    /// Host at which rank 0 listens; empty where a library brings the processes together
    pub address: String,
    pub port: u16,
    /// Name of the launcher's job, or empty
    pub job: String,
    pub way: Way,
}

impl Launch {
    /// The launch that started this process; none where it is alone. Refused: variables that do not fit together.
    pub fn detect() -> Result<Option<Self>> {
        detect(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

fn detect(variable: Variables) -> Result<Option<Launch>> {
    for launcher in &LAUNCHERS {
        let Launcher { name, rank: rank_name, size: size_name, .. } = launcher;
        let Some(size) = variable(size_name) else { continue };
        let rank = variable(rank_name);
        // A shell inside an allocation of several tasks is not one of them.
        if *name == "SLURM" && rank.is_none() {
            continue;
        }
        let Some(world_size) = number(&size).filter(|&size| size > 0) else {
            bail_usage!("environment variable {size_name}: found {size:?}, expected the number of processes ({name})");
        };
        let rank = match rank {
            None if world_size == 1 => 0,
            None => bail_usage!(
                "environment variable {rank_name}: found none, but {size_name} is {world_size} ({name}): start every \
                 process by the launcher, or unset {size_name} to train in one process"
            ),
            Some(text) => match number(&text).filter(|&rank| rank < world_size) {
                Some(rank) => rank,
                None => bail_usage!(
                    "environment variable {rank_name}: found {text:?}, expected a number below {size_name}, which is \
                     {world_size} ({name})"
                ),
            },
        };
        if world_size == 1 {
            return Ok(None);
        }
        return launched(launcher, rank, world_size, variable).map(Some);
    }
    Ok(None)
}

fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok()
}

/// The largest number of the `world_size` processes on one of these machines, if they are dealt out evenly.
fn part(world_size: usize, machines: &str) -> Option<usize> {
    number(machines).filter(|&machines| machines > 0).map(|machines| world_size.div_ceil(machines))
}

fn launched(launcher: &Launcher, rank: usize, world_size: usize, variable: Variables) -> Result<Launch> {
    let counted = |name: &str| -> Result<Option<usize>> {
        let Some(text) = variable(name).filter(|_| !name.is_empty()) else { return Ok(None) };
        match number(&text) {
            Some(number) => Ok(Some(number)),
            None => bail_usage!("environment variable {name}: found {text:?}, expected a number ({})", launcher.name),
        }
    };
    let way = Way::of(launcher.name, variable)?;
    let local_size = match launcher.name {
        "SLURM" => SLURM_NODES.iter().find_map(|name| variable(name)).and_then(|nodes| part(world_size, &nodes)),
        _ => counted(launcher.local_size)?,
    };
    let all_are_here = local_size.is_some_and(|local| local >= world_size);
    let given = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let address = match given("MASTER_ADDR") {
        Some(address) => address,
        None if all_are_here => "127.0.0.1".to_owned(),
        None if way != Way::Tcp => String::new(),
        None => bail_usage!(
            "environment variable MASTER_ADDR: found none, expected the host name of rank 0, where the {world_size} \
             processes of {} meet: set it for all of them, with MASTER_PORT for another port than {PORT}{}",
            launcher.name,
            match launcher.name {
                "SLURM" => "; `export MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)`",
                "OpenMPI" => "; `mpirun -x MASTER_ADDR=HOST …`",
                _ => "",
            }
        ),
    };
    let port = match given("MASTER_PORT") {
        None => PORT,
        Some(text) => match text.parse().ok().filter(|&port| port > 0) {
            Some(port) => port,
            None => bail_usage!("environment variable MASTER_PORT: found {text:?}, expected a port from 1 to 65535"),
        },
    };
    // There torchrun itself listens at that port, for as long as the processes run.
    let is_taken = given("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
    Ok(Launch {
        launcher: launcher.name,
        rank,
        world_size,
        local_rank: counted(launcher.local_rank)?,
        local_size: if all_are_here { Some(world_size) } else { local_size.filter(|&size| size > 0) },
        address,
        port: if is_taken { port.checked_add(1).unwrap_or(port - 1) } else { port },
        job: launcher.job.iter().filter_map(|name| given(name)).collect::<Vec<_>>().join("."),
        way,
    })
}

#[cfg(test)]
mod tests;
