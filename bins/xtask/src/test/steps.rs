//! The steps of `cargo xtask test`, in the order in which they run: what fails fastest first.
//!
//! A new step is one more entry of [`STEPS`] and one function.

use super::command::{check, check_and_keep};
use super::{Outcome, Step, kernels, tree};
use crate::setup;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

pub const STEPS: &[Step] = &[
    Step { name: "tree", about: "sizes of files, `unsafe` only where it belongs", run: check_tree },
    Step { name: "records", about: "the README's GPU figures are those of the records", run: records },
    Step { name: "compiler", about: "a C++ compiler, for the kernels", run: kernels::compiler },
    Step { name: "format", about: "rustfmt changes nothing", run: format },
    Step { name: "clippy", about: "clippy without a warning, all targets", run: clippy },
    Step { name: "other-host", about: "the other supported Linux host compiles", run: other_host },
    Step { name: "docs", about: "rustdoc without a warning", run: docs },
    Step {
        name: "bindings",
        about: "the C interface's declarations are those of its header",
        run: kernels::declarations,
    },
    Step {
        name: "kernels-nvcc",
        about: "the kernels for every GPU architecture, taken apart",
        run: kernels::machine_code,
    },
    Step { name: "kernels-ptx", about: "two roundings where the format has two", run: kernels::ptx },
    Step {
        name: "kernels-emulated",
        about: "the tests of the kernels, and of training on them, on the host",
        run: kernels::emulated,
    },
    Step {
        name: "kernels-mutants",
        about: "bugs planted into the kernels turn those tests red",
        run: kernels::mutants,
    },
    Step { name: "kernels-asan", about: "the same under AddressSanitizer", run: kernels::sanitized },
    Step {
        name: "gpu-bundle",
        about: "the bundle for a GPU machine is built, is small, and says when there is no GPU",
        run: gpu_bundle,
    },
    Step { name: "setup", about: "the tests' model is fetched and converted", run: prepare },
    Step { name: "tests", about: "all unit and integration tests", run: tests },
    Step { name: "doc-tests", about: "the examples in the documentation", run: doc_tests },
    Step {
        name: "engines",
        about: "other engines link the emulated library: C, Rust, Python",
        run: crate::engines::engines,
    },
    Step { name: "readme", about: "the commands that README.md names exist", run: readme },
];

const DONE: fn() -> Result<Outcome> = || Ok(Outcome::Passed(Vec::new()));

fn check_tree(workspace: &Workspace) -> Result<Outcome> {
    let findings = tree::findings(&workspace.root)?;
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    DONE()
}

fn records(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(vec![crate::records::check(&workspace.root)?]))
}

fn format(workspace: &Workspace) -> Result<Outcome> {
    check(workspace.cargo(&["fmt", "--all", "--", "--check"]))?;
    DONE()
}

fn clippy(workspace: &Workspace) -> Result<Outcome> {
    let arguments = ["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"];
    check(workspace.cargo(&arguments))?;
    DONE()
}

/// Linux on x86-64 and on aarch64 are supported. The one that this is not can be checked, not run.
fn other_host(workspace: &Workspace) -> Result<Outcome> {
    let other = match std::env::consts::ARCH {
        "aarch64" => "x86_64-unknown-linux-gnu",
        _ => "aarch64-unknown-linux-gnu",
    };
    if !has_standard_library(other)? {
        let why = format!("Rust's standard library for {other} is not installed (`rustup target add {other}`)");
        return Ok(Outcome::Skipped(why));
    }
    check(workspace.cargo(&["check", "--release", "--workspace", "--locked", "--target", other]))?;
    DONE()
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
    command.env("RUSTDOCFLAGS", "--deny warnings");
    check(command)?;
    DONE()
}

fn gpu_bundle(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome::Passed(vec![crate::bundle::check_bundle(workspace)?]))
}

fn prepare(workspace: &Workspace) -> Result<Outcome> {
    println!("{}", setup::run(workspace)?.display());
    DONE()
}

fn tests(workspace: &Workspace) -> Result<Outcome> {
    let arguments: &[&str] = if has_nextest(workspace) {
        &["nextest", "run", "--release", "--workspace", "--locked", "--no-fail-fast"]
    } else {
        println!("cargo-nextest is not installed; cargo's own runner takes its place");
        &["test", "--release", "--workspace", "--locked", "--all-targets", "--no-fail-fast"]
    };
    let mut command = workspace.cargo(arguments);
    command.env("QLORA_MODELS", workspace.models());
    keep_results(command)
}

pub fn has_nextest(workspace: &Workspace) -> bool {
    let mut command = workspace.cargo(&["nextest", "--version"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn doc_tests(workspace: &Workspace) -> Result<Outcome> {
    keep_results(workspace.cargo(&["test", "--release", "--workspace", "--locked", "--doc"]))
}

fn keep_results(command: Command) -> Result<Outcome> {
    let closing = check_and_keep(command, |line| line.starts_with("Summary [") || line.starts_with("test result: "))?;
    ensure!(!closing.is_empty(), "the test runner printed no summary, so it is unknown whether a test ran");
    Ok(Outcome::Passed(closing))
}

fn readme(workspace: &Workspace) -> Result<Outcome> {
    check(workspace.cargo(&["build", "--release", "--locked", "--package", "qlora-train"]))?;
    let trainer = workspace.binary("qlora-train");
    let tasks = crate::task_names();
    let mut findings = Vec::new();
    let commands = tree::readme_commands(&workspace.root)?;
    ensure!(!commands.is_empty(), "README.md names no `cargo xtask` and no `qlora-train` command");
    for tree::NamedCommand { line, program, name } in &commands {
        let exists = match program.as_str() {
            "xtask" => tasks.contains(name),
            _ => {
                let mut help = Command::new(&trainer);
                help.args([name, "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
                help.status().with_context(|| format!("cannot run {}", trainer.display()))?.success()
            }
        };
        if !exists {
            findings.push(format!("README.md:{line}: {program} has no command `{name}`"));
        }
    }
    ensure!(findings.is_empty(), "{}", findings.join("\n  "));
    println!("{} commands named, all exist", commands.len());
    DONE()
}
