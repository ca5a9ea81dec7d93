//! One folder that checks and measures the kernels on a machine with a GPU and without Rust.
//!
//! Five executables rather than one: the suites are cargo's test targets, whose `main` is the test harness's, and a
//! second harness to merge them with the benches and the trainer would have to be kept as good as the first. What they
//! share, the kernels' code, travels once. The program that times single instructions is none of cargo's: nothing of it
//! belongs into the kernels' library.

#![deny(unsafe_code)]

mod parts;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail, ensure};
use parts::Parts;
use records::source::kernels_hash;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use tools_support::artifacts::{self, Built};
use tools_support::calibration;
use tools_support::command::{check, finish};
use tools_support::cuda::{self, ARCHS};
use tools_support::workspace::Workspace;

/// Scripts of the bundle: the one to start, and what it calls to measure steps.
const SCRIPTS: [(&str, &str); 2] = [("run", include_str!("run.sh")), ("measure", include_str!("measure.sh"))];
const LIMIT: u64 = 50_000_000;
/// Executables of the kernels' package: cargo's target and its name in the bundle.
const KERNELS: [(&str, &str); 2] = [("cuda", "suite"), ("kernels", "bench")];
/// Cargo's arguments for a check, which runs its executables only as far as the question for a GPU: the trainer is
/// compiled in less time, and is larger than that of a bundle, which is then within the limit too.
const QUICK: [&str; 2] = ["--config", "profile.release.package.qlora-train.opt-level=0"];
/// Executables of the trainer's package, likewise: the program is that of the tests.
const TRAINER: [(&str, &str); 2] = [("cuda", "training"), ("qlora-train", "qlora-train")];
/// The program that times single instructions.
const CALIBRATE: &str = "calibrate";
/// The demo's rows.
const ROWS: [&str; 2] = ["habit.train.jsonl", "habit.validation.jsonl"];
/// `run`'s exit status where there is no GPU.
const NO_GPU: i32 = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    finish(match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Workspace::locate().and_then(|workspace| run(&workspace, &[])),
        ["check"] => Workspace::locate().and_then(|workspace| check_bundle(&workspace)),
        _ => usage(),
    })
}

fn usage() -> Result<String> {
    bail!("usage: gpu-bundle, or gpu-bundle check, which runs what it has built")
}

/// Builds the bundle, with these arguments of cargo as well. Returns a sentence about it.
fn run(workspace: &Workspace, more: &[&str]) -> Result<String> {
    let dir = workspace.target.join("gpu-bundle");
    let toolkit = cuda::toolkit(workspace)?;
    let suites = ["--test", "cuda", "--bench", "kernels"];
    let kernels = build(workspace, &[&["--package", "qlora-kernels"], &suites[..]].concat())?;
    // An integration test comes with the program that it runs.
    let of_trainer = ["--workspace", "--exclude", "qlora-kernels", "--test", "cuda"];
    let trainer = build(workspace, &[&of_trainer[..], more].concat())?;
    // An earlier bundle is removed first, so that nothing of it stays.
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let mut parts = Parts::new(&dir)?;
    let named = KERNELS.map(|entry| (&kernels, entry)).into_iter().chain(TRAINER.map(|entry| (&trainer, entry)));
    for (built, (target, name)) in named {
        pack(built.executable(target)?, name, &dir, &mut parts)?;
    }
    let calibrate = workspace.target.join("calibration").join(CALIBRATE);
    calibration::link(&toolkit, &calibration::compile(workspace, &toolkit)?, &calibrate)?;
    pack(&calibrate, CALIBRATE, &dir, &mut parts)?;
    fs::create_dir_all(dir.join("rows"))?;
    for name in ROWS {
        let from = workspace.root.join("examples/data").join(name);
        fs::copy(&from, dir.join("rows").join(name)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let facts = serde_json::json!({
        "commit": line_of(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=40"]).current_dir(&workspace.root)),
        "kernels_hash": kernels_hash(&workspace.root).context("cannot read the kernels' sources")?,
        "nvcc": line_of(Command::new(toolkit.nvcc).arg("--version")),
        "archs": ARCHS.join(","),
        "libc": line_of(Command::new("getconf").arg("GNU_LIBC_VERSION")),
    });
    fs::write(dir.join("built.json"), format!("{facts}\n"))?;
    write_scripts(&dir)?;
    let bytes = size(&dir)?;
    ensure_small(bytes)?;
    Ok(format!("{}: {:.1} MB (at most {})", dir.display(), bytes as f64 / 1e6, LIMIT / 1_000_000))
}

/// Puts an executable into the bundle, stripped, in compressed parts; `run` puts them together.
fn pack(from: &Path, name: &str, dir: &Path, parts: &mut Parts) -> Result<()> {
    let stripped = dir.join("bin").join(name);
    let mut strip = Command::new("strip");
    strip.arg("--strip-all").arg("-o").arg(&stripped).arg(from);
    check(strip).context("binutils' strip makes the executables small")?;
    let executable = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    parts.pack(&executable, name)?;
    fs::remove_file(&stripped).with_context(|| format!("cannot remove {}", stripped.display()))
}

/// Builds the bundle and runs it: on a GPU its first stage passes, elsewhere it says that there is none.
fn check_bundle(workspace: &Workspace) -> Result<String> {
    let built = run(workspace, &QUICK)?;
    let dir = workspace.target.join("gpu-bundle");
    let mut command = Command::new(dir.join("run"));
    command.args(["--quick", "--stages", "parity", "--output"]).arg(workspace.target.join("gpu-bundle-output"));
    let output = command.output().context("cannot run the bundle")?;
    check_old_driver(workspace, &dir.join("bin/qlora-train"))?;
    check_calibration(&dir.join("bin").join(CALIBRATE))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}{}", String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(format!("{built}; on this GPU its PTX parity passes")),
        Some(NO_GPU) => {
            ensure!(text.starts_with("No GPU or no driver was found"), "`run` ends with {NO_GPU} without saying why");
            Ok(format!("{built}; without a GPU it says so"))
        }
        _ => bail!("`run` ended with {}", output.status),
    }
}

/// Calls the program that times instructions with a wrong argument: it starts, and reports that.
fn check_calibration(program: &Path) -> Result<()> {
    let output = Command::new(program).arg("--nothing").output().context("cannot run the calibration")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let told = errors.contains("usage: calibrate [--record DIR]");
    ensure!(told && output.status.code() == Some(2), "`calibrate --nothing`: {}: {errors}", output.status);
    Ok(())
}

/// A driver that is too old, which here is a library that says so: every command names what it found and what it needs,
/// and does nothing.
fn check_old_driver(workspace: &Workspace, trainer: &Path) -> Result<()> {
    let dir = workspace.target.join("old-driver");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (source, library) = (dir.join("driver.c"), dir.join("libcuda.so"));
    fs::write(&source, "int cuDriverGetVersion(int *version) { *version = 12080; return 0; }\n")?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    check(compiler)?;
    fs::copy(&library, dir.join("libcuda.so.1"))?;
    // Files of rows are looked for before the GPU is.
    let rows = dir.join("d");
    fs::write(&rows, "").with_context(|| format!("cannot write {}", rows.display()))?;
    for line in [
        "train --model m --data d --output-dir o --device cuda",
        "generate --model m --prompt p --device cuda",
        "bench --shape llama-3-8b --device cuda",
    ] {
        let mut command = Command::new(trainer);
        command.args(line.split_whitespace()).current_dir(&dir).env("LD_LIBRARY_PATH", &dir);
        let output = command.output().context("cannot run the trainer")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = ["CUDA 12.8", "needs 13.0", "580"].iter().all(|word| errors.contains(word));
        ensure!(told && output.status.code() == Some(2), "`{line}` with an old driver: {}: {errors}", output.status);
    }
    Ok(())
}

/// Tests and benches for a GPU, not run.
fn build(workspace: &Workspace, arguments: &[&str]) -> Result<Built> {
    let arguments = [&["test", "--no-run", "--features", "cuda"], arguments].concat();
    artifacts::build(workspace, &arguments, &[("QLORA_CUDA_ARCHS", &cuda::archs_variable())])
}

/// The last line that a command prints, if it can be run.
fn line_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().lines().last()?.to_owned())
}

fn write_scripts(dir: &Path) -> Result<()> {
    for (name, script) in SCRIPTS {
        let path = dir.join(name);
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Bytes of all files in a folder.
fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

fn ensure_small(bytes: u64) -> Result<()> {
    ensure!(bytes <= LIMIT, "the bundle has {bytes} bytes, at most {LIMIT} are wanted, so that it is quickly carried");
    Ok(())
}
