//! What nvcc makes of the kernels in `cuda/`: built for every architecture, and read back.

mod launches;
mod names;
mod ptx;
mod resources;
mod sass;
mod table;

use crate::setup::cuda::{self, Toolkit};
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;

pub use table::ARCHS;

/// Compiles and links everything of the kernels' crate for every architecture; nothing of it runs. Returns the library
/// of the kernels.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    let targets = ["--lib", "--tests"];
    let format = "--message-format=json-render-diagnostics";
    let mut command = workspace.cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "qlora-kernels",
        "--features",
        "cuda",
        format,
    ]);
    let archs = ARCHS.map(|arch| arch.trim_start_matches("sm_")).join(",");
    command.args(targets).env("QLORA_CUDA_ARCHS", archs).stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`cargo build --package qlora-kernels --features cuda`: {}", output.status);
    let out_dir =
        out_dir(&String::from_utf8_lossy(&output.stdout)).context("cargo ran no build script of the kernels")?;
    let library = out_dir.join("libqlora_kernels_cuda.a");
    ensure!(library.is_file(), "the build script left no {}", library.display());
    Ok(library)
}

/// Where cargo let the build script of the kernels write, from its messages.
pub fn out_dir(messages: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut dirs = messages.filter(|message| message["reason"] == "build-script-executed").filter_map(|message| {
        let dir = PathBuf::from(message["out_dir"].as_str()?);
        let package = dir.parent()?.file_name()?.to_str()?;
        package.starts_with("qlora-kernels-").then_some(dir)
    });
    dirs.next_back()
}

/// An executable that cargo built.
#[derive(Clone)]
pub struct Executable {
    pub target: String,
    pub path: PathBuf,
}

/// The executables of cargo's messages.
pub fn executables(messages: &str) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["reason"] == "compiler-artifact").filter_map(|message| {
        let path = PathBuf::from(message["executable"].as_str()?);
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        Some(Executable { target, path })
    });
    built.collect()
}

/// Builds the kernels, prints what became of each, and fails on what a hot kernel must not have.
pub fn check_machine_code(workspace: &Workspace) -> Result<String> {
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
pub fn check_ptx(workspace: &Workspace) -> Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_build_directory_is_read_from_cargos_messages() {
        let messages = r#"{"reason":"build-script-executed","out_dir":"/t/release/build/qlora-kernels-1a/out"}
not json
{"reason":"build-script-executed","out_dir":"/t/release/build/cudarc-2b/out"}
{"reason":"compiler-artifact","out_dir":"/t/release/build/qlora-kernels-3c/out"}"#;
        assert_eq!(out_dir(messages), Some("/t/release/build/qlora-kernels-1a/out".into()));
        assert_eq!(out_dir(""), None);
    }

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"cuda"},"executable":"/t/cuda-1"}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"qlora_kernels"},"executable":null}"#;
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].target, &*found[0].path), ("cuda", Path::new("/t/cuda-1")));
    }
}
