//! Ranges of rows of an entry of `data`, `[from:to]`, split over its files.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::columns::Columns;
use super::parquet;
use super::reader::read_rows;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::hub::{DataSetId, Slice};

/// The rows that stand behind the id of a data set. None: all, or the entry is a path.
pub fn asked_rows(entry: &Path) -> Result<Option<Slice>> {
    if entry.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let id = entry.to_str().map(DataSetId::parse).transpose()?.flatten();
    Ok(id.and_then(|id| id.rows))
}

/// The files with the range of rows to use from each, where `rows` counts over all files, one after the other. Files
/// outside the range are left out. Refused: no row is in the range.
pub fn cut(entry: &Path, files: Vec<PathBuf>, rows: Slice) -> Result<Vec<(PathBuf, Slice)>> {
    if rows == Slice::ALL {
        return Ok(files.into_iter().map(|file| (file, Slice::ALL)).collect());
    }
    let cut: Vec<(PathBuf, Slice)> = match rows.rows().filter(|_| files.len() == 1) {
        Some(range) if !range.is_empty() => files.into_iter().map(|file| (file, Slice::exactly(&range))).collect(),
        Some(_) => Vec::new(),
        None => over(files, rows)?,
    };
    if cut.is_empty() {
        bail_usage!("{}: the range [{rows}] has no rows, expected some", entry.display());
    }
    Ok(cut)
}

/// The rows of each file, by how many there are.
fn over(files: Vec<PathBuf>, rows: Slice) -> Result<Vec<(PathBuf, Slice)>> {
    let mut counts = Vec::with_capacity(files.len());
    let mut total = 0_u64;
    for file in &files {
        // Rows after the range need not be counted.
        let needed = rows.rows().is_none_or(|range| total < range.end);
        let count = if needed { count_rows(file)? } else { 0 };
        counts.push(total..total.saturating_add(count));
        total = total.saturating_add(count);
    }
    let meant = rows.of(total);
    let within = |own: &Range<u64>| {
        let (from, to) = (meant.start.max(own.start), meant.end.min(own.end));
        (from < to).then(|| Slice::exactly(&(from - own.start..to - own.start)))
    };
    let cut = files.into_iter().zip(&counts).filter_map(|(file, own)| Some((file, within(own)?)));
    Ok(cut.collect())
}

/// Rows of a file, those that cannot be trained on too: by its metadata for Parquet, otherwise by reading it.
fn count_rows(path: &Path) -> Result<u64> {
    // A pipe gives its rows once.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        bail_usage!(
            "{}: is no plain file, whose rows cannot be counted first: give them by number, [:1000]",
            path.display()
        );
    }
    let file = File::open(path).usage_context(|| format!("{}: cannot open the data file", path.display()))?;
    if let Some(rows) = parquet::claimed_rows(path, file)? {
        return Ok(rows);
    }
    let mut rows = 0;
    read_rows(path, &Columns::default(), &mut |_, _, _| {
        rows += 1;
        Ok(())
    })?;
    Ok(rows)
}

#[cfg(test)]
mod tests;
