//! Rows of an entry of `data` by their numbers, `[from:to]`, and what that comes to for each of its files.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::columns::Columns;
use super::parquet;
use super::reader::read_rows;
use crate::error::{Context, Result};
use crate::hub::{DataSetId, Slice};
use crate::refuse;

/// The rows that stand behind the id of a data set. None: all, or the entry is a path.
pub fn asked_rows(entry: &Path) -> Result<Option<Slice>> {
    if entry.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let id = entry.to_str().map(DataSetId::parse).transpose()?.flatten();
    Ok(id.and_then(|id| id.rows))
}

/// The files with the rows that are meant of each, where `rows` are of all of them, one after the other. Files of which
/// none are meant are left out. Refused: no row is meant.
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
        refuse!("{}: the rows [{rows}] are none, expected some", entry.display());
    }
    Ok(cut)
}

/// The rows of each file, by how many there are.
fn over(files: Vec<PathBuf>, rows: Slice) -> Result<Vec<(PathBuf, Slice)>> {
    let mut counts = Vec::with_capacity(files.len());
    let mut total = 0_u64;
    for file in &files {
        // Rows behind the last one that is meant need not be counted.
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

/// Rows of a file, those that cannot be trained on too: by its own word where it is Parquet, else by reading it.
fn count_rows(path: &Path) -> Result<u64> {
    // A pipe gives its rows once.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        refuse!(
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
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_all_files_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, rows: usize| {
            let path = dir.path().join(name);
            std::fs::write(&path, "{\"text\": \"x\"}\n".repeat(rows)).unwrap();
            path
        };
        let files = vec![file("a.jsonl", 3), file("b.jsonl", 2), file("c.jsonl", 5)];
        let of = |rows: &str| {
            let cut = cut(Path::new("entry"), files.clone(), Slice::parse(rows).unwrap())?;
            let shown = |(path, rows): (PathBuf, Slice)| format!("{}[{rows}]", path.file_name().unwrap().display());
            Ok::<String, crate::error::Error>(cut.into_iter().map(shown).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of(":4").unwrap(), "a.jsonl[0:3] b.jsonl[0:1]");
        assert_eq!(of("4:").unwrap(), "b.jsonl[1:2] c.jsonl[0:5]");
        assert_eq!(of(":50%").unwrap(), "a.jsonl[0:3] b.jsonl[0:2]");
        assert_eq!(of("90%:").unwrap(), "c.jsonl[4:5]");
        assert_eq!(of(":").unwrap(), "a.jsonl[:] b.jsonl[:] c.jsonl[:]");
        for none in ["10:", "3:3", ":0%"] {
            assert!(of(none).unwrap_err().to_string().contains("are none"), "{none}");
        }
        let no_files = vec![file("d.jsonl", 1), dir.path().to_owned()];
        let counted = cut(Path::new("e"), no_files, Slice::parse("50%:").unwrap()).unwrap_err().to_string();
        assert!(counted.contains("is no plain file") && counted.contains("[:1000]"), "{counted}");
        // A file alone need not be counted: it may be a pipe.
        let alone = cut(Path::new("e"), vec![PathBuf::from("gone")], Slice::parse("2:9").unwrap()).unwrap();
        assert_eq!(alone, [(PathBuf::from("gone"), Slice::exactly(&(2..9)))]);
    }
}
