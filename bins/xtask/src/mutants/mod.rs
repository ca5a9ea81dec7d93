//! Bugs planted into the real kernels, one at a time: each must turn the tests red that ship with the kernels, or those
//! tests check less than they say.
//!
//! The tests' executable is built once with the emulated kernels as a shared library (feature `emulation-shared`). For
//! every entry of
//! [`mutants`] that library is linked anew with the files that the bug changes, and the same executable runs with it.

mod cache;
mod loss;
mod table;

use crate::library::compile::{Compiler, sources};
use crate::workspace::Workspace;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use table::Mutant;

const LIBRARY: &str = "libqlora_kernels_emulation.so";
/// Cases of each property: few, as the ones without a barrier are wrong in most schedules. The seed makes a run
/// repeatable.
const CASES: &str = "6";
const SEED: &str = "20250601";
/// A bug may make a kernel loop; then the tests are red too.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Every planted bug.
fn mutants() -> impl Iterator<Item = &'static Mutant> {
    [table::MUTANTS, loss::MUTANTS, cache::MUTANTS].into_iter().flatten()
}

/// Runs every mutant, and the kernels as they are; what was done, in a sentence.
pub fn run(workspace: &Workspace) -> Result<String> {
    let sources = read_sources(&workspace.root)?;
    let mutated: Vec<String> = mutants().map(|mutant| mutate(mutant, &sources)).collect::<Result<_>>()?;
    let built = build(workspace)?;
    let mut tests: Vec<&str> = mutants().map(|mutant| mutant.test).collect();
    tests.sort_unstable();
    tests.dedup();
    for test in &tests {
        let Verdict { red, how, seconds } = run_tests(&built.tests, &built.library, test)?;
        println!("{:<58} {how} ({seconds:.1} s)", format!("as it is: {test}"));
        ensure!(!red, "the kernels as they are fail {test}: {how}");
    }
    let mut survived = Vec::new();
    for (mutant, text) in mutants().zip(&mutated) {
        let library = link(workspace, &built, mutant, text)?;
        let Verdict { red, how, seconds } = run_tests(&built.tests, &library, mutant.test)?;
        println!("{:<58} {how} ({seconds:.1} s)", mutant.what);
        if !red {
            survived.push(format!("{} ({}): {} stayed green", mutant.what, mutant.file, mutant.test));
        }
    }
    ensure!(survived.is_empty(), "{} planted bugs were not seen:\n  {}", survived.len(), survived.join("\n  "));
    Ok(format!("{} bugs planted into the kernels, each seen; the kernels as they are stay green", mutants().count()))
}

/// The files of `cuda/` that bugs can be planted into, by name.
fn read_sources(root: &Path) -> Result<Vec<(String, String)>> {
    let files = [sources(root, "cuda", "cu"), sources(root, "cuda", "cuh")].concat();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text))
    };
    files.iter().map(read).collect()
}

fn mutate(mutant: &Mutant, sources: &[(String, String)]) -> Result<String> {
    let Mutant { what, file, find, replace, .. } = mutant;
    let (_, text) = sources.iter().find(|(name, _)| name == file).with_context(|| format!("{what}: no cuda/{file}"))?;
    let count = text.matches(find).count();
    ensure!(
        count == 1,
        "{what}: cuda/{file} has its text {count} times, expected once; the kernel changed, so change the entry of the table"
    );
    Ok(text.replacen(find, replace, 1))
}

struct Built {
    tests: PathBuf,
    /// The emulated kernels as they are, and their objects beside.
    library: PathBuf,
    objects: PathBuf,
}

fn build(workspace: &Workspace) -> Result<Built> {
    let arguments = [
        "test",
        "--release",
        "--locked",
        "--package",
        "qlora-kernels",
        "--features",
        "emulation-shared",
        "--test",
        "cuda",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ];
    let output = workspace.cargo(&arguments).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`cargo {}`: {}", arguments.join(" "), output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let out = crate::kernels::out_dir(&messages).context("cargo ran no build script of the kernels")?;
    let tests = crate::kernels::executables(&messages).into_iter().find(|built| built.target == "cuda");
    let tests = tests.context("cargo built no tests of the kernels")?.path;
    let (library, objects) = (out.join(LIBRARY), out.join("emulation"));
    ensure!(library.is_file(), "the build script left no {}", library.display());
    Ok(Built { tests, library, objects })
}

/// The shared library with this bug. Only the files that it changes are compiled: one, or all that may include a
/// header.
fn link(workspace: &Workspace, built: &Built, mutant: &Mutant, text: &str) -> Result<PathBuf> {
    let dir = workspace.target.join("mutants").join(slug(mutant.what));
    let copy = dir.join("cuda");
    for (from, to, extensions) in [
        ("cuda", "", ["cu", "cuh"].as_slice()),
        ("cuda/include", "include", &["h"]),
        ("cuda/emulation", "emulation", &["h"]),
    ] {
        fs::create_dir_all(copy.join(to)).with_context(|| format!("cannot make {}", copy.display()))?;
        for file in extensions.iter().flat_map(|extension| sources(&workspace.root, from, extension)) {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, copy.join(to).join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    fs::write(copy.join(mutant.file), text)?;
    let files = if mutant.file.ends_with(".cu") { vec![copy.join(mutant.file)] } else { sources(&dir, "cuda", "cu") };
    let compiler = Compiler::emulation(Path::new(&cxx()), &[]).map_err(|error| anyhow!(error))?;
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let (objects, _) = compiler
        .compile(&dir, &files, &dir.join("objects"), workers)
        .map_err(|error| anyhow!("{}: {error}", mutant.what))?;
    let replaced: Vec<_> = objects.iter().filter_map(|object| object.file_name()).collect();
    let mut all = sources(&built.objects, "", "o");
    all.retain(|object| object.file_name().is_some_and(|name| !replaced.contains(&name)));
    ensure!(!all.is_empty(), "no objects in {}", built.objects.display());
    all.extend(objects.iter().cloned());
    let library = dir.join(LIBRARY);
    let mut command = Command::new(cxx());
    command.arg("-shared").arg("-o").arg(&library).args(&all);
    crate::test::command::check(command)?;
    Ok(library)
}

fn cxx() -> String {
    std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

fn slug(what: &str) -> String {
    what.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

struct Verdict {
    red: bool,
    how: String,
    seconds: f64,
}

/// Runs the tests of this name with this library of kernels. An error if there are none, or if they do not start.
fn run_tests(tests: &Path, library: &Path, name: &str) -> Result<Verdict> {
    let log = library.with_extension("log");
    let output = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(tests);
    command.arg(name).env("LD_LIBRARY_PATH", library.parent().context("a file in a directory")?);
    command.envs([("PROPTEST_CASES", CASES), ("PROPTEST_RNG_SEED", SEED), ("PROPTEST_MAX_SHRINK_ITERS", "0")]);
    let started = Instant::now();
    let mut child = command.stdout(output.try_clone()?).stderr(output).spawn().context("cannot run the tests")?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if started.elapsed() > TIME_LIMIT {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let seconds = started.elapsed().as_secs_f64();
    let (red, how) = verdict(status.map(|status| (status.success(), status.to_string())), &text)
        .with_context(|| format!("{name}; its output is in {}", log.display()))?;
    Ok(Verdict { red, how, seconds })
}

/// Red or green, and how, from the exit status (none: stopped at the time limit) and the output.
fn verdict(status: Option<(bool, String)>, text: &str) -> Result<(bool, String)> {
    let started = text.lines().find_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<usize>().ok());
    ensure!(started.is_some_and(|count| count > 0), "no test ran");
    let failed = text.lines().filter(|line| line.starts_with("test ") && line.ends_with("... FAILED")).count();
    let count = started.unwrap_or_default();
    Ok(match status {
        None => (true, format!("red: stopped after {} s", TIME_LIMIT.as_secs())),
        Some((true, _)) => (false, format!("green: {count} tests")),
        Some((false, _)) if failed > 0 => (true, format!("red: {failed} of {count} tests")),
        Some((false, status)) => (true, format!("red: {status}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_bugs_text_is_in_the_kernels_once() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let sources = read_sources(&root).unwrap();
        for mutant in mutants() {
            let mutated = mutate(mutant, &sources).unwrap();
            let (_, text) = sources.iter().find(|(name, _)| name == mutant.file).unwrap();
            assert_ne!(&mutated, text, "{} changes nothing", mutant.what);
        }
        let mut names: Vec<_> = mutants().map(|mutant| slug(mutant.what)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), mutants().count(), "two share a directory");
    }

    #[test]
    fn text_that_is_absent_or_there_twice_is_an_error() {
        let mutant = Mutant { what: "w", file: "a.cu", find: "x;", replace: "", test: "t" };
        let with = |text: &str| mutate(&mutant, &[("a.cu".to_owned(), text.to_owned())]);
        assert_eq!(with("a; x; b;").unwrap(), "a;  b;");
        assert!(with("a;").unwrap_err().to_string().contains("0 times"));
        assert!(with("x; x;").unwrap_err().to_string().contains("2 times"));
    }

    #[test]
    fn a_run_without_tests_is_no_verdict() {
        assert!(verdict(Some((true, String::new())), "running 0 tests\n").is_err());
        assert!(verdict(Some((false, "exit status: 127".into())), "error while loading shared libraries").is_err());
        let red =
            verdict(Some((false, "exit status: 101".into())), "running 3 tests\ntest a ... FAILED\ntest b ... ok\n");
        assert_eq!(red.unwrap(), (true, "red: 1 of 3 tests".into()));
        assert!(!verdict(Some((true, String::new())), "running 3 tests\n").unwrap().0);
        assert!(verdict(Some((false, "signal: 11".into())), "running 3 tests\n").unwrap().0);
        assert!(verdict(None, "running 1 test\n").unwrap().0);
    }
}
