//! Checks of the repository's files: sizes, `unsafe`, comments, spelling of names, circles of imports, the commands
//! that README.md and the workflows of the CI name, and the packages for a registry.

#![deny(unsafe_code)]

mod circles;
mod commands;
mod comments;
mod files;
mod finding;
mod lints;
mod packages;
mod spelling;
mod workflows;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::ExitCode;
use tools_support::command::finish;

const USAGE: &str =
    "usage: repo-check tree | repo-check commands DIRECTORY_OF_PROGRAMS | repo-check packages DIRECTORY_OF_ARCHIVES";

fn main() -> ExitCode {
    finish(run())
}

/// The closing line.
fn run() -> Result<String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().context("cannot find the repository")?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tree"] => tree(&root),
        ["commands", programs] => commands::check(&root, Path::new(programs)),
        ["packages", archives] => packages::check(&root, Path::new(archives)),
        _ => bail!(USAGE),
    }
}

fn tree(root: &Path) -> Result<String> {
    let names = files::tracked(root)?;
    let mut findings = files::oversized(root, &names)?;
    findings.extend(lints::manifests(root, &names)?);
    findings.extend(workflows::missing_files(root, &workflows::command_lines(root, &names)?));
    let sources = files::sources(root, &names)?;
    let mut kept = Vec::new();
    for source in &sources {
        findings.extend(lints::of_source(source));
        kept.extend(comments::of_source(source));
        kept.extend(spelling::of_source(source)?);
    }
    kept.extend(names.iter().filter_map(|name| spelling::of_file_name(name)));
    for folder in circles::roots(&names) {
        kept.extend(circles::findings(root, folder)?);
    }
    findings.extend(kept.iter().map(ToString::to_string));
    for source in sources.iter().filter(|source| source.is_long()) {
        println!("long: {} has {} lines; does it hold one thing?", source.name, source.text.lines().count());
    }
    if !findings.is_empty() {
        bail!("{} findings:\n  {}", findings.len(), findings.join("\n  "));
    }
    Ok(format!("{} files, {} of them sources, without a finding", names.len(), sources.len()))
}
