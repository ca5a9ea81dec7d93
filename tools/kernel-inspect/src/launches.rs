//! The dynamic shared memory that each kernel is launched with, from the launches themselves: those of the emulated
//! suite, which notes them, and the symbol table of its executable. The sizes are the launchers', which are
//! the same code on a GPU.

use crate::table::Row;
use anyhow::{Context, Result, ensure};
use kernel_inspect::names::readable;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use tools_support::artifacts;
use tools_support::launches;
use tools_support::workspace::Workspace;

/// Most bytes of shared memory of a block on sm_86 and sm_89: `kMaxSharedBytes` of cuda/common/launch.cuh.
pub const LIMIT: u64 = 99 * 1024;
/// Cases of each property; with the seed, a run can be repeated.
const CASES: &str = "12";
const SEED: &str = "20250601";

/// Kernels that were launched, with the most bytes of all their launches: by the suite, if it has run on the kernels as
/// they are, and otherwise by a few of its cases.
pub fn launched(workspace: &Workspace) -> Result<BTreeMap<String, u64>> {
    if launches::noted(workspace).is_none() {
        run_suite(workspace)?;
    }
    let notes = launches::noted(workspace).context("the emulated suite noted no launch")?;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for (executable, notes) in by_executable(&notes)? {
        for (name, bytes) in named(&notes, &symbols(Path::new(executable))?)? {
            let entry = found.entry(name).or_insert(bytes);
            *entry = bytes.max(*entry);
        }
    }
    ensure!(!found.is_empty(), "the emulated suite noted no launch");
    Ok(found)
}

fn run_suite(workspace: &Workspace) -> Result<()> {
    let arguments = ["test", "--package", "qlora-kernels", "--features", "emulation", "--test", "cuda", "--no-run"];
    let built = artifacts::build(workspace, &arguments, &[])?;
    let mut suite = Command::new(built.executable("cuda")?);
    suite
        .args(["--quiet", "--test-threads"])
        .arg(std::thread::available_parallelism().map_or(1, |n| n.get()).to_string());
    suite
        .env(launches::VARIABLE, launches::begin(workspace)?)
        .env("PROPTEST_CASES", CASES)
        .env("PROPTEST_RNG_SEED", SEED)
        .stdout(Stdio::null());
    tools_support::command::check(suite)
}

/// The notes of each test executable that is still there.
fn by_executable(notes: &str) -> Result<BTreeMap<&str, String>> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    for line in notes.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(address), Some(bytes), Some(executable)) = (words.next(), words.next(), words.next()) else {
            anyhow::bail!("a launch was noted as {line:?}");
        };
        let notes = all.entry(executable).or_default();
        notes.push_str(&format!("{address} {bytes}\n"));
    }
    all.retain(|executable, _| Path::new(executable).is_file());
    Ok(all)
}

/// Names of functions by address, of an executable.
fn symbols(executable: &Path) -> Result<BTreeMap<u64, String>> {
    let output =
        Command::new("nm").arg("--defined-only").arg(executable).output().context("cannot run binutils' nm")?;
    ensure!(output.status.success(), "nm {}: {}", executable.display(), output.status);
    Ok(parse_symbols(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_symbols(text: &str) -> BTreeMap<u64, String> {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
        is_code.then_some((address, words.next()?.to_owned()))
    };
    text.lines().filter_map(of).collect()
}

fn named(notes: &str, symbols: &BTreeMap<u64, String>) -> Result<BTreeMap<String, u64>> {
    let mut most = BTreeMap::new();
    for line in notes.lines() {
        let parsed = line
            .split_once(' ')
            .and_then(|(address, bytes)| Some((u64::from_str_radix(address, 16).ok()?, bytes.parse::<u64>().ok()?)));
        let (address, bytes) = parsed.with_context(|| format!("a launch was noted as {line:?}"))?;
        let symbol = symbols.get(&address).with_context(|| format!("no function lies at {address:x}"))?;
        let entry = most.entry(readable(symbol)).or_insert(bytes);
        *entry = bytes.max(*entry);
    }
    Ok(most)
}

/// Faults, one line each: a kernel that the suite never launches, or one that asks for more than a block gets.
pub fn findings(rows: &[Row]) -> Vec<String> {
    let mut findings = Vec::new();
    for row in rows {
        match row.dynamic {
            None => findings.push(format!("{}: no launch of it in the emulated suite", row.name)),
            Some(bytes) if bytes + u64::from(row.shared_of_own()) > LIMIT => {
                findings.push(format!(
                    "{} on {}: {bytes} bytes of dynamic shared memory (at most {LIMIT})",
                    row.name, row.arch
                ));
            }
            Some(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_named_by_the_symbol_table_and_the_largest_counts() {
        let nm = "00000000000010a0 t _ZN12_GLOBAL__N_14meanEPKflPf\n0000000000002000 D data\n                 U free\n20b0 W _Z5otherv\n";
        let symbols = parse_symbols(nm);
        assert_eq!(symbols.len(), 2);
        let found = named("10a0 64\n20b0 0\n10a0 256\n10a0 128\n", &symbols).unwrap();
        assert_eq!(found, BTreeMap::from([("mean".to_owned(), 256), ("other".to_owned(), 0)]));
        assert!(named("1 2", &symbols).unwrap_err().to_string().contains("no function lies at 1"));
        assert!(named("x y", &symbols).is_err());
        let this = std::env::current_exe().unwrap();
        let this = this.to_str().unwrap();
        let notes = format!("10a0 64 {this}\n20b0 0 /gone\n10a0 256 {this}\n");
        assert_eq!(by_executable(&notes).unwrap(), BTreeMap::from([(this, "10a0 64\n10a0 256\n".to_owned())]));
        assert!(by_executable("10a0 64").is_err());
    }
}
