//! The records of a run, as its report reads them.

use super::records::{Details, LogEntry, RunSummary};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::files::regular::is_there;
use serde::Deserialize;
use serde_json::Value;
use std::borrow::Cow;
use std::path::Path;

/// File with the data of the report, beside `run.json` and `metrics.jsonl`
pub const DETAILS_FILE: &str = "report.json";
/// Limit on these files: a log of millions of steps.
const MAX_BYTES: u64 = 1 << 30;

/// The records of a run.
#[derive(Clone, Debug, Default)]
pub struct RunData<'a> {
    /// Its directory, as it was named on the command line
    pub name: String,
    /// `run.json`
    pub run: Value,
    /// Borrowed from a run that works.
    pub history: Cow<'a, [LogEntry]>,
    pub details: Cow<'a, Details>,
}

impl RunData<'_> {
    /// Reads the records in a run's output directory. Refused: a directory that holds no run, records that cannot be
    /// read. Runs of versions that wrote no `report.json` have less to show.
    pub fn read(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        if !dir.is_dir() {
            bail_usage!("{shown}: found no such directory, expected the output_dir of a run");
        }
        let path = dir.join("run.json");
        if !is_there(&path)? {
            bail_usage!("{shown}: found no run.json, expected the output_dir of a run");
        }
        let what = |path: &Path| format!("{}: cannot be read as a record of a run", path.display());
        let run: Value = serde_json::from_slice(&read_bounded(&path, MAX_BYTES)?).usage_context(|| what(&path))?;
        if !run.is_object() {
            bail_usage!("{}: found no object, expected the record of a run", path.display());
        }
        let path = dir.join("metrics.jsonl");
        let history = if is_there(&path)? { history(&path)? } else { Vec::new() };
        let path = dir.join(DETAILS_FILE);
        let details = match is_there(&path)? {
            true => serde_json::from_slice(&read_bounded(&path, MAX_BYTES)?).usage_context(|| what(&path))?,
            false => Details::default(),
        };
        Ok(Self { name: shown.to_string(), run, history: history.into(), details: Cow::Owned(details) })
    }

    pub fn finished(&self) -> Option<RunSummary> {
        self.run.get("finished").and_then(|finished| RunSummary::deserialize(finished).ok())
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.history.iter().map(|entry| entry.step).max().unwrap_or(0)
    }

    pub fn base(&self) -> &str {
        self.run.pointer("/base/name").and_then(Value::as_str).unwrap_or("a base")
    }

    /// Points of a value of the log, by step, without those that are not finite.
    pub fn curve(&self, of: impl Fn(&LogEntry) -> Option<f64>) -> Vec<(f64, f64)> {
        let finite = |entry| of(entry).filter(|value| value.is_finite());
        self.history.iter().filter_map(|entry| Some((entry.step as f64, finite(entry)?))).collect()
    }

    /// Seconds of training, over all processes that the run had.
    pub fn seconds(&self) -> f64 {
        let (mut total, mut last) = (0.0, 0.0);
        for seconds in self.history.iter().filter_map(|entry| entry.seconds) {
            // The clock restarts with each process.
            total += if seconds >= last { seconds - last } else { seconds };
            last = seconds;
        }
        total
    }
}

fn history(path: &Path) -> Result<Vec<LogEntry>> {
    let text = String::from_utf8(read_bounded(path, MAX_BYTES)?)
        .usage_context(|| format!("{}: not a text", path.display()))?;
    let mut history = Vec::new();
    // A process that was killed may have left a part of a line.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    for (at, line) in whole.lines().enumerate() {
        let entry = serde_json::from_str(line).usage_context(|| format!("{} line {}", path.display(), at + 1))?;
        history.push(entry);
    }
    Ok(history)
}
