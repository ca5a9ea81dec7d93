//! Packing: rows share a bin of `max_length` tokens, so that short rows do not leave the device idle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

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
    let mut by_length: Vec<(Reverse<usize>, usize)> =
        order.iter().enumerate().map(|(rank, &row)| (Reverse(lengths[row]), rank)).collect();
    by_length.sort_unstable();
    // Bins as ranks in `order`, and by their free tokens, the first of equals on top, to find the best fit.
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut free: BTreeMap<usize, BinaryHeap<Reverse<usize>>> = BTreeMap::new();
    for (Reverse(length), rank) in by_length {
        check_length(order[rank], length, max_length)?;
        let fit = free.range_mut(length..).next().map(|(&room, bins)| (room, bins.pop(), bins.is_empty()));
        let (room, bin) = match fit {
            Some((room, Some(Reverse(bin)), emptied)) => {
                if emptied {
                    free.remove(&room);
                }
                (room, bin)
            }
            _ => {
                bins.push(Vec::new());
                (max_length, bins.len() - 1)
            }
        };
        bins[bin].push(rank);
        // A row of no tokens would fit a full bin too.
        free.entry(room - length).or_default().push(Reverse(bin));
    }
    bins.sort_by_key(|bin| bin[0]);
    Ok(bins.into_iter().map(|bin| bin.into_iter().map(|rank| order[rank]).collect()).collect())
}
