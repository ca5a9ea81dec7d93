//! Tiles of a batch: tokens that the linear layers and the MLP work on at one time.

use crate::config::TokenTile;
use std::ops::Range;

/// Ranges of at most `tile` tokens. Every range but the last ends at a multiple of [`TokenTile::STEP`]; none is shorter
/// than that where `tile` is a multiple of it and at least [`TokenTile::SHORTEST`]: the last takes tokens from the one
/// before.
pub fn tiles(tokens: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = tokens - first;
        let len = match left.saturating_sub(tile) {
            0 => left,
            rest if rest < TokenTile::STEP => tile - TokenTile::STEP,
            _ => tile,
        };
        let range = first..first + len;
        first = range.end;
        (len > 0).then_some(range)
    })
}

/// The tiles of a dry run: the first, and all others as one. From the second on each begins with the memory that the
/// one before it has left, always the same, and what they compute adds up.
pub fn tiles_of_dry_run(tokens: usize, tile: usize) -> Vec<Range<usize>> {
    let first = tile.min(tokens);
    let ranges = [0..first, first..tokens];
    ranges.into_iter().filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_batch_in_order_and_none_is_short() {
        for tile in [512, 768, 2048] {
            for tokens in (0..5000).step_by(7).chain([511, 512, 513, 767, 768, 769, 1023, 1024, 1025]) {
                let found: Vec<_> = tiles(tokens, tile).collect();
                assert_eq!(found.iter().map(|range| range.len()).sum::<usize>(), tokens);
                assert!(
                    found.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % TokenTile::STEP == 0)
                );
                assert!(found.iter().all(|range| range.len() <= tile), "{tokens} {tile}: {found:?}");
                let shortest = found.iter().map(|range| range.len()).min().unwrap_or(TokenTile::STEP);
                assert!(shortest >= TokenTile::STEP.min(tokens), "{tokens} {tile}: {found:?}");
            }
        }
        assert_eq!(tiles(600, 512).collect::<Vec<_>>(), [0..256, 256..600]);
        assert_eq!(tiles(79, 79).count(), 1);
    }
}
