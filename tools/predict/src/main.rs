//! Prints the predicted speed of the kernels, writes it to `docs/predicted.md`, or checks that page and the goals;
//! takes the constants of a calibration.

#![deny(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use kernel_inspect::library::Library;
use predict::launches::Kernels;
use predict::{calibration, constants, goals, measured, measured_steps, page, rates, steps};
use records::calibration::Calibration;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use tools_support::command::finish;
use tools_support::workspace::Workspace;

const PAGE: &str = "docs/predicted.md";
const RECORDS: &str = "benches/records";
const CALIBRATIONS: &str = "benches/records/calibration";
const STEPS: &str = "benches/records/steps";
const RATES: &str = "bins/qlora-train/src/session/predicted.json";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let of_workspace = |of: fn(&Workspace) -> Result<String>| Workspace::locate().and_then(|workspace| of(&workspace));
    finish(match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => of_workspace(print),
        ["write"] => of_workspace(write),
        ["check"] => of_workspace(check),
        ["calibrate", file] => {
            Workspace::locate().and_then(|workspace| calibrate(Path::new(file), &workspace.root.join(constants::FILE)))
        }
        _ => bail_usage(),
    })
}

fn bail_usage() -> Result<String> {
    bail!("usage: predict [write | check | calibrate FILE]")
}

/// The predictions from the machine code.
struct Predicted {
    compiler: String,
    page: String,
    /// Rates, for the trainer's plans
    rates: String,
    /// Faults of the predictions, one line each
    findings: Vec<String>,
}

fn predicted(workspace: &Workspace) -> Result<Predicted> {
    let library = Library::build(workspace)?;
    let kernels = Kernels::new(library.machine_code()?, &library.resources()?)?;
    let steps = steps::planned()?;
    let judged = goals::judged(&kernels, &steps)?;
    let rows = measured::compared(&kernels, &records::read(&workspace.root.join(RECORDS))?)?;
    let hash = records::source::kernels_hash(&workspace.root).context("cannot read the kernels' sources")?;
    let measured_steps =
        measured_steps::compared(&kernels, &records::steps::read(&workspace.root.join(STEPS))?, &hash)?;
    let calibrations = records::calibration::read(&workspace.root.join(CALIBRATIONS))?;
    let calibrated = calibrations.iter().map(calibration::calibrated).collect::<Result<Vec<_>>>()?;
    let compiler = library.compiler()?;
    let measured = page::Measured { rows: &rows, steps: &measured_steps, calibrated: &calibrated };
    let page = page::page(&compiler, &kernels, &steps, &judged, &measured)?;
    let rates = rates::file(&kernels, &steps)?;
    Ok(Predicted { compiler, page, rates, findings: goals::findings(&judged, goals::KNOWN_MISSES) })
}

fn print(workspace: &Workspace) -> Result<String> {
    let Predicted { page, findings, .. } = predicted(workspace)?;
    print!("{page}");
    Ok(format!("{} findings", findings.len()))
}

fn write(workspace: &Workspace) -> Result<String> {
    let Predicted { page, rates, findings, .. } = predicted(workspace)?;
    for (name, text) in [(PAGE, page), (RATES, rates)] {
        let path = workspace.root.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if findings.is_empty() { Ok(format!("{PAGE} and {RATES} are written")) } else { refuse(&findings) }
}

fn check(workspace: &Workspace) -> Result<String> {
    let Predicted { compiler, page, rates, findings } = predicted(workspace)?;
    let current = read(&workspace.root.join(PAGE))?;
    if !findings.is_empty() {
        return refuse(&findings);
    }
    if page::is_of_another_compiler(&current, &compiler) {
        return Ok(format!("the goals are as they were; {PAGE} is not that of nvcc {compiler}, so not compared"));
    }
    for (name, wanted) in [(PAGE, page), (RATES, rates)] {
        let found = read(&workspace.root.join(name))?;
        ensure!(found == wanted, "{name} is not what the machine code says: run `cargo xtask predict --write`");
    }
    Ok(format!(
        "{PAGE} is what the machine code says; {} misses are known, none is new or worse",
        goals::KNOWN_MISSES.len()
    ))
}

/// Prints a calibration beside the constants that are taken without it, and writes those that it measured to the file
/// at `to`.
fn calibrate(from: &Path, to: &Path) -> Result<String> {
    let calibration = Calibration::read(from)?;
    let calibrated = calibration::calibrated(&calibration).with_context(|| from.display().to_string())?;
    let measured = calibration::constants(&calibrated);
    let (count, known) = (measured.len(), read(to)?);
    let text = constants::merged(&known, measured).with_context(|| to.display().to_string())?;
    println!("{}", calibration::tables(&[calibrated]));
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(format!(
        "{count} constants of {} are written to {}; `cargo xtask predict --write` predicts with them",
        calibration.gpu,
        to.display()
    ))
}

fn refuse(findings: &[String]) -> Result<String> {
    bail!("{} findings:\n  {}", findings.len(), findings.join("\n  "))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{
  "date": "2025-01-31 23:59", "gpu": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9", "multiprocessors": 128,
  "clock_ghz": 2.5, "driver": null, "cuda": "13.0", "nvcc": "13.0.88",
  "cycles": {
    "hmma": 32.5, "lds_32": 2.0, "lds_32_one_scheduler": 4.0, "lds_128": 4.0, "lds_latency": 24.0, "ldsm": 4.0,
    "ldsm_latency": 33.0, "ldgsts": 10.0, "ldgsts_latency": 300.0, "branch": 20.0, "barrier": 26.0
  }
}"#;

    #[test]
    fn the_constants_of_a_record_are_written_and_a_refused_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("record.json"), dir.path().join("measured.json"));
        fs::write(&to, "[]\n").unwrap();
        fs::write(&from, RECORD).unwrap();
        let closing = calibrate(&from, &to).unwrap();
        assert!(closing.starts_with("9 constants of NVIDIA GeForce RTX 4090 are written to "), "{closing}");
        let written = fs::read_to_string(&to).unwrap();
        let found = constants::parse(&written).unwrap();
        let interval = found.iter().find(|constant| constant.constant == "matrix_interval").unwrap();
        assert_eq!((interval.of.as_str(), interval.value), ("4090", 32.5));
        assert!(found.iter().filter(|constant| constant.of == "sm_89").count() == 8);

        for (figure, value, expected) in [
            ("\"8.9\"", "\"9.0\"", "which is sm_89, and its compute capability is 9.0"),
            ("32.5", "0.0", "cycles.hmma is 0"),
            ("32.5", "nan", "is not a calibration"),
        ] {
            fs::write(&from, RECORD.replace(figure, value)).unwrap();
            let error = format!("{:#}", calibrate(&from, &to).unwrap_err());
            assert!(error.contains(expected) && error.contains("record.json"), "{error}");
            assert_eq!(fs::read_to_string(&to).unwrap(), written);
        }
        fs::write(&from, RECORD).unwrap();
        let missing = dir.path().join("missing.json");
        assert!(calibrate(&from, &missing).unwrap_err().to_string().contains("cannot read"));
    }
}
