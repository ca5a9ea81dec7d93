//! Speed of sums over all processes, for `doctor`.

use super::Communicator;
use super::agreement::agree_on_results;
use crate::error::Result;
use std::time::Instant;

/// Sums that are timed, after one that is not
const TIMES: usize = 5;

/// Seconds of a sum of `count` numbers over all ranks: the median of some. Failed: ranks have different sums.
pub fn sum_seconds(comm: &mut dyn Communicator, count: usize) -> Result<f64> {
    let (mut seconds, rank) = (Vec::new(), comm.rank() as f32);
    let given: Vec<f32> = (0..count).map(|at| (at % 1009) as f32 * 0.1 + rank).collect();
    for time in 0..=TIMES {
        let mut numbers = given.clone();
        // All begin together.
        comm.all_gather("beginning", &[])?;
        let begun = Instant::now();
        comm.all_reduce_sum(&mut numbers, &mut [])?;
        if time > 0 {
            seconds.push(begun.elapsed().as_secs_f64());
        }
        let sum: u64 = numbers.iter().fold(0, |sum, x| sum.rotate_left(1) ^ u64::from(x.to_bits()));
        agree_on_results(comm, "sum", &sum.to_le_bytes())?;
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[TIMES / 2])
}
