//! The steps that compile the kernels of `cuda/`: with nvcc, and as the emulated suite.

use super::runner::{has_nextest, runner};
use super::step::Outcome;
use crate::bindings;
use anyhow::{Result, ensure};
use std::process::{Command, Stdio};
use tools_support::command::{check_and_keep, last_line};
use tools_support::workspace::Workspace;

/// Cases of a property at most under AddressSanitizer, where every case takes thirty times as long; the summary says
/// how many ran. Every run draws others.
const SANITIZED_CASES: &str = "3";

/// Left out under AddressSanitizer, which is there for indices: tests that a check sees a wrong result, and the longest
/// of those that a result is the same on other shapes, grids of real size, and counts of what blocks do. They run code
/// that the other tests run too.
const UNSANITIZED: [&str; 12] = [
    "real_shapes",
    "counters::",
    "launch_counts::",
    "key_heads_enough_to_fill_a_gpu",
    "gradients_of_the_output_layer_do_not_depend_on_chunks",
    "gradients_of_rows_of_the_output_layer_are_those_of_the_table",
    "the_check_sees",
    "faults_brought_about",
    "a_token_does_not_depend_on_the_tile",
    "a_tokens_dx_does_not_depend_on_the_tile",
    "an_adapters_rows_never_see_anothers",
    "many_tokens_are_counted_and_summed",
];

/// The kernels on the host; cargo turns the feature on in the trainer too.
pub const EMULATED: [&str; 2] = ["--features", "emulation"];

/// The crate of the kernels, with what cargo selects its tests on the device by. Alone, as the mutants and the machine
/// code are built, so that all of these share their dependencies.
const KERNELS: [&str; 5] = ["--package", "qlora-kernels", "--lib", "--test", "cuda"];

pub fn compiler(_: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    Ok(Outcome::Passed(Vec::new()))
}

/// The compiler that build.rs takes, which nvcc calls too.
fn ensure_compiler() -> Result<()> {
    let name = std::env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".to_owned());
    // CXX may hold arguments or a wrapper before the compiler; its first word has to run.
    let program = name.split_whitespace().next().unwrap_or("c++");
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(
        status.is_ok_and(|status| status.success()),
        "the kernels need a C++17 compiler, and {program} cannot be run (Debian, Ubuntu: `apt install g++`; another: set CXX)"
    );
    Ok(())
}

pub fn machine_code(workspace: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    let mut closing = last_line(workspace.tool("kernel-inspect", &["machine-code"])?)?;
    closing.extend(last_line(workspace.tool("predict", &["check"])?)?);
    Ok(Outcome::Passed(closing))
}

pub fn ptx(workspace: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    Ok(Outcome::Passed(last_line(workspace.tool("kernel-inspect", &["ptx"])?)?))
}

pub fn mutants(workspace: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    Ok(Outcome::Passed(last_line(workspace.tool("mutants", &[])?)?))
}

/// The build directory is that of the other builds, whose dependencies this one takes; the kernels' crate is built
/// anew where the variable has changed.
pub fn sanitized(workspace: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    let nextest = has_nextest(workspace);
    let mut command = runner(workspace, nextest);
    command.args(["--release", "--locked", "--no-fail-fast"]).args(EMULATED).args(KERNELS);
    command.env("QLORA_EMULATION_SANITIZE", "address");
    command.env("PROPTEST_CASES", SANITIZED_CASES);
    // The emulation switches stacks, and what a test's process leaves is the system's to take back.
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0");
    keep_tallies(command, nextest, &UNSANITIZED).map(Outcome::Passed)
}

/// Runs tests, those of the kernels among them; the lines in which the runner and the kernels' properties sum up.
pub fn keep_tallies(mut command: Command, nextest: bool, left_out: &[&str]) -> Result<Vec<String>> {
    ensure_compiler()?;
    // nextest repeats the output of tests, each of which has a summary of its own.
    let summary = if nextest { "Summary [" } else { "test result: " };
    match nextest {
        true if left_out.is_empty() => {}
        true => drop(command.arg("--")),
        false => drop(command.args(["--", "--nocapture"])),
    }
    command.args(left_out.iter().flat_map(|name| ["--skip", name]));
    let kept = check_and_keep(&mut command, |line| tally(line).is_some() || is_summary(line))?;
    let tallies: Vec<_> = kept.iter().filter_map(|line| tally(line)).collect();
    let mut closing: Vec<String> = kept.iter().filter(|line| line.starts_with(summary)).cloned().collect();
    ensure!(!closing.is_empty(), "the test runner printed no summary, so it is unknown whether a test ran");
    ensure!(!tallies.is_empty(), "no test printed its cases and schedules, so it is unknown whether a kernel ran");
    closing.push(format!("kernels: {}", summed(&tallies)));
    Ok(closing)
}

fn is_summary(line: &str) -> bool {
    line.starts_with("Summary [") || line.starts_with("test result: ")
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Tally {
    cases: u64,
    schedules: u64,
}

/// `forward, M to 16: 32 cases, 2 schedules each, on ...`, as the kernels' tests print it.
fn tally(line: &str) -> Option<Tally> {
    let (before, after) = line.split_once(" cases, ")?;
    let cases = before.rsplit(": ").next()?.parse().ok()?;
    let schedules = after.split_once(" schedules each, on ")?.0.parse().ok()?;
    Some(Tally { cases, schedules })
}

fn summed(tallies: &[Tally]) -> String {
    let cases: u64 = tallies.iter().map(|tally| tally.cases).sum();
    let runs: u64 = tallies.iter().map(|tally| tally.cases * tally.schedules).sum();
    format!("{} properties: {cases} cases, {runs} with their schedules", tallies.len())
}

pub fn declarations(workspace: &Workspace) -> Result<Outcome> {
    ensure_compiler()?;
    Ok(Outcome::Passed(bindings::run(workspace, "check")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_and_schedules_are_read_from_the_tests_output_and_summed() {
        let lines = [
            "forward, M to 16: 32 cases, 2 schedules each, on the emulation",
            "    quantize: 64 cases, 3 schedules each, on NVIDIA H100: 80 GB",
            "running 3 tests",
            "many cases, few schedules",
        ];
        let found: Vec<_> = lines.iter().filter_map(|line| tally(line)).collect();
        assert_eq!(found, [Tally { cases: 32, schedules: 2 }, Tally { cases: 64, schedules: 3 }]);
        assert_eq!(summed(&found), "2 properties: 96 cases, 256 with their schedules");
    }
}
