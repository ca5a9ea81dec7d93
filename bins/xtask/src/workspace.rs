//! Where the repository and its build directory are, and how cargo is called there.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's target directory; what the tasks fetch and make lies in it too.
    pub target: PathBuf,
}

impl Workspace {
    pub fn locate() -> Result<Self> {
        let output = cargo_command()
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .context("cannot run cargo")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`cargo metadata` failed: {}", stderr.trim());
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` output")?;
        let path = |key: &str| -> Result<PathBuf> {
            Ok(metadata[key].as_str().with_context(|| format!("`cargo metadata` gives no {key}"))?.into())
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    pub fn models(&self) -> PathBuf {
        self.target.join("models")
    }

    /// A cargo command that runs in the repository's root.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo_command();
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// A tool of `tools/`, built if need be.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.cargo(&["run", "--quiet", "--release", "--locked", "--package", name, "--"]);
        command.args(arguments);
        command
    }

    /// The built binary of this name.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }
}

/// The cargo that runs this task, so that `cargo +toolchain xtask` stays on its toolchain.
fn cargo_command() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
