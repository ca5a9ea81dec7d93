//! `qlora-train report`

use super::answer::Answer;
use crate::bail_usage;
use crate::config::path_from_home;
use crate::error::Result;
use crate::files::atomic::AtomicFiles;
use crate::files::json::read_bounded;
use crate::report::printable;
use crate::run_report::{MOST_RUNS, REPORT_FILE, RunData, html, is_report};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

const MAX_PAGE_BYTES: u64 = 1 << 30;

#[derive(Args)]
pub struct ReportArgs {
    /// Output directories of runs; several are compared side by side
    #[arg(value_name = "RUN", required = true, value_parser = path_from_home())]
    runs: Vec<PathBuf>,
    /// File to write [default: report.html in the run's directory, or for several in the working directory]
    #[arg(short, long, value_name = "FILE", value_parser = path_from_home())]
    output: Option<PathBuf>,
}

pub fn run(args: &ReportArgs) -> Result<Answer> {
    if args.runs.len() > MOST_RUNS {
        bail_usage!("found {} runs, expected at most {MOST_RUNS} side by side", args.runs.len());
    }
    let runs = args.runs.iter().map(|dir| RunData::read(dir)).collect::<Result<Vec<_>>>()?;
    let path = match (&args.output, &args.runs[..]) {
        (Some(path), _) => path.clone(),
        (None, [run]) => run.join(REPORT_FILE),
        (None, _) => PathBuf::from(REPORT_FILE),
    };
    check_replaceable(&path)?;
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        bail_usage!("{}: found no name of a file, expected one such as report.html (--output)", path.display());
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        bail_usage!("{}: found no such directory, expected one (--output)", dir.display());
    }
    let mut files = AtomicFiles::new(dir)?;
    files.add(name, |to| to.write_all(html(&runs).as_bytes()))?;
    files.commit()?;
    let shown = path.display().to_string();
    Ok(Answer { text: format!("report in {}", printable(&shown)), json: json!({"report": shown}) })
}

/// Refuses to write over a file that is no report.
fn check_replaceable(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    if path.is_file() && is_report(&read_bounded(path, MAX_PAGE_BYTES)?) {
        return Ok(());
    }
    bail_usage!("{}: is there already and is no report of qlora-train; choose another --output", path.display())
}
