//! The program that times single instructions on a GPU, compiled for every architecture. It belongs to the bundle for a
//! GPU machine, not to the kernels' library.

use crate::command::check;
use crate::compile::{self, Compiler};
use crate::cuda::{self, Toolkit};
use crate::workspace::Workspace;
use anyhow::{Context, Error, Result};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "benches/calibration/calibrate.cu";

/// The program's object, with machine code for every architecture of [`cuda::ARCHS`].
pub fn compile(workspace: &Workspace, toolkit: &Toolkit) -> Result<PathBuf> {
    let mut compiler = Compiler::cuda(&toolkit.nvcc, &cuda::archs_variable()).map_err(Error::msg)?;
    compiler.cache = Some(workspace.objects());
    let (sources, dir) = ([workspace.root.join(SOURCE)], workspace.target.join("calibration"));
    let (objects, warnings) = compiler.compile(&workspace.root, &sources, &dir, 1).map_err(Error::msg)?;
    warnings.iter().for_each(|warning| eprintln!("{warning}"));
    objects.into_iter().next().with_context(|| format!("{SOURCE} has no object"))
}

/// The executable, which needs a driver and nothing else of CUDA; libstdc++ is what the bundle's other programs need.
pub fn link(toolkit: &Toolkit, object: &Path, to: &Path) -> Result<()> {
    let runtime = compile::cudart_dir(&toolkit.nvcc, env::consts::ARCH).map_err(Error::msg)?;
    let mut command = Command::new(&toolkit.nvcc);
    command.arg("-o").arg(to).arg(object).arg("-L").arg(runtime);
    check(command)
}
