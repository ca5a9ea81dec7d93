//! The program that runs tests.

use std::process::{Command, Stdio};
use tools_support::workspace::Workspace;

/// The command that runs tests: nextest's, or cargo's own.
pub fn runner(workspace: &Workspace, nextest: bool) -> Command {
    if nextest {
        return workspace.cargo(&["nextest", "run"]);
    }
    println!("cargo-nextest is not installed; cargo's own runner takes its place");
    workspace.cargo(&["test"])
}

pub fn has_nextest(workspace: &Workspace) -> bool {
    let mut command = workspace.cargo(&["nextest", "--version"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
