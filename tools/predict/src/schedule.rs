//! Blocks of a grid on multiprocessors: the hardware gives the next block, in the order of the grid, to the first place
//! that is free.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The run of a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Makespan {
    pub end: f64,
    /// Share of the places' time in which they had a block
    pub busy: f64,
}

/// A moment, in an order.
struct Moment(f64);

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The run of blocks with these costs, in the grid's order, on `places` places.
pub fn list(costs: impl IntoIterator<Item = f64>, places: usize) -> Makespan {
    let mut free: BinaryHeap<Reverse<Moment>> = (0..places.max(1)).map(|_| Reverse(Moment(0.0))).collect();
    let (mut end, mut work) = (0.0_f64, 0.0);
    for cost in costs {
        let Reverse(Moment(start)) = free.pop().unwrap_or(Reverse(Moment(0.0)));
        let done = start + cost;
        free.push(Reverse(Moment(done)));
        end = end.max(done);
        work += cost;
    }
    let busy = if end > 0.0 { work / (end * places.max(1) as f64) } else { 1.0 };
    Makespan { end, busy }
}

/// The run of blocks that all cost the same: [`list`] without the loop.
pub fn equal(blocks: usize, cost: f64, places: usize) -> Makespan {
    let waves = blocks.div_ceil(places.max(1));
    let end = waves as f64 * cost;
    let busy = if blocks == 0 { 1.0 } else { blocks as f64 / (waves * places.max(1)) as f64 };
    Makespan { end, busy }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of the last block, counted moment by moment: at each, every free place in turn takes the next block.
    fn by_hand(costs: &[u32], places: usize) -> f64 {
        let mut left = vec![0_u32; places];
        let (mut next, mut clock) = (0, 0);
        loop {
            for place in &mut left {
                if *place == 0 && next < costs.len() {
                    *place = costs[next];
                    next += 1;
                }
            }
            if left.iter().all(|left| *left == 0) {
                return f64::from(clock);
            }
            left.iter_mut().for_each(|left| *left = left.saturating_sub(1));
            clock += 1;
        }
    }

    #[test]
    fn a_grid_ends_when_one_counted_by_hand_does() {
        // Every grid of up to five blocks of one to three cycles, on one to three places.
        for places in 1..=3 {
            for length in 0..=5_u32 {
                for number in 0..3_u32.pow(length) {
                    let costs: Vec<u32> = (0..length).map(|digit| number / 3_u32.pow(digit) % 3 + 1).collect();
                    let found = list(costs.iter().map(|&cost| f64::from(cost)), places);
                    assert_eq!(found.end, by_hand(&costs, places), "{costs:?} on {places}");
                    let work: u32 = costs.iter().sum();
                    let busy = if work == 0 { 1.0 } else { f64::from(work) / (found.end * places as f64) };
                    assert!((found.busy - busy).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn no_order_ends_before_the_work_is_shared_or_the_longest_block_is_done() {
        // Against every assignment of six blocks to three places.
        let costs = [7.0, 3.0, 5.0, 2.0, 6.0, 4.0];
        let best = (0..3_usize.pow(6))
            .map(|number| {
                let mut loads = [0.0_f64; 3];
                for (block, cost) in costs.iter().enumerate() {
                    loads[number / 3_usize.pow(block as u32) % 3] += cost;
                }
                loads.into_iter().fold(0.0, f64::max)
            })
            .fold(f64::INFINITY, f64::min);
        let mut heaviest_first = costs;
        heaviest_first.sort_by(|a, b| b.total_cmp(a));
        let found = list(heaviest_first, 3);
        assert_eq!((best, found.end), (9.0, 9.0));
        assert!(list(costs, 3).end >= best);
    }

    #[test]
    fn equal_blocks_run_in_waves() {
        for (blocks, places) in [(256, 84), (84, 84), (1, 84), (85, 84), (0, 3)] {
            let (found, listed) = (equal(blocks, 2.0, places), list(vec![2.0; blocks], places));
            assert_eq!(found.end, listed.end);
            assert!((found.busy - listed.busy).abs() < 1e-12);
        }
    }
}
