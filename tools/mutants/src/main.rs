//! Bugs seeded into the real kernels, one at a time: each must turn the tests red that ship with the kernels, or those
//! tests check less than they say.
//!
//! The tests' executable is built once with the emulated kernels as a shared library (feature `emulation-shared`), and
//! that library once more, from the kernels with every bug of [`mutants`] behind a switch. For each of them the
//! executable runs the entry's tests with the bug switched on, until the first is red, and with all of them off, which
//! has to be green. As many run at a time as there are processors.

#![deny(unsafe_code)]

mod banks;
mod cache;
mod launch_counts;
mod loss;
mod product;
mod soft_cap;
mod strides;
mod switches;
mod table;
mod token_rows;
mod trained;

use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use switches::{Bug, with_switches};
use table::Mutant;
use tools_support::artifacts;
use tools_support::command::{check, finish};
use tools_support::compile::{Compiler, sources};
use tools_support::workspace::Workspace;

const LIBRARY: &str = "libqlora_kernels_emulation.so";
/// Cases of each property: few, as the ones without a barrier are wrong in most schedules. The seed makes a run
/// repeatable.
const CASES: &str = "6";
const SEED: &str = "20250601";
/// A bug may make a kernel loop; then the tests are red too. No sound test of the table takes a quarter of it.
const TIME_LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    finish(Workspace::locate().and_then(|workspace| run(&workspace, &wanted)))
}

/// Every seeded bug.
fn mutants() -> impl Iterator<Item = &'static Mutant> {
    let beside =
        [banks::MUTANTS, soft_cap::MUTANTS, product::MUTANTS, trained::MUTANTS, token_rows::MUTANTS, strides::MUTANTS];
    [table::MUTANTS, loss::MUTANTS, cache::MUTANTS, launch_counts::MUTANTS].into_iter().chain(beside).flatten()
}

/// Runs every mutant whose name holds a text of `wanted` (all, if there is none), and the kernels as they are. Returns
/// a sentence about the run.
fn run(workspace: &Workspace, wanted: &[String]) -> Result<String> {
    let is_wanted = |what: &str| wanted.is_empty() || wanted.iter().any(|text| what.contains(text.as_str()));
    let mutants: Vec<(usize, &Mutant)> = mutants().enumerate().filter(|(_, mutant)| is_wanted(mutant.what)).collect();
    ensure!(!mutants.is_empty(), "no seeded bug has a name with {}", wanted.join(" or "));
    let built = build(workspace)?;
    let mut tests: Vec<&str> = mutants.iter().map(|(_, mutant)| mutant.test).collect();
    tests.sort_unstable();
    tests.dedup();
    let sound = at_once(&tests, |test| {
        let verdict = built.run_tests(test, None, &format!("as it is {test}"))?;
        println!("{:<58} {}", format!("as it is: {test}"), verdict.how);
        Ok((!verdict.red).then_some(()).ok_or(verdict.how))
    })?;
    for (test, outcome) in tests.iter().zip(sound) {
        outcome.map_err(|how| anyhow!("the kernels as they are fail {test}: {how}"))?;
    }
    let seen = at_once(&mutants, |(number, mutant)| {
        let verdict = built.run_tests(mutant.test, Some(*number), mutant.what)?;
        println!("{:<58} {}", mutant.what, verdict.how);
        Ok(verdict.red)
    })?;
    let survived: Vec<String> = (mutants.iter().zip(seen).filter(|(_, seen)| !seen))
        .map(|((_, mutant), _)| format!("{} ({}): {} stayed green", mutant.what, mutant.file, mutant.test))
        .collect();
    ensure!(survived.is_empty(), "{} seeded bugs were not seen:\n  {}", survived.len(), survived.join("\n  "));
    Ok(format!("{} bugs seeded into the kernels, each seen; the kernels as they are stay green", mutants.len()))
}

/// Does all of it, as many at a time as there are processors; results in the order of `all`, or the first error.
fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<R>>>> = all.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..processors() {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = all.get(index) else { break };
                    let result = work(item);
                    *results[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(result);
                }
            });
        }
    });
    let inner = |slot: Mutex<Option<_>>| slot.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.into_iter().map(|slot| inner(slot).context("a worker left nothing")?).collect()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}

/// The kernels and their headers, by their paths below `cuda/`.
fn read_sources(root: &Path) -> Result<Vec<(String, String)>> {
    let kernels = root.join("cuda");
    let files = ["cu", "cuh", "h"].iter().flat_map(|extension| sources(root, "cuda", extension));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path.strip_prefix(&kernels)?.to_string_lossy().into_owned(), text))
    };
    files.map(read).collect()
}

/// The text of the mutant's file with its bug.
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

/// Writes the kernels with a switch for every mutant to `dir/cuda`.
fn write_switched(root: &Path, dir: &Path) -> Result<()> {
    let sources = read_sources(root)?;
    let bug = |(number, mutant): (usize, &'static Mutant)| {
        Ok((mutant.file, Bug { number, what: mutant.what, text: mutate(mutant, &sources)? }))
    };
    let bugs: Vec<(&str, Bug)> = mutants().enumerate().map(bug).collect::<Result<_>>()?;
    let copy = dir.join("cuda");
    if copy.is_dir() {
        fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    for (file, text) in &sources {
        let bugs: Vec<&Bug> = bugs.iter().filter(|(of, _)| of == file).map(|(_, bug)| bug).collect();
        let to = copy.join(file);
        fs::create_dir_all(to.parent().context("a file in a directory")?)?;
        let text = if bugs.is_empty() { text.clone() } else { with_switches(text, &bugs) };
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    let (name, text) = switches::HEADER;
    Ok(fs::write(copy.join(name), text)?)
}

struct Built {
    tests: PathBuf,
    /// The directory of the library in which every bug has its switch, and of the tests' logs.
    dir: PathBuf,
}

fn build(workspace: &Workspace) -> Result<Built> {
    let dir = workspace.target.join("mutants");
    write_switched(&workspace.root, &dir)?;
    let arguments =
        ["test", "--package", "qlora-kernels", "--features", "emulation-shared", "--test", "cuda", "--no-run"];
    let built = artifacts::build(workspace, &arguments, &[])?;
    // Most tests of a bug are red at once: optimizing takes longer than running.
    let compiler = Compiler::emulation(Path::new(&cxx()), &["-O1"]).map_err(|error| anyhow!(error))?;
    let files = sources(&dir, "cuda", "cu");
    let (kernels, _) = compiler.compile(&dir, &files, &dir.join("objects"), processors()).map_err(|error| {
        anyhow!("{error}; what a bug of it changes has to be an expression or whole statements, see `seeded` above")
    })?;
    // The emulation, and kernels of tests, as the build script left them.
    let objects = built.kernels_out_dir()?.join("emulation");
    let is_kernel = |object: &PathBuf| kernels.iter().any(|kernel| kernel.file_name() == object.file_name());
    let mut others = sources(&objects, "", "o");
    others.retain(|object| !is_kernel(object));
    ensure!(!others.is_empty(), "the build script left no objects of the emulation in {}", objects.display());
    let mut command = Command::new(cxx());
    command.arg("-shared").arg("-o").arg(dir.join(LIBRARY)).args(&kernels).args(&others);
    check(command)?;
    Ok(Built { tests: built.executable("cuda")?.clone(), dir })
}

fn cxx() -> String {
    std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

fn slug(what: &str) -> String {
    what.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

struct Verdict {
    red: bool,
    /// With the seconds that it took.
    how: String,
}

impl Built {
    /// Runs the tests of this name with this bug switched on, or with none, until one fails. An error if there are no
    /// tests, or if they do not start.
    fn run_tests(&self, name: &str, bug: Option<usize>, log: &str) -> Result<Verdict> {
        let log = &self.dir.join(slug(log)).with_extension("log");
        let output = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&self.tests);
        // One at a time, as another mutant runs on the other processor.
        command.args([name, "--test-threads=1"]);
        command.env("LD_LIBRARY_PATH", &self.dir).env_remove(switches::VARIABLE);
        command.envs(bug.map(|number| (switches::VARIABLE, number.to_string())));
        command.envs([("PROPTEST_CASES", CASES), ("PROPTEST_RNG_SEED", SEED), ("PROPTEST_MAX_SHRINK_ITERS", "0")]);
        let started = Instant::now();
        let mut child = command.stdout(output.try_clone()?).stderr(output).spawn().context("cannot run the tests")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some((status.success(), status.to_string()));
            }
            let has_failed = failures(&String::from_utf8_lossy(&fs::read(log)?)) > 0;
            if has_failed || started.elapsed() > TIME_LIMIT {
                child.kill()?;
                child.wait()?;
                break has_failed.then(|| (false, "stopped at the first".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let (red, how) =
            verdict(status, &text).with_context(|| format!("{name}; its output is in {}", log.display()))?;
        Ok(Verdict { red, how: format!("{how} ({:.1} s)", started.elapsed().as_secs_f64()) })
    }
}

/// Tests that have failed so far. With one thread the name and the result of a test may stand on two lines.
fn failures(text: &str) -> usize {
    text.lines().filter(|line| line.ends_with("... FAILED") || *line == "FAILED").count()
}

/// Red or green, and how, from the exit status (none: stopped at the time limit) and the output.
fn verdict(status: Option<(bool, String)>, text: &str) -> Result<(bool, String)> {
    let started = text.lines().find_map(|line| line.strip_prefix("running ")?.split(' ').next()?.parse::<usize>().ok());
    ensure!(started.is_some_and(|count| count > 0), "no test ran");
    let failed = failures(text);
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
    fn every_seeded_bugs_text_is_in_the_kernels_once() {
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
        assert_eq!(names.len(), mutants().count(), "two share a log");
    }

    #[test]
    fn work_is_done_in_parallel_and_the_first_error_is_told() {
        let numbers = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(at_once(&numbers, |n| Ok(n * n)).unwrap(), [1, 4, 9, 16, 25, 36, 49]);
        let fail = |n: &i32| if *n > 3 { Err(anyhow!("{n}")) } else { Ok(()) };
        assert_eq!(at_once(&numbers, fail).unwrap_err().to_string(), "4");
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
