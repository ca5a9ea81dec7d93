//! `cargo xtask bindings`: the Rust declarations of the kernels' C interface, by the tool of that name, which needs
//! libclang.

use anyhow::Result;
use std::process::Command;
use tools_support::command::{finished, last_line};
use tools_support::cuda;
use tools_support::workspace::Workspace;

/// `task`: write or check. Returns the tool's closing line.
pub fn run(workspace: &Workspace, task: &str) -> Result<Vec<String>> {
    let libclang = cuda::libclang(workspace)?;
    let include = finished(Command::new("cc").arg("-print-file-name=include").output(), "cc -print-file-name=include")?;
    let mut command = workspace.tool("bindings", &[task, include.trim()])?;
    if let Some(dir) = libclang {
        command.env("LIBCLANG_PATH", dir);
    }
    last_line(command)
}
