//! Packing: rows share a bin of `max_length` tokens, so that short rows do not leave the device idle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::bail_usage;
use crate::error::Result;

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
        bail_usage!("row {row} has {length} tokens; packing takes rows of at most max_length {max_length}");
    }
    Ok(())
}

/// Best-fit-decreasing: the longest row first, each into the bin that it leaves fullest, or into a new one.
///
/// `lengths[row]` are tokens, `order` the rows to pack. Rows of equal length are placed in that order, and bins are
/// returned in the order of the row that opened them, so that another order gives other bins. Every row of `order` is
/// in exactly one bin. Errors: a row longer than `max_length`.
pub fn pack(lengths: &[usize], order: &[usize], max_length: usize) -> Result<Vec<Vec<usize>>> {
    let by_length = longest_first(lengths, order, max_length)?;
    // Bins as ranks in `order`, and by their free tokens, the first of equals on top, to find the best fit.
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut free: BTreeMap<usize, BinaryHeap<Reverse<usize>>> = BTreeMap::new();
    for rank in by_length {
        let rank = rank as usize;
        let length = lengths[order[rank]];
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

/// Places in `order`, those of the longest rows first, of equal ones in their order. Lengths are counted instead of
/// compared. Errors: a row longer than `max_length`, the longest of them.
fn longest_first(lengths: &[usize], order: &[usize], max_length: usize) -> Result<Vec<u32>> {
    let longest = order.iter().map(|&row| lengths[row]).max().unwrap_or(0);
    if longest > max_length {
        let row = order.iter().copied().find(|&row| lengths[row] == longest).unwrap_or(0);
        check_length(row, longest, max_length)?;
    }
    // Beginnings of those of each length.
    let mut begins = vec![0_u32; longest + 1];
    order.iter().for_each(|&row| begins[lengths[row]] += 1);
    let mut begin = 0;
    for count in begins.iter_mut().rev() {
        begin += std::mem::replace(count, begin);
    }
    let mut places = vec![0; order.len()];
    for (rank, &row) in (0_u32..).zip(order) {
        let begin = &mut begins[lengths[row]];
        places[*begin as usize] = rank;
        *begin += 1;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_a_stable_sort_by_length() {
        let mut stream = qlora_kernels::rng::RngStream::new(5, 1);
        for rows in [0, 1, 2, 300] {
            let lengths: Vec<usize> = (0..rows).map(|_| stream.below(20) as usize).collect();
            let mut order: Vec<usize> = (0..rows).collect();
            stream.shuffle(&mut order);
            let mut expected: Vec<u32> = (0..rows as u32).collect();
            expected.sort_by_key(|&rank| Reverse(lengths[order[rank as usize]]));
            assert_eq!(longest_first(&lengths, &order, 20).unwrap(), expected, "{rows}");
        }
        let error = longest_first(&[3, 30, 25], &[0, 2, 1], 20).unwrap_err().to_string();
        assert!(error.contains("row 1 has 30 tokens"), "{error}");
    }
}
