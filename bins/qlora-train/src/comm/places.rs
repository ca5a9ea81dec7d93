//! Machines and processors of the processes of a run, as each process reported them.

use super::link::Peer;
use std::collections::BTreeSet;

/// Number of a process among those of its machine, by rank, and the count of those.
pub(super) fn on_machine_of(peers: &[Peer], own: usize) -> (usize, usize) {
    let here = |rank: &usize| peers[*rank].machine == peers[own].machine;
    ((0..own).filter(here).count(), (0..peers.len()).filter(here).count())
}

/// Number of a process's machine: that of the first process on it.
pub(super) fn machine_of(peers: &[Peer], rank: usize) -> usize {
    peers.iter().position(|peer| peer.machine == peers[rank].machine).unwrap_or(rank)
}

/// Number of processes that may use the same processors as this one.
pub(super) fn on_processors_of(peers: &[Peer], own: usize) -> usize {
    let of = |peer: &Peer| (peer.machine.clone(), peer.processors.clone());
    peers.iter().filter(|peer| of(peer) == of(&peers[own])).count()
}

/// Number of machines of these processes.
pub(super) fn machines(peers: &[Peer]) -> usize {
    peers.iter().map(|peer| peer.machine.as_str()).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_counted_by_machine_and_by_processors() {
        let peer = |(machine, processors): (&str, &str)| {
            let (machine, processors) = (machine.to_owned(), processors.to_owned());
            Peer { host: "a container".to_owned(), machine, processors, process: 1 }
        };
        let peers = [("one", "0-3"), ("two", "0-3"), ("one", "4-7"), ("two", "0-3"), ("two", "0-1")].map(peer);
        let machine: Vec<_> = (0..5).map(|rank| on_machine_of(&peers, rank)).collect();
        assert_eq!(machine, [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]);
        let processors: Vec<_> = (0..5).map(|rank| on_processors_of(&peers, rank)).collect();
        assert_eq!((processors, machines(&peers)), (vec![1, 2, 1, 2, 1], 2));
        let numbers: Vec<_> = (0..5).map(|rank| machine_of(&peers, rank)).collect();
        assert_eq!(numbers, [0, 1, 0, 1, 1]);
    }
}
