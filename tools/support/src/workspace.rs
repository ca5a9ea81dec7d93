//! The repository, its build directory, and how cargo is called there.

use crate::command::check;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// Cargo's target directory; what the tasks fetch and make lies in it too.
    pub target: PathBuf,
    /// Variables of every command that is run here, and of those that it runs
    pub variables: &'static [(&'static str, &'static str)],
}

/// A build that only tests use: without optimization between codegen units, and with little of it in the dependencies
/// for which Cargo.toml asks no more. It takes a third less processor time than a release.
const OF_TESTS: [(&str, &str); 2] = [("CARGO_PROFILE_RELEASE_LTO", "off"), ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")];

impl Workspace {
    pub fn locate() -> Result<Self> {
        let mut command = cargo_metadata::MetadataCommand::new();
        command.no_deps().current_dir(env!("CARGO_MANIFEST_DIR"));
        let metadata = command.exec().context("`cargo metadata` failed")?;
        Ok(Self { root: metadata.workspace_root.into(), target: metadata.target_directory.into(), variables: &[] })
    }

    /// The workspace whose commands build for tests.
    pub fn for_tests(&self) -> Self {
        Self { variables: &OF_TESTS, ..self.clone() }
    }

    pub fn models(&self) -> PathBuf {
        self.target.join("models")
    }

    /// A cargo command that runs in the repository's root.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo_command();
        command.args(arguments).current_dir(&self.root).envs(self.variables.iter().copied());
        if std::env::var_os("QLORA_OBJECT_CACHE").is_none() {
            command.env("QLORA_OBJECT_CACHE", self.objects());
        }
        command
    }

    /// Compiled kernels by hash: builds with other features, and those for C, do not compile them again.
    pub fn objects(&self) -> PathBuf {
        self.target.join("objects")
    }

    /// A program of the workspace, built if need be: with the features that its dependencies have in the whole
    /// workspace, so that they are built once for all.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Result<Command> {
        check(self.cargo(&["build", "--quiet", "--release", "--locked", "--workspace", "--bin", name]))?;
        let mut command = Command::new(self.binary(name));
        command.args(arguments).current_dir(&self.root).envs(self.variables.iter().copied());
        Ok(command)
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
