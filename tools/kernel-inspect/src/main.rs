//! Machine code and PTX that nvcc makes of the kernels in `cuda/`, built for every architecture and read back.

#![deny(unsafe_code)]

mod launches;
mod names;
mod ptx;
mod resources;
mod sass;
mod table;

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::ScopedJoinHandle;
use tools_support::artifacts;
use tools_support::command::finish;
use tools_support::cuda::{self, ARCHS, Toolkit};
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

/// Compiles and links everything of the kernels' crate for every architecture; nothing of it runs. Returns the library
/// of the kernels.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let arguments = ["build", "--package", "qlora-kernels", "--features", "cuda", "--lib", "--tests"];
    let built = artifacts::build(workspace, &arguments, &[("QLORA_CUDA_ARCHS", &cuda::archs_variable())])?;
    let library = built.kernels_out_dir()?.join("libqlora_kernels_cuda.a");
    ensure!(library.is_file(), "the build script left no {}", library.display());
    Ok(library)
}

/// Builds the kernels, prints what became of each, and fails on what a hot kernel must not have.
fn check_machine_code(workspace: &Workspace) -> Result<String> {
    let toolkit = cuda::toolkit(workspace)?;
    let library = build(workspace)?;
    let listings = std::thread::scope(|scope| {
        let listers = ARCHS.map(|arch| {
            let (toolkit, library) = (&toolkit, &library);
            scope.spawn(move || cuobjdump(toolkit, library, &["-sass", "-arch", arch]))
        });
        let join = |lister: ScopedJoinHandle<'_, Result<String>>| {
            lister.join().map_err(|_| anyhow::anyhow!("the caller of cuobjdump panicked"))?
        };
        listers.into_iter().map(join).collect::<Result<Vec<String>>>()
    })?;
    let code: Vec<_> = listings.iter().flat_map(|listing| sass::parse(listing)).collect();
    let resources = resources::parse(&cuobjdump(&toolkit, &library, &["--dump-resource-usage"])?);
    let mut rows = table::rows(&code, &resources)?;
    let launched = launches::launched(workspace)?;
    rows.iter_mut().for_each(|row| row.dynamic = launched.get(&row.name).copied());
    println!("{}", table::shown(&rows));
    let mut findings = table::findings(&rows, &table::HOT);
    findings.extend(launches::findings(&rows));
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    let kernels = rows.len() / ARCHS.len();
    let (within, most) = (table::HOT.len(), rows.iter().filter_map(|row| row.dynamic).max().unwrap_or_default());
    let archs = ARCHS.join(", ");
    Ok(format!(
        "{kernels} kernels for {archs} and PTX, {within} of them within their bounds; {most} of {} bytes of shared memory in the largest launch",
        launches::LIMIT
    ))
}

/// Builds the kernels, and fails on a contracted multiply-add where two roundings are due.
fn check_ptx(workspace: &Workspace) -> Result<String> {
    let toolkit = cuda::toolkit(workspace)?;
    let library = build(workspace)?;
    let listing = cuobjdump(&toolkit, &library, &["-ptx"])?;
    let kernels: Vec<_> = ptx::parse(&listing).into_iter().map(|found| (names::readable(&found.name), found)).collect();
    for (name, found) in &kernels {
        let (fused, fusible, rounded) = (found.fused, found.fusible, found.rounded);
        println!("{name:<44} {fused:>3} multiply-adds {fusible:>3} unrounded mul {rounded:>4} rounded mul and add");
    }
    let findings = ptx::findings(&kernels, &ptx::TWO_ROUNDINGS)?;
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    Ok(format!("{} kernels round twice where two roundings are due", ptx::TWO_ROUNDINGS.len()))
}

fn cuobjdump(toolkit: &Toolkit, library: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(&toolkit.cuobjdump);
    command.args(arguments).arg(library);
    // It calls nvdisasm, which lies beside it and need not be in PATH.
    let beside = toolkit.cuobjdump.parent().map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env("PATH", std::env::join_paths(beside.into_iter().chain(std::env::split_paths(&path)))?);
    let output = command.output().with_context(|| format!("cannot run {}", toolkit.cuobjdump.display()))?;
    ensure!(
        output.status.success(),
        "cuobjdump {} {}: {}: {}",
        arguments.join(" "),
        library.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
