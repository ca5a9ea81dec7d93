//! Prints the predicted speed of the kernels, writes it to `docs/predicted.md`, or checks that page and the goals.

#![deny(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use kernel_inspect::library::Library;
use predict::launches::Kernels;
use predict::{goals, measured, page, steps};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use tools_support::command::finish;
use tools_support::workspace::Workspace;

const PAGE: &str = "docs/predicted.md";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let of_workspace = |of: fn(&Workspace) -> Result<String>| Workspace::locate().and_then(|workspace| of(&workspace));
    finish(match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => of_workspace(print),
        ["write"] => of_workspace(write),
        ["check"] => of_workspace(check),
        _ => bail_usage(),
    })
}

fn bail_usage() -> Result<String> {
    bail!("usage: predict [write | check]")
}

/// What the machine code says.
struct Predicted {
    compiler: String,
    page: String,
    /// What is wrong with the predictions, one line each
    findings: Vec<String>,
}

fn predicted(workspace: &Workspace) -> Result<Predicted> {
    let library = Library::build(workspace)?;
    let kernels = Kernels::new(library.machine_code()?, &library.resources()?)?;
    let steps = steps::planned()?;
    let judged = goals::judged(&kernels, &steps)?;
    let records = records::read(&workspace.root.join("benches/records"))?;
    let compared = measured::compared(&kernels, &records)?;
    let compiler = library.compiler()?;
    let page = page::page(&compiler, &kernels, &steps, &judged, &compared)?;
    Ok(Predicted { compiler, page, findings: goals::findings(&judged, goals::KNOWN_MISSES) })
}

fn print(workspace: &Workspace) -> Result<String> {
    let Predicted { page, findings, .. } = predicted(workspace)?;
    print!("{page}");
    Ok(format!("{} findings", findings.len()))
}

fn write(workspace: &Workspace) -> Result<String> {
    let Predicted { page, findings, .. } = predicted(workspace)?;
    let path = workspace.root.join(PAGE);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    if findings.is_empty() { Ok(format!("{PAGE} is written")) } else { refuse(&findings) }
}

fn check(workspace: &Workspace) -> Result<String> {
    let Predicted { compiler, page, findings } = predicted(workspace)?;
    let current = read(&workspace.root.join(PAGE))?;
    if !findings.is_empty() {
        return refuse(&findings);
    }
    if page::is_of_another_compiler(&current, &compiler) {
        return Ok(format!("the goals are as they were; {PAGE} is not that of nvcc {compiler}, so not compared"));
    }
    ensure!(current == page, "{PAGE} is not what the machine code says: run `cargo xtask predict --write`");
    Ok(format!(
        "{PAGE} is what the machine code says; {} misses are known, none is new or worse",
        goals::KNOWN_MISSES.len()
    ))
}

fn refuse(findings: &[String]) -> Result<String> {
    bail!("{} findings:\n  {}", findings.len(), findings.join("\n  "))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
