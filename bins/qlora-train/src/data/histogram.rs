//! A histogram of the lengths of rows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Rows counted by length in buckets that double: 1, 2, 3..=4, 5..=8, … tokens. Empty rows are in the first one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram(Vec<usize>);

/// Characters of the longest bar.
const BAR: usize = 40;

impl Histogram {
    pub fn add(&mut self, tokens: usize) {
        let bucket = tokens.max(1).next_power_of_two().trailing_zeros() as usize;
        if self.0.len() <= bucket {
            self.0.resize(bucket + 1, 0);
        }
        self.0[bucket] += 1;
    }

    /// True if a histogram that was read from a file is possible.
    pub(super) fn is_valid(&self, most: usize) -> bool {
        self.0.len() <= usize::BITS as usize && self.0.iter().all(|&rows| rows <= most)
    }

    /// (shortest, longest, rows) of every bucket from the first to the last that has rows.
    pub fn buckets(&self) -> Vec<(usize, usize, usize)> {
        let first = self.0.iter().position(|&rows| rows > 0).unwrap_or(self.0.len());
        let bounds = |bucket: usize| (if bucket == 0 { 1 } else { (1 << (bucket - 1)) + 1 }, 1 << bucket);
        (first..self.0.len()).map(|bucket| (bounds(bucket).0, bounds(bucket).1, self.0[bucket])).collect()
    }
}

/// One bucket a line, with a bar.
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let buckets = self.buckets();
        let most = buckets.iter().map(|bucket| bucket.2).max().unwrap_or(0).max(1);
        write!(f, "{:>17}  rows", "tokens")?;
        for (from, to, rows) in buckets {
            let range = if from == to { from.to_string() } else { format!("{from} to {to}") };
            write!(f, "\n{range:>17}  {rows:<8} {}", "█".repeat((rows * BAR).div_ceil(most)))?;
        }
        Ok(())
    }
}
