//! Machine code and PTX that nvcc makes of the kernels in `cuda/`, built for every architecture and read back.

#![deny(unsafe_code)]

mod calibration;
mod launches;
mod ptx;
mod table;

use anyhow::{Result, bail, ensure};
use kernel_inspect::library::Library;
use kernel_inspect::names;
use std::process::ExitCode;
use tools_support::command::finish;
use tools_support::cuda::ARCHS;
use tools_support::workspace::Workspace;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    finish(match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["machine-code"] => Workspace::locate().and_then(|workspace| check_machine_code(&workspace)),
        ["ptx"] => Workspace::locate().and_then(|workspace| check_ptx(&workspace)),
        _ => usage(),
    })
}

fn usage() -> Result<String> {
    bail!("usage: kernel-inspect machine-code | kernel-inspect ptx")
}

/// Builds the kernels, prints a table of them, and fails on properties that a hot kernel must not have.
fn check_machine_code(workspace: &Workspace) -> Result<String> {
    let library = Library::build_with_tests(workspace)?;
    let (code, resources) = (library.machine_code()?, library.resources()?);
    let mut rows = table::rows(&code, &resources)?;
    let launched = launches::launched(workspace)?;
    rows.iter_mut().for_each(|row| row.dynamic = launched.get(&row.name).copied());
    println!("{}", table::shown(&rows));
    let mut findings = table::findings(&rows, &table::HOT);
    findings.extend(launches::findings(&rows));
    findings.extend(calibration::findings(&Library::of_calibration(workspace)?.machine_code()?)?);
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    let kernels = rows.len() / ARCHS.len();
    let (hot, most) = (table::HOT.len(), rows.iter().filter_map(|row| row.dynamic).max().unwrap_or_default());
    let archs = ARCHS.join(", ");
    let (micro, limit) = (calibration::MICRO_KERNELS.len(), launches::LIMIT);
    Ok(format!(
        "{kernels} kernels for {archs} and PTX, {hot} of them hot, without spills; {most} of {limit} bytes of shared memory in the largest launch; \
         {micro} micro-kernels time what they say"
    ))
}

/// Builds the kernels, and fails on a contracted multiply-add where two roundings are due.
fn check_ptx(workspace: &Workspace) -> Result<String> {
    let listing = Library::build_with_tests(workspace)?.listing(&["-ptx"])?;
    let kernels: Vec<_> = ptx::parse(&listing).into_iter().map(|found| (names::readable(&found.name), found)).collect();
    for (name, found) in &kernels {
        let (fused, fusible, rounded) = (found.fused, found.fusible, found.rounded);
        println!("{name:<44} {fused:>3} multiply-adds {fusible:>3} unrounded mul {rounded:>4} rounded mul and add");
    }
    let findings = ptx::findings(&kernels, &ptx::TWO_ROUNDINGS)?;
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    Ok(format!("{} kernels round twice where two roundings are due", ptx::TWO_ROUNDINGS.len()))
}
