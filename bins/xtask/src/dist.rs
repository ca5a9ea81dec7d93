//! `cargo xtask dist`: the trainer built for others and packed, by the tool of that name.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;
use tools_support::artifacts;
use tools_support::command::{check, finished, last_line};
use tools_support::cuda;
use tools_support::workspace::Workspace;

/// Machine code for every GPU from the A100 on, each of its own; build.rs adds the PTX of the first for newer ones.
const ARCHS: &str = "80,86,89,90,100,120";
/// The first nvcc that knows all of them
const OLDEST_NVCC: (u32, u32) = (12, 8);
const TRAINER: &str = "qlora-train";

/// Builds and packs into `<target>/dist`.
pub fn run(workspace: &Workspace, with_cuda: bool) -> Result<()> {
    let folder = workspace.target.join("dist");
    // An earlier folder is removed first, so that nothing of it stays.
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let packed = folder.to_string_lossy();
    // A missing nvcc is reported before minutes of building.
    let nvcc = if with_cuda { Some(cuda::toolkit(workspace)?.nvcc) } else { None };
    nvcc.as_deref().map(check_version).transpose()?;
    let build = |features: &[&str], variables: &[(&str, &str)]| -> Result<String> {
        let arguments = [&["build", "--package", TRAINER], features].concat();
        let built = artifacts::build(workspace, &arguments, variables)?;
        Ok(built.executable(TRAINER)?.to_string_lossy().into_owned())
    };
    check(workspace.tool("dist", &["cpu", &build(&[], &[])?, &packed])?)?;
    if let Some(nvcc) = nvcc {
        let nvcc: &str = &nvcc.to_string_lossy();
        let binary = build(&["--features", "cuda"], &[("QLORA_CUDA_ARCHS", ARCHS), ("NVCC", nvcc)])?;
        check(workspace.tool("dist", &["cuda", &binary, &packed, nvcc])?)?;
    }
    println!("in {packed}");
    Ok(())
}

/// Refuses an nvcc that does not know all architectures.
fn check_version(nvcc: &Path) -> Result<()> {
    let shown = nvcc.display().to_string();
    let text = finished(Command::new(nvcc).arg("--version").output(), &format!("{shown} --version"))?;
    let version = release_of(&text).with_context(|| format!("{shown} --version says no release: {text}"))?;
    ensure!(
        version >= OLDEST_NVCC,
        "{shown} is of CUDA {}.{}, which does not know all of sm_{}; expected {}.{} or newer: take it out of NVCC, \
         CUDA_HOME, CUDA_PATH and PATH, and `cargo xtask setup-cuda` fetches one",
        version.0,
        version.1,
        ARCHS.replace(',', ", sm_"),
        OLDEST_NVCC.0,
        OLDEST_NVCC.1
    );
    Ok(())
}

/// "Cuda compilation tools, release 13.0, V13.0.88"
fn release_of(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Packs, installs and runs the program as the tests have built it: another build would take a minute.
pub fn check_release(workspace: &Workspace, features: &[&str]) -> Result<Vec<String>> {
    let mut build = workspace.cargo(&["test", "--release", "--locked", "--workspace", "--no-run", "--quiet"]);
    check(build.args(features))?;
    let binary = workspace.binary(TRAINER).to_string_lossy().into_owned();
    last_line(workspace.tool("dist", &["check", &binary])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_nvcc_is_read_from_its_version() {
        let text =
            "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13";
        assert_eq!(release_of(text), Some((13, 0)));
        assert_eq!(release_of("release 12.10, V12.10.1"), Some((12, 10)));
        assert_eq!(release_of("clang version 20"), None);
    }
}
