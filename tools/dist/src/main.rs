//! Releases of the trainer: a tarball and a wheel around a binary that is there already, with manual pages,
//! completions, licenses, a bill of materials and checksums. One binary makes the same bytes, wherever and whenever it
//! is packed.

#![deny(unsafe_code)]

mod archive;
mod bare_root;
mod check;
mod cuda_runtime;
mod elf;
mod model;
mod release;
mod sbom;
mod wheel;

use anyhow::{Result, bail};
use cuda_runtime::CudaRuntime;
use release::Flavor;
use std::path::Path;
use std::process::ExitCode;
use tools_support::command::finish;
use tools_support::workspace::Workspace;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    finish(Workspace::locate().and_then(|workspace| match arguments[..] {
        ["cpu", binary, to] => release::release(&workspace, Path::new(binary), &Flavor::Cpu, Path::new(to)),
        ["cuda", binary, to, nvcc] => {
            let flavor = Flavor::Cuda(CudaRuntime::of(Path::new(nvcc))?);
            release::release(&workspace, Path::new(binary), &flavor, Path::new(to))
        }
        ["check", binary] => check::run(&workspace, Path::new(binary)),
        _ => usage(),
    }))
}

fn usage() -> Result<String> {
    bail!("usage: dist cpu BINARY FOLDER, dist cuda BINARY FOLDER NVCC, or dist check BINARY: pack, install and run it")
}
