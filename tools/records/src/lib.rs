//! The table of measurements on GPUs in docs/gpu-results.md, from the files of `benches/records/`. A row
//! without one says so.

#![deny(unsafe_code)]

pub mod calibration;
mod folder;
pub mod format;
mod goals;
mod levers;
mod loading;
pub mod source;
pub mod steps;
mod table;

use anyhow::{Context, Result, ensure};
use format::Record;
use std::fs;
use std::path::Path;

const RECORDS: &str = "benches/records";
const PAGE: &str = "docs/gpu-results.md";
const BEGIN: &str = "<!-- gpu -->\n";
const END: &str = "<!-- /gpu -->";

/// Writes the table into the page.
pub fn write(root: &Path) -> Result<String> {
    let (current, wanted) = readme(root)?;
    let path = root.join(PAGE);
    if current == wanted {
        return Ok(format!("{PAGE} is as the records say"));
    }
    fs::write(&path, wanted).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(format!("{PAGE}: the table of GPU figures is written"))
}

/// An error if the page has another table than the records say.
pub fn check(root: &Path) -> Result<String> {
    let (current, wanted) = readme(root)?;
    ensure!(current == wanted, "{PAGE}: the table of GPU figures is not that of {RECORDS}: run `cargo xtask records`");
    Ok(format!("{} records; {PAGE} says what they say", read(&root.join(RECORDS))?.len()))
}

/// The page as it is, and with the table of the records.
fn readme(root: &Path) -> Result<(String, String)> {
    let records = read(&root.join(RECORDS))?;
    let hash = source::kernels_hash(root).context("cannot read the kernels' sources")?;
    let path = root.join(PAGE);
    let current = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = current.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{PAGE} has no {} … {END}", BEGIN.trim()))?;
    let steps = steps::read(&root.join(RECORDS).join("steps"))?;
    let loading = loading::read(&root.join(RECORDS).join("loading"))?;
    let wanted = table::table(&records, &steps, &hash) + &levers::table(&steps, &hash) + &loading::lines(&loading);
    let wanted = format!("{before}{BEGIN}{wanted}{END}{after}");
    Ok((current, wanted))
}

/// All records, oldest first. An error names the file and what is wrong with it.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for path in folder::json_files(dir)? {
        let shown = path.display();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let record: Record = serde_json::from_str(&text).with_context(|| format!("{shown} is not a record"))?;
        record.check().map_err(|problem| anyhow::anyhow!("{shown}: {problem}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let expected = record.file_name();
        ensure!(name == expected, "{shown}: by its date and GPU it is {expected}");
        records.push(record);
    }
    records.sort_by(|a, b| (&a.date, &a.gpu).cmp(&(&b.date, &b.gpu)));
    Ok(records)
}

#[cfg(test)]
mod tests;
