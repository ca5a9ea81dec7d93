//! Executables and files that cargo made.

use crate::command::finished;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The outputs of one call of cargo.
#[derive(Debug, Default)]
pub struct Built {
    pub executables: Vec<Executable>,
    /// The output folder of the kernels' build script.
    out_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Executable {
    /// Cargo's target: a test, a bench or a binary.
    pub target: String,
    pub path: PathBuf,
}

impl Built {
    pub fn executable(&self, target: &str) -> Result<&PathBuf> {
        let found = self.executables.iter().find(|executable| executable.target == target);
        Ok(&found.with_context(|| format!("cargo built no executable of {target}"))?.path)
    }

    pub fn kernels_out_dir(&self) -> Result<&PathBuf> {
        self.out_dir.as_ref().context("cargo ran no build script of the kernels")
    }
}

/// Runs cargo with these arguments and `--release --locked`, and these variables.
pub fn build(workspace: &Workspace, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Built> {
    let mut command = workspace.cargo(arguments);
    command.args(["--release", "--locked", "--message-format=json-render-diagnostics"]);
    let output =
        command.envs(variables.iter().copied()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "`cargo {}`: {}", arguments.join(" "), output.status);
    read(&output.stdout)
}

/// Refuses a trainer that is not `built`, the second line of its `--version`: the program of the tests has failpoints,
/// and may have an emulation of the kernels.
pub fn ensure_released(trainer: &Path, built: &str) -> Result<()> {
    let shown = format!("{} --version", trainer.display());
    is_built(&finished(Command::new(trainer).arg("--version").output(), &shown)?, built)
        .with_context(|| format!("{} is not for others", trainer.display()))
}

fn is_built(version: &str, built: &str) -> Result<()> {
    let found = version.lines().nth(1).unwrap_or_default();
    ensure!(found == built, "its `--version` says {found:?}, expected {built:?}");
    Ok(())
}

fn read(messages: &[u8]) -> Result<Built> {
    let mut built = Built::default();
    for message in Message::parse_stream(messages) {
        match message.context("cargo's messages cannot be read")? {
            Message::CompilerArtifact(artifact) => {
                let target = artifact.target.name;
                let path = artifact.executable.map(PathBuf::from);
                built.executables.extend(path.map(|path| Executable { target, path }));
            }
            Message::BuildScriptExecuted(script) => {
                let dir = PathBuf::from(script.out_dir);
                let package = dir.parent().and_then(|dir| dir.file_name()).unwrap_or_default().to_string_lossy();
                if package.starts_with("qlora-kernels-") {
                    built.out_dir = Some(dir);
                }
            }
            _ => {}
        }
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_the_tests_is_not_for_others() {
        let cpu = "built for the CPU";
        assert!(is_built("qlora-train 0.1.0 (1a2b3c)\nbuilt for the CPU\n", cpu).is_ok());
        for built in ["built for the CPU, with failpoints for tests", "built with CUDA", ""] {
            let error = is_built(&format!("qlora-train 0.1.0\n{built}"), cpu).unwrap_err().to_string();
            assert!(error.contains(&format!("says {built:?}, expected {cpu:?}")), "{error}");
        }
    }

    #[test]
    fn the_kernels_build_directory_is_read_from_cargos_messages() {
        let script = |dir: &str| {
            format!(
                r#"{{"reason":"build-script-executed","package_id":"p","linked_libs":[],"linked_paths":[],"cfgs":[],"env":[],"out_dir":"/t/build/{dir}/out"}}"#
            )
        };
        let messages = [script("qlora-kernels-1a"), "not json".into(), script("cudarc-2b")].join("\n");
        assert_eq!(
            read(messages.as_bytes()).unwrap().kernels_out_dir().unwrap(),
            Path::new("/t/build/qlora-kernels-1a/out")
        );
        assert!(read(b"").unwrap().kernels_out_dir().is_err());
    }

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let artifact = |kind: &str, name: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"p","manifest_path":"/p/Cargo.toml","target":{{"kind":["{kind}"],"crate_types":["bin"],"name":"{name}","src_path":"/p/a.rs","edition":"2024","doc":true,"doctest":true,"test":true}},"profile":{{"opt_level":"3","debuginfo":0,"debug_assertions":false,"overflow_checks":false,"test":true}},"features":[],"filenames":[],"executable":{executable},"fresh":true}}"#
            )
        };
        let messages = [artifact("test", "cuda", "\"/t/cuda-1\""), artifact("lib", "qlora_kernels", "null")].join("\n");
        let built = read(messages.as_bytes()).unwrap();
        assert_eq!(built.executables, [Executable { target: "cuda".into(), path: "/t/cuda-1".into() }]);
        assert_eq!(built.executable("cuda").unwrap(), Path::new("/t/cuda-1"));
        assert!(built.executable("other").unwrap_err().to_string().contains("other"));
    }
}
