//! The library of a [`Meeting`]: MPI, by the crate `mpi`. The launcher notices a rank that dies: `mpirun` ends all
//! others, also after a rank that exits without finalizing the library.

use super::failure::Failure;
use super::launch::Launch;
use super::meeting::{Meeting, Transport, UNREAD};
use super::rendezvous::{Timeouts, this_process};
use super::tcp::overlaps_by_environment;
use super::watchdog::Watchdog;
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::report::{print_error, status};
use ::mpi::datatype::{Partition, PartitionMut};
use ::mpi::environment::{Universe, library_version};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator as _, CommunicatorCollectives as _, Destination as _, Root as _, Source as _};
use ::mpi::{Count, Rank, Tag, Threading};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tag of notes
const NOTE: Tag = 1;

/// One of several processes that meet by MPI.
pub(super) type Mpi = Meeting<Library>;

/// True if any thread may end all processes while another one is inside the library
static MAY_ABORT: AtomicBool = AtomicBool::new(false);

/// MPI between its beginning and its end, which comes when this is dropped.
pub(super) struct Library(Universe);

/// Connects to the other processes by the library. Refused: it counts other processes than the launcher started, or
/// they run another program.
pub(super) fn join(launch: &Launch, build: &str, timeouts: Timeouts) -> Result<Mpi> {
    let Launch { launcher, rank, world_size, local_rank, .. } = launch;
    let (overlaps, watchdog) = (overlaps_by_environment()?, Watchdog::start(end)?);
    let late = format!(
        "{} did not bring the {world_size} processes of {launcher} together within {} s: start all of them by one \
         launch (QLORA_JOIN_SECONDS waits longer)",
        library(),
        timeouts.join.as_secs_f64()
    );
    watchdog.limit(timeouts.join, Failure { of: *rank, message: late, usage: true });
    let Some((mut universe, threading)) = ::mpi::initialize_with_threading(Threading::Multiple) else {
        return Err(Error::Failed(format!("{} has begun in this process before", library())));
    };
    MAY_ABORT.store(threading == Threading::Multiple, Ordering::SeqCst);
    let (own, all) = (universe.world().rank(), universe.world().size());
    if (own, all) != (*rank as Rank, *world_size as Rank) {
        bail_usage!(
            "{} counts this process as rank {own} of {all}, and {launcher} started it as rank {rank} of {world_size}: \
             start it by the `mpirun` of that library, or let the processes meet over TCP (QLORA_COMM=tcp)",
            library()
        );
    }
    universe.set_buffer_size(world_size * UNREAD);
    watchdog.lift();
    // A thread of its own adds up, and no other calls the library meanwhile.
    let overlaps = overlaps && threading >= Threading::Serialized;
    let mut met = Meeting::new(Library(universe), *local_rank, overlaps, timeouts.stall, watchdog);
    met.introduce(&this_process(), build)?;
    status!("{world_size} processes (started by {launcher}) over {}", library());
    Ok(met)
}

/// "Open MPI v5.0.11", "MPICH Version: 4.2.0"
pub(super) fn library() -> String {
    let text = library_version().unwrap_or_default();
    let first = text.split(['\n', ',', '\0']).next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    if words.is_empty() { "MPI".to_owned() } else { words.join(" ") }
}

/// Ends this process, and all others with it.
fn end(failure: &Failure) {
    let error = failure.error();
    print_error(&error);
    let status = error.exit_status().into();
    if MAY_ABORT.load(Ordering::SeqCst) && !::mpi::is_finalized() {
        SimpleCommunicator::world().abort(status);
    }
    // It exits at once: destructors and exit handlers may wait for the thread that hangs.
    signal_hook::low_level::exit(status);
}

/// Lengths and offsets, as the integers that the library takes.
fn counted(slices: impl Iterator<Item = Range<usize>>) -> (Vec<Count>, Vec<Count>) {
    slices.map(|slice| (slice.len() as Count, slice.start as Count)).unzip()
}

/// Ranges of these lengths, one after the other.
fn in_turn(lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    lengths.scan(0, |end, length| {
        let start = *end;
        *end += length;
        Some(start..*end)
    })
}

impl Transport for Library {
    fn rank(&self) -> usize {
        self.0.world().rank() as usize
    }

    fn world_size(&self) -> usize {
        self.0.world().size() as usize
    }

    fn post(&mut self, to: usize, note: &[u8]) {
        self.0.world().process_at_rank(to as Rank).buffered_send_with_tag(note, NOTE);
    }

    fn poll(&self, from: usize) -> Option<Vec<u8>> {
        let world = self.0.world();
        let process = world.process_at_rank(from as Rank);
        process.immediate_probe_with_tag(NOTE)?;
        Some(process.receive_vec_with_tag::<u8>(NOTE).0)
    }

    fn exchange(&mut self, own: &[f32], slices: &[Range<usize>], parts: &mut [f32]) {
        let (counts, starts) = counted(slices.iter().cloned());
        let part = slices[self.rank()].len();
        let (of_parts, starts_of_parts) = counted(in_turn(slices.iter().map(|_| part)));
        let given = Partition::new(own, counts, starts);
        let mut taken = PartitionMut::new(parts, of_parts, starts_of_parts);
        self.0.world().all_to_all_varcount_into(&given, &mut taken);
    }

    fn spread(&mut self, own: &[f32], slices: &[Range<usize>], all: &mut [f32]) {
        let (counts, starts) = counted(slices.iter().cloned());
        let mut taken = PartitionMut::new(all, counts, starts);
        self.0.world().all_gather_varcount_into(own, &mut taken);
    }

    fn gather(&mut self, own: &[u8], lengths: &[usize], all: &mut [u8]) {
        let (counts, starts) = counted(in_turn(lengths.iter().copied()));
        let mut taken = PartitionMut::new(all, counts, starts);
        self.0.world().all_gather_varcount_into(own, &mut taken);
    }

    fn broadcast(&mut self, bytes: &mut [u8]) {
        self.0.world().process_at_rank(0).broadcast_into(bytes);
    }
}
