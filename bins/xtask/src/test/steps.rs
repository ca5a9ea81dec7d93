//! The steps of `cargo xtask test`, in the order in which they run: what fails fastest first.
//!
//! A new step is one more entry of [`STEPS`] and one function.

use super::runner::{has_nextest, runner};
use super::step::{Outcome, Step};
use super::{kernels, packages};
use crate::setup::{self, rustup, tools};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tools_support::command::{check, check_and_keep, last_line};
use tools_support::launches;
use tools_support::workspace::Workspace;

/// The steps of `cargo xtask check`: without optimization, so that a changed file is compiled in seconds.
pub const QUICK: &[Step] = &[
    TREE,
    TYPOS,
    DENY,
    FORMAT,
    Step { name: "clippy", about: "clippy without a warning, all targets", run: quick_clippy },
    Step {
        name: "unit",
        about: "the tests inside the crates, but those that take long without optimization",
        run: unit,
    },
];

/// Tests that take most of the time of all without optimization. `cargo xtask test` runs them, optimized.
const LONG: [&str; 14] = [
    "a_card_of_many_subsets_without_patterns",
    "a_search_that_gives_up_is_an_error",
    "an_output_layer_in_parts_gives_the_bits",
    "attention_and_its_gradient_are_the_reference",
    "damaged_bytes_never_panic",
    "digests_are_those_of_the_tensors",
    "hashes_of_blocks_are_those_of_the_same_bytes",
    "memory_is_read_at_a_rate",
    "no_plan_exceeds_its_budget",
    "products_are_sums_in_order",
    "products_equal_their_twins",
    "texts_get_the_tokens_and_offsets",
    "texts_that_are_cut_have_the_pieces",
    "the_fastest_of_all_that_fits",
];

const TREE: Step = Step {
    name: "tree",
    about: "rules of files, comments, names and imports; `unsafe` only where it belongs",
    run: tree,
};
const TYPOS: Step = Step { name: "typos", about: "no misspelt word", run: typos };
const DENY: Step = Step { name: "deny", about: "licenses, duplicates and sources of the dependencies", run: deny };
const FORMAT: Step = Step { name: "format", about: "rustfmt changes nothing", run: format };

pub const STEPS: &[Step] = &[
    TREE,
    TYPOS,
    DENY,
    Step { name: "records", about: "the GPU figures of docs/ are those of the records", run: records },
    Step { name: "compiler", about: "a C++ compiler, for the kernels", run: kernels::compiler },
    FORMAT,
    Step { name: "clippy", about: "clippy without a warning, all targets", run: clippy },
    Step { name: "docs", about: "rustdoc without a warning", run: docs },
    Step {
        name: "bindings",
        about: "the C interface's declarations are those of its header",
        run: kernels::declarations,
    },
    Step { name: "other-host", about: "the other supported Linux host compiles", run: other_host },
    Step { name: "build", about: "the programs of all tests, in one call, so that no core waits", run: programs },
    Step { name: "setup", about: "the tests' model is fetched and converted; MPI is fetched", run: prepare },
    Step {
        name: "tests",
        about: "all unit and integration tests, those of the kernels and of training on them on the host",
        run: tests,
    },
    Step { name: "doc-tests", about: "the examples in the documentation", run: doc_tests },
    Step { name: "readme", about: "the commands that the documents name exist", run: readme },
    Step {
        name: "dist",
        about: "a release is packed, installed and run where there is no Rust: tarball and wheel",
        run: dist,
    },
    Step {
        name: "kernels-nvcc",
        about: "the kernels for every GPU architecture, taken apart, and their speed predicted",
        run: kernels::machine_code,
    },
    Step { name: "msrv", about: "the oldest Rust that Cargo.toml names compiles it", run: packages::oldest_compiler },
    Step {
        name: "package",
        about: "the crates are described, small and whole, as a registry wants",
        run: packages::published,
    },
    Step { name: "kernels-ptx", about: "two roundings where the format has two", run: kernels::ptx },
    Step {
        name: "gpu-bundle",
        about: "the bundle for a GPU machine is built, is small, and says when there is no GPU",
        run: gpu_bundle,
    },
    Step { name: "engines", about: "other engines link the emulated library: C, Rust, Python", run: engines },
    Step { name: "features", about: "every set of features compiles", run: packages::features },
    Step { name: "kernels-mutants", about: "bugs seeded into the kernels turn those tests red", run: kernels::mutants },
    Step { name: "kernels-asan", about: "the kernels' tests under AddressSanitizer", run: kernels::sanitized },
];

/// Steps that keep one core busy and need nothing of the steps after them, beside which they run.
pub const ASIDE: [&str; 1] = ["features"];

const DONE: fn() -> Result<Outcome> = || Ok(Outcome::Passed(Vec::new()));

fn tree(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(last_line(workspace.tool("repo-check", &["tree"])?)?))
}

fn typos(workspace: &Workspace) -> Result<Outcome> {
    let mut command = Command::new(tools::tool(workspace, &tools::TYPOS)?);
    command.args(["--config", "_typos.toml", "--format", "brief"]).current_dir(&workspace.root);
    check(command)?;
    DONE()
}

/// Advisories would need a database from the network, so they are not looked at here.
fn deny(workspace: &Workspace) -> Result<Outcome> {
    let program = tools::tool(workspace, &tools::DENY)?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut metadata = workspace.cargo(&["metadata", "--locked", "--format-version", "1", "--filter-platform", &host]);
    let output = metadata.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`cargo metadata`: {}", output.status);
    let path = workspace.target.join("metadata.json");
    std::fs::write(&path, output.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(program);
    // Without the flag the root package alone is looked at.
    command.arg("--workspace").arg("--metadata-path").arg(&path).args(["check", "bans", "licenses", "sources"]);
    check_and_keep(command.current_dir(&workspace.root), |line| line.starts_with("bans ")).map(Outcome::Passed)
}

fn records(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(last_line(workspace.tool("records", &["check"])?)?))
}

fn format(workspace: &Workspace) -> Result<Outcome> {
    check(workspace.cargo(&["fmt", "--all", "--", "--check"]))?;
    DONE()
}

fn clippy(workspace: &Workspace) -> Result<Outcome> {
    lint(workspace, &["--release"])
}
fn quick_clippy(workspace: &Workspace) -> Result<Outcome> {
    lint(workspace, &[])
}
fn lint(workspace: &Workspace, profile: &[&str]) -> Result<Outcome> {
    let mut command = workspace.cargo(&["clippy", "--workspace", "--all-targets", "--locked"]);
    command.args(profile).args(kernels::EMULATED).args(["--", "--deny", "warnings"]);
    check(command)?;
    DONE()
}

/// Linux on x86-64 and on aarch64 are supported. The one that this is not can be checked, not run.
fn other_host(workspace: &Workspace) -> Result<Outcome> {
    let other = match std::env::consts::ARCH {
        "aarch64" => "x86_64-unknown-linux-gnu",
        _ => "aarch64-unknown-linux-gnu",
    };
    if !has_standard_library(other)?
        && let Err(why) = rustup::fetch(&["target", "add", other])
    {
        return Ok(Outcome::Skipped(format!("no standard library for {other}: {why}")));
    }
    if !has_standard_library(other)? {
        return Ok(Outcome::Skipped(format!("rustup has added {other} to another toolchain than this one")));
    }
    if let Some(why) = lacks_c_compiler(other) {
        return Ok(Outcome::Skipped(why));
    }
    check(workspace.cargo(&["check", "--release", "--workspace", "--locked", "--target", other]))?;
    DONE()
}

/// Says why crates with C sources cannot be compiled for the other host; none if they can.
fn lacks_c_compiler(target: &str) -> Option<String> {
    let named = [format!("CC_{target}"), format!("CC_{}", target.replace('-', "_")), "TARGET_CC".to_owned()];
    if named.iter().any(|name| std::env::var_os(name).is_some()) {
        return None;
    }
    let compiler = format!("{}-gcc", target.replace("-unknown", ""));
    let status = Command::new(&compiler).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = status.is_ok_and(|status| status.success());
    (!is_there).then(|| format!("no C compiler for {target}: {compiler} is not in PATH, and CC_{target} is not set"))
}

fn has_standard_library(target: &str) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    let output = output.context("cannot run rustc")?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(false) };
    Ok(output.status.success()
        && entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}

fn docs(workspace: &Workspace) -> Result<Outcome> {
    let mut command = workspace.cargo(&["doc", "--release", "--workspace", "--no-deps", "--locked"]);
    command.args(kernels::EMULATED).env("RUSTDOCFLAGS", "--deny warnings");
    check(command)?;
    DONE()
}

fn gpu_bundle(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(last_line(workspace.tool("gpu-bundle", &["check"])?)?))
}

fn engines(workspace: &Workspace) -> Result<Outcome> {
    let is_closing = |line: &str| line.starts_with("ok ") || line.starts_with("the C example ");
    check_and_keep(&mut workspace.tool("c-library", &["check"])?, is_closing).map(Outcome::Passed)
}

fn dist(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(crate::dist::check_release(workspace, &kernels::EMULATED)?))
}

fn prepare(workspace: &Workspace) -> Result<Outcome> {
    println!("{}", setup::run(workspace, &kernels::EMULATED)?.display());
    setup::mpi::fetch_if_possible(workspace).iter().for_each(|dir| println!("{}", dir.display()));
    DONE()
}

fn unit(workspace: &Workspace) -> Result<Outcome> {
    let mut command = runner(workspace, has_nextest(workspace));
    command.args(["--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--"]);
    command.args(LONG.iter().flat_map(|name| ["--skip", name]));
    command.env("QLORA_MODELS", workspace.models());
    keep_results(command)
}

/// The command that runs all tests, with the kernels' emulation, so that one build serves every one.
fn all_tests(workspace: &Workspace, nextest: bool) -> Command {
    let mut command = runner(workspace, nextest);
    command.args(["--workspace", "--release", "--locked"]).args(kernels::EMULATED);
    if !nextest {
        command.arg("--all-targets");
    }
    command
}

fn programs(workspace: &Workspace) -> Result<Outcome> {
    let mut command = all_tests(workspace, has_nextest(workspace));
    check(command.arg("--no-run"))?;
    DONE()
}

fn tests(workspace: &Workspace) -> Result<Outcome> {
    let nextest = has_nextest(workspace);
    let mut command = all_tests(workspace, nextest);
    command.arg("--no-fail-fast");
    if nextest {
        // One more than there are processors: some tests wait, for a rank that hangs or a hub that is silent.
        let at_once = std::thread::available_parallelism().map_or(1, |count| count.get()) + 1;
        command.args(["--test-threads", &at_once.to_string()]);
    }
    command.env("QLORA_MODELS", workspace.models()).env("QLORA_TOOLS", workspace.target.join("tools"));
    // Dropped, and with it what tests have left there, when they are done.
    let in_memory = temporary_directory_in_memory();
    if let Some(directory) = &in_memory {
        command.env("TMPDIR", directory.path());
    }
    // The machine code's step reads them.
    command.env(launches::VARIABLE, launches::begin(workspace)?);
    kernels::keep_tallies(command, nextest, &[]).map(Outcome::Passed)
}

/// A directory for the tests' files, in memory where there is much of it: waiting for a disk takes most of the time of
/// runs that save much. None: that of the machine, or of `TMPDIR`.
fn temporary_directory_in_memory() -> Option<tempfile::TempDir> {
    const PLACE: &str = "/dev/shm";
    const PREFIX: &str = "xtask-test-";
    /// KiB that are free there: tests that run at once take a few hundred MiB.
    const ROOM: u64 = 8 << 20;
    if std::env::var_os("TMPDIR").is_some() {
        return None;
    }
    remove_left(Path::new(PLACE), PREFIX, Duration::from_secs(24 * 60 * 60));
    let told = Command::new("df").args(["-Pk", PLACE]).stderr(Stdio::null()).output().ok()?;
    if free_kib(&String::from_utf8_lossy(&told.stdout))? < ROOM {
        return None;
    }
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(PLACE).ok()?;
    // Some machines run no program from there.
    let program = directory.path().join("program");
    std::fs::copy("/bin/true", &program).ok()?;
    let runs = Command::new(&program).status().is_ok_and(|status| status.success());
    std::fs::remove_file(program).ok()?;
    runs.then_some(directory)
}

/// Removes directories of this prefix and age, which runs that were interrupted have left.
fn remove_left(place: &Path, prefix: &str, age: Duration) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let written = entry.metadata().and_then(|found| found.modified());
        let is_old = written.is_ok_and(|at| at.elapsed().is_ok_and(|found| found > age));
        if is_old && entry.file_name().to_string_lossy().starts_with(prefix) {
            // Another user's is left to that one.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// KiB that are free by what `df -Pk` prints.
fn free_kib(told: &str) -> Option<u64> {
    told.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
}

fn doc_tests(workspace: &Workspace) -> Result<Outcome> {
    let mut command = workspace.cargo(&["test", "--release", "--workspace", "--locked", "--doc"]);
    command.args(kernels::EMULATED);
    keep_results(command)
}

fn keep_results(mut command: Command) -> Result<Outcome> {
    let is_summary = |line: &str| line.starts_with("Summary [") || line.starts_with("test result: ");
    let closing = check_and_keep(&mut command, is_summary)?;
    ensure!(!closing.is_empty(), "the test runner printed no summary, so it is unknown whether a test ran");
    Ok(Outcome::Passed(closing))
}

/// With the programs as the tests have built them: another build of them would take a minute.
fn readme(workspace: &Workspace) -> Result<Outcome> {
    let mut build = workspace.cargo(&["test", "--release", "--locked", "--workspace", "--no-run", "--quiet"]);
    check(build.args(kernels::EMULATED))?;
    let programs = workspace.binary("xtask").parent().map(|dir| dir.display().to_string()).unwrap_or_default();
    Ok(Outcome::Passed(last_line(workspace.tool("repo-check", &["commands", &programs])?)?))
}

#[cfg(test)]
mod tests {
    use super::{LONG, free_kib, remove_left};
    use std::path::Path;
    use std::time::Duration;

    fn add_sources(dir: &Path, to: &mut String) {
        for entry in dir.read_dir().unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => add_sources(&path, to),
                false => to.push_str(&std::fs::read_to_string(path).unwrap()),
            }
        }
    }

    #[test]
    fn the_tests_that_the_check_leaves_out_exist() {
        let mut sources = String::new();
        add_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../qlora-train/src"), &mut sources);
        for name in LONG {
            assert!(sources.contains(&format!("fn {name}")), "no test is named {name}...");
        }
    }

    #[test]
    fn directories_of_interrupted_runs_are_removed_once_they_are_old() {
        let place = tempfile::tempdir().unwrap();
        for name in ["ours-1", "theirs-1"] {
            std::fs::create_dir_all(place.path().join(name).join("below")).unwrap();
        }
        let left = || place.path().read_dir().unwrap().count();
        remove_left(place.path(), "ours-", Duration::from_secs(3600));
        assert_eq!(left(), 2);
        std::thread::sleep(Duration::from_millis(20));
        remove_left(place.path(), "ours-", Duration::from_millis(1));
        assert!(left() == 1 && place.path().join("theirs-1").is_dir());
    }

    #[test]
    fn free_memory_is_read_from_what_df_prints() {
        let head = "Filesystem     1024-blocks  Used Available Capacity Mounted on\n";
        assert_eq!(
            free_kib(&format!("{head}tmpfs             24684084 32000  24652084       1% /dev/shm\n")),
            Some(24_652_084)
        );
        assert_eq!((free_kib(head), free_kib("")), (None, None));
    }
}
