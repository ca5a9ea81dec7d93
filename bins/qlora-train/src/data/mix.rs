//! The rows of an epoch: all of them once, or each file's rows by its weight.
//!
//! A file with the weight 2.5 has each of its rows twice, and half of them once more. Which half is drawn by the seed,
//! for the whole run: epochs are of equal size, and a resumed run has the same.

use std::fmt;

use qlora_kernels::rng::RngStream;

use crate::report::{printable, thousands};

const MIX_DOMAIN: u64 = 0x4D49_5800_0000_0000;

/// Mixing of the files; with one number for each file.
#[derive(Clone, Debug, PartialEq)]
pub enum MixOptions {
    /// Number of times that each row is in an epoch
    Weights(Vec<f64>),
    /// Shares of an epoch. `over`: every row is used at least once; otherwise no row is used twice.
    Shares { of_each: Vec<f64>, over: bool },
}

/// The part of a file in an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct MixPart {
    pub file: usize,
    pub weight: f64,
    /// Rows of the file, and the number that an epoch has of them
    pub rows: usize,
    pub in_epoch: usize,
}

/// The rows of an epoch, in the order of the files.
#[derive(Clone, Debug)]
pub struct Mix {
    /// None: all of them once.
    rows: Option<Vec<u32>>,
    all: usize,
    parts: Vec<MixPart>,
}

impl Mix {
    /// All of `rows` rows, each once.
    pub fn all(rows: usize) -> Self {
        Self { rows: None, all: rows, parts: Vec::new() }
    }

    /// `files`: the file of each row.
    pub fn new(files: &[usize], options: &MixOptions, seed: u64) -> Self {
        let numbers = match options {
            MixOptions::Weights(of_each) | MixOptions::Shares { of_each, .. } => of_each,
        };
        let of_file = |file: usize| -> Vec<u32> {
            files.iter().zip(0u32..).filter(|(of, _)| **of == file).map(|(_, row)| row).collect()
        };
        let rows_of: Vec<Vec<u32>> = (0..numbers.len()).map(of_file).collect();
        let weights = match options {
            MixOptions::Weights(weights) => weights.clone(),
            MixOptions::Shares { of_each, over } => weights_of(of_each, &rows_of, *over),
        };
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for (file, (of_file, weight)) in rows_of.into_iter().zip(weights).enumerate() {
            if of_file.is_empty() {
                continue;
            }
            let wanted = ((of_file.len() as f64 * weight).round() as usize).max(1);
            for _ in 0..wanted / of_file.len() {
                rows.extend(&of_file);
            }
            let rest = wanted % of_file.len();
            let mut drawn: Vec<usize> = (0..of_file.len()).collect();
            if rest > 0 {
                RngStream::new(seed, MIX_DOMAIN ^ file as u64).shuffle(&mut drawn);
            }
            drawn.truncate(rest);
            drawn.sort_unstable();
            rows.extend(drawn.into_iter().map(|at| of_file[at]));
            parts.push(MixPart { file, weight, rows: of_file.len(), in_epoch: wanted });
        }
        Self { rows: Some(rows), all: files.len(), parts }
    }

    /// Rows of an epoch.
    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(self.all, Vec::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row at a place of the mix.
    pub fn row(&self, at: usize) -> usize {
        self.rows.as_ref().map_or(at, |rows| rows[at] as usize)
    }

    pub fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).map(|at| self.row(at))
    }

    /// Files whose rows an epoch does not have exactly once each; empty if every row is there once.
    pub fn parts(&self) -> &[MixPart] {
        &self.parts
    }

    /// A line of the mix, with the names of the files; none where an epoch has all rows once.
    pub fn line(&self, names: &[String]) -> Option<String> {
        let part =
            |part: &MixPart| format!("{} {}", names.get(part.file).map_or("?".into(), |name| printable(name)), part);
        let share = |part: &MixPart| format!("{:.1}%", 100.0 * part.in_epoch as f64 / self.len() as f64);
        let parts: Vec<String> = self.parts.iter().map(|one| format!("{}, {}", part(one), share(one))).collect();
        (!parts.is_empty())
            .then(|| format!("mixing: {} rows in an epoch: {}", thousands(self.len() as u64), parts.join("; ")))
    }
}

impl fmt::Display for MixPart {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (rows, in_epoch) = (thousands(self.rows as u64), thousands(self.in_epoch as u64));
        write!(f, "× {} ({rows} → {in_epoch} rows)", (self.weight * 1000.0).round() / 1000.0)
    }
}

/// Weights that give the files these shares of an epoch.
fn weights_of(shares: &[f64], rows_of: &[Vec<u32>], over: bool) -> Vec<f64> {
    let present = || shares.iter().zip(rows_of).filter(|(_, rows)| !rows.is_empty());
    let total: f64 = present().map(|(share, _)| share).sum();
    let epochs = present().map(|(share, rows)| rows.len() as f64 * total / share);
    let epoch = if over { epochs.fold(0.0, f64::max) } else { epochs.fold(f64::INFINITY, f64::min) };
    let weight = |(share, rows): (&f64, &Vec<u32>)| share / total * epoch / rows.len().max(1) as f64;
    shares.iter().zip(rows_of).map(weight).collect()
}

#[cfg(test)]
mod tests;
