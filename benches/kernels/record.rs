//! The record of a run: `benches/records/<date>-<gpu>.json`.

use qlora_kernels::device::{DeviceInfo as Facts, driver_version};
use records::format::{Record, Row};
use records::source::kernels_hash;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const METHOD: &str = "Each operation is checked against the reference first. Its launches, over sets of operands that together take three \
    times the L2, are recorded into a CUDA graph; criterion replays it between two events; the figure is the median of 10 samples. \
    cuBLASLt takes the first algorithm of its heuristic with 32 MiB of workspace. Bytes are those that must be read and written once.";

pub fn new(facts: &Facts, copy: f64, quick: bool) -> Result<Record, String> {
    let built = built()?;
    Ok(Record {
        date: now(),
        gpu: facts.gpu.clone(),
        driver: driver_version(),
        cuda: facts.cuda.clone(),
        nvcc: built.nvcc,
        cublaslt: None,
        commit: built.commit,
        kernels_hash: built.kernels_hash,
        multiprocessors: facts.multiprocessors,
        l2_bytes: facts.l2_bytes,
        memory_bytes: facts.memory_bytes,
        copy_gb_per_s: copy / 1e9,
        mode: if quick { "quick" } else { "full" }.into(),
        method: METHOD.into(),
        not_measured: Vec::new(),
        rows: Vec::<Row>::new(),
    })
}

/// Writes beside its name and renames. What is there already is overwritten by what knows more.
pub fn write(record: &Record, dir: &Path) -> Result<PathBuf, String> {
    record.check()?;
    let path = dir.join(record.file_name());
    let text = serde_json::to_string_pretty(record).map_err(|error| error.to_string())?;
    let partial = path.with_extension("partial");
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&partial, text + "\n"))
        .and_then(|()| std::fs::rename(&partial, &path))
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(path)
}

/// Commit, hash of the kernels and nvcc of a build.
#[derive(Deserialize)]
struct Built {
    commit: Option<String>,
    kernels_hash: String,
    nvcc: Option<String>,
}

/// The facts from the bundle's file, or from the repository it was built in.
fn built() -> Result<Built, String> {
    if let Ok(path) = std::env::var("QLORA_BUILT") {
        let text = std::fs::read_to_string(&path).map_err(|error| format!("QLORA_BUILT, {path}: {error}"))?;
        return serde_json::from_str(&text).map_err(|error| format!("QLORA_BUILT, {path}: {error}"));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels_hash = kernels_hash(root).map_err(|error| {
        format!(
            "the kernels' sources are not in {} ({error}): set QLORA_BUILT, as the bundle's `run` does",
            root.display()
        )
    })?;
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40"]).current_dir(root).output();
    let commit = git.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Ok(Built { commit, kernels_hash, nvcc: None })
}

/// Date and time in UTC, from seconds since 1970 in the proleptic Gregorian calendar.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let mut days = seconds / 86400;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02}", days + 1, seconds / 3600 % 24, seconds / 60 % 60)
}
