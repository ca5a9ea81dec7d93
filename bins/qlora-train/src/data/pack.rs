//! Packing: rows share a bin of `max_length` tokens, so that short rows do not leave the device idle.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::refuse;

/// Rows in the order given, a bin after the other: a row that has no room in the last bin opens the next. Errors: a row
/// longer than `max_length`.
pub fn pack_in_order(lengths: &[usize], order: &[usize], max_length: usize) -> Result<Vec<Vec<usize>>> {
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &row in order {
        let length = lengths[row];
        check_length(row, length, max_length)?;
        if bins.is_empty() || length > room {
            bins.push(Vec::new());
            room = max_length;
        }
        room -= length;
        bins.last_mut().expect("one was opened").push(row);
    }
    Ok(bins)
}

fn check_length(row: usize, length: usize, max_length: usize) -> Result<()> {
    if length > max_length {
        refuse!("row {row} has {length} tokens; packing takes rows of at most max_length {max_length}");
    }
    Ok(())
}

/// Best-fit-decreasing: the longest row first, each into the bin that it leaves fullest, else into a new one.
///
/// `lengths[row]` are tokens, `order` the rows to pack. Rows of equal length are placed in that order, and bins are
/// returned in the order of the row that opened them, so that another order gives other bins. Every row of `order` is
/// in exactly one bin. Errors: a row longer than `max_length`.
pub fn pack(lengths: &[usize], order: &[usize], max_length: usize) -> Result<Vec<Vec<usize>>> {
    let mut by_length: Vec<(usize, usize)> = order.iter().copied().enumerate().collect();
    by_length.sort_by_key(|&(rank, row)| (std::cmp::Reverse(lengths[row]), rank));
    // Bins as ranks in `order`, and (free tokens, bin) to find the best fit.
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut free: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (rank, row) in by_length {
        let length = lengths[row];
        check_length(row, length, max_length)?;
        let (room, bin) = match free.range((length, 0)..).next().copied() {
            Some(fit) => {
                free.remove(&fit);
                fit
            }
            None => {
                bins.push(Vec::new());
                (max_length, bins.len() - 1)
            }
        };
        bins[bin].push(rank);
        free.insert((room - length, bin));
    }
    bins.sort_by_key(|bin| bin[0]);
    Ok(bins.into_iter().map(|bin| bin.into_iter().map(|rank| order[rank]).collect()).collect())
}
