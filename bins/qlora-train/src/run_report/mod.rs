//! The report of a run: one page that stands alone, without scripts, made from `run.json`, `metrics.jsonl` and
//! `report.json`, while the run works and afterwards.

mod answers;
mod changes;
mod compare;
mod curve;
mod page;
mod records;
mod run_data;
mod sections;
mod single;
pub mod spectrum;
mod svg;
pub mod tensorboard;
mod verdict;

pub use compare::MOST_RUNS;
pub use curve::learning_curve;
pub use records::{
    DataDetails, Details, LogEntry, MemoryDetails, ModuleChange, RunSummary, Sample, TensorChange, Warning,
};
pub use run_data::{DETAILS_FILE, RunData};

pub const REPORT_FILE: &str = "report.html";
/// Mark of our pages, which may be replaced
const GENERATOR: &str = "<meta name=\"generator\" content=\"qlora-train report\">";

/// The page of one run, or of several side by side.
pub fn html(runs: &[RunData]) -> String {
    match runs {
        [run] => single::page(run),
        runs => compare::page(runs),
    }
}

/// True if a file is one of our pages, by its beginning, and may be replaced.
pub fn is_report(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).contains(GENERATOR)
}

#[cfg(test)]
mod tests;
