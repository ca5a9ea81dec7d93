//! The kernels as a library for engines that are not built by cargo: installed, and linked with the examples.

#![deny(unsafe_code)]

mod engines;
mod install;

use anyhow::{Result, bail};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use tools_support::command::finish;
use tools_support::workspace::Workspace;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    finish(Workspace::locate().and_then(|workspace| run(&workspace, &arguments)))
}

/// The closing line.
fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<String> {
    let words: Vec<Option<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
    match words[..] {
        [Some("install"), _] => install::install(workspace, Path::new(&arguments[1]), false),
        [Some("install"), _, Some("--emulation")] => install::install(workspace, Path::new(&arguments[1]), true),
        [Some("check")] => engines::check_examples(workspace),
        _ => bail!("usage: c-library install PREFIX [--emulation], or c-library check"),
    }
}
