//! `cargo xtask dist`: the trainer built for others and packed, by the tool of that name.

use anyhow::{Context, Result};
use std::fs;
use tools_support::artifacts;
use tools_support::command::{check, last_line};
use tools_support::cuda;
use tools_support::workspace::Workspace;

/// Machine code for every GPU from the A100 on, each of its own; build.rs adds the PTX of the first for newer ones.
const ARCHS: &str = "80,86,89,90,100,120";
const TRAINER: &str = "qlora-train";

/// Builds and packs into `<target>/dist`.
pub fn run(workspace: &Workspace, with_cuda: bool) -> Result<()> {
    let folder = workspace.target.join("dist");
    // Made anew, so that nothing of an earlier one stays.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let packed = folder.to_string_lossy();
    let pack = |flavor: &str, features: &[&str], variables: &[(&str, &str)]| -> Result<()> {
        let arguments = [&["build", "--package", TRAINER], features].concat();
        let built = artifacts::build(workspace, &arguments, variables)?;
        let binary = built.executable(TRAINER)?.to_string_lossy().into_owned();
        check(workspace.tool("dist", &[flavor, &binary, &packed])?)
    };
    pack("cpu", &[], &[])?;
    if with_cuda {
        cuda::toolkit(workspace)?;
        pack("cuda", &["--features", "cuda"], &[("QLORA_CUDA_ARCHS", ARCHS)])?;
    }
    println!("in {packed}");
    Ok(())
}

/// Packs, installs and runs the program that the tests have built: another build of it would take minutes.
pub fn check_release(workspace: &Workspace, features: &[&str]) -> Result<Vec<String>> {
    let mut build = workspace.cargo(&["test", "--release", "--locked", "--workspace", "--no-run", "--quiet"]);
    check(build.args(features))?;
    let binary = workspace.binary(TRAINER).to_string_lossy().into_owned();
    last_line(workspace.tool("dist", &["check", &binary])?)
}
