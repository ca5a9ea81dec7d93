//! Ranks of one process, each a thread: all put down their part of an operation, wait, and add the parts up in order.

use qlora_train::comm::Communicator;
use qlora_train::error::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

/// Values from which on a bucket of gradients is full: few, so that a tiny model has many buckets.
const BUCKET: usize = 300;

/// Sums of gradients that were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// In the thread beside the backward pass
    pub beside: usize,
    pub all: usize,
}

/// Parts that the ranks have put down.
struct Table {
    parts: Vec<Mutex<(Vec<f32>, Vec<f64>)>>,
    said: Vec<Mutex<Vec<u8>>>,
    barrier: Barrier,
    beside: AtomicUsize,
    all: AtomicUsize,
}

/// A rank of several.
pub struct Rank<'a> {
    rank: usize,
    table: &'a Table,
    overlaps: bool,
}

/// Results of the `work` of `world` ranks, and the sums that they made. `overlaps`: they may be made beside the
/// backward pass. A rank that fails keeps the others waiting.
pub fn of_ranks<T: Send>(
    world: usize,
    overlaps: bool,
    work: impl Fn(&mut dyn Communicator) -> T + Sync,
) -> (Vec<T>, Sums) {
    let table = Table {
        parts: (0..world).map(|_| Mutex::default()).collect(),
        said: (0..world).map(|_| Mutex::default()).collect(),
        barrier: Barrier::new(world),
        beside: AtomicUsize::new(0),
        all: AtomicUsize::new(0),
    };
    let (table, work) = (&table, &work);
    let results = std::thread::scope(|scope| {
        let rank = |rank| scope.spawn(move || work(&mut Rank { rank, table, overlaps }));
        let threads: Vec<_> = (0..world).map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [beside, all] = [&table.beside, &table.all].map(|count| count.load(Ordering::Relaxed));
    (results, Sums { beside, all })
}

impl Communicator for Rank<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.table.parts.len()
    }

    fn on_this_machine(&self) -> (usize, usize) {
        (self.rank, self.world_size())
    }

    fn bucket(&self) -> usize {
        BUCKET
    }

    fn beside(&mut self) -> Option<&mut (dyn Communicator + Send)> {
        if self.overlaps { Some(self) } else { None }
    }

    fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Table { said, barrier, .. } = self.table;
        *said[self.rank].lock().unwrap() = own.to_vec();
        barrier.wait();
        let all = said.iter().map(|said| said.lock().unwrap().clone()).collect();
        barrier.wait();
        Ok(all)
    }

    fn broadcast(&mut self, what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.all_gather(what, &own)?.swap_remove(0))
    }

    fn all_reduce_sum(&mut self, gradients: &mut [f32], totals: &mut [f64]) -> Result<()> {
        let Table { parts, barrier, beside, all, .. } = self.table;
        if !gradients.is_empty() {
            let is_beside = std::thread::current().name() == Some("sums");
            beside.fetch_add(usize::from(is_beside), Ordering::Relaxed);
            all.fetch_add(1, Ordering::Relaxed);
        }
        *parts[self.rank].lock().unwrap() = (gradients.to_vec(), totals.to_vec());
        barrier.wait();
        gradients.fill(0.0);
        totals.fill(0.0);
        for part in parts {
            let (g, t) = &*part.lock().unwrap();
            assert!(g.len() == gradients.len() && t.len() == totals.len(), "all ranks give the same to a sum");
            gradients.iter_mut().zip(g).for_each(|(sum, x)| *sum += x);
            totals.iter_mut().zip(t).for_each(|(sum, x)| *sum += x);
        }
        barrier.wait();
        Ok(())
    }
}
