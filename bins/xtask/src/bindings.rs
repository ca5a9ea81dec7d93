//! `cargo xtask bindings`: the Rust declarations of the kernels' C interface, generated from its header.

use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tools_support::command::finished;
use tools_support::cuda;
use tools_support::workspace::Workspace;

pub const HEADER: &str = "cuda/include/qlora_kernels.h";
pub const BINDINGS: &str = "src/sys.rs";

/// Writes the declarations.
pub fn run(workspace: &Workspace) -> Result<()> {
    let text = generate(workspace)?;
    let path = workspace.root.join(BINDINGS);
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        println!("{BINDINGS} is up to date");
        return Ok(());
    }
    fs::write(&path, text).with_context(|| format!("cannot write {BINDINGS}"))?;
    println!("{BINDINGS} written");
    Ok(())
}

/// Fails if the committed declarations are not those of the header.
pub fn check(workspace: &Workspace) -> Result<()> {
    let committed =
        fs::read_to_string(workspace.root.join(BINDINGS)).with_context(|| format!("cannot read {BINDINGS}"))?;
    let generated = generate(workspace)?;
    if let Some(difference) = first_difference(&committed, &generated) {
        anyhow::bail!("{BINDINGS} is not what {HEADER} says (`cargo xtask bindings` writes it anew): {difference}");
    }
    println!("{BINDINGS}: {} lines, as generated from {HEADER}", generated.lines().count());
    Ok(())
}

fn first_difference(committed: &str, generated: &str) -> Option<String> {
    if committed == generated {
        return None;
    }
    let end = "the end of the file";
    let (mut old, mut new) = (committed.lines(), generated.lines());
    for number in 1.. {
        let (old, new) = (old.next(), new.next());
        if old.is_none() && new.is_none() {
            break;
        }
        if old != new {
            return Some(format!("line {number} is `{}`, expected `{}`", old.unwrap_or(end), new.unwrap_or(end)));
        }
    }
    Some("line ends differ".to_owned())
}

fn generate(workspace: &Workspace) -> Result<String> {
    let libclang = cuda::libclang(workspace)?;
    let include = finished(Command::new("cc").arg("-print-file-name=include").output(), "cc -print-file-name=include")?;
    let mut command = workspace.tool("bindings", &[HEADER, include.trim()])?;
    command.stderr(Stdio::inherit());
    if let Some(dir) = libclang {
        command.env("LIBCLANG_PATH", dir);
    }
    let text = finished(command.output(), "bindings")?;
    format(&text, &workspace.root)
}

fn format(text: &str, root: &Path) -> Result<String> {
    let rustfmt = std::env::var_os("RUSTFMT").unwrap_or_else(|| "rustfmt".into());
    let mut child = Command::new(rustfmt)
        .args(["--edition", "2024", "--config-path"])
        .arg(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot run rustfmt")?;
    let mut input = child.stdin.take().context("no standard input")?;
    std::thread::scope(|scope| {
        // On a thread: rustfmt may fill its output before it has read all of its input.
        let writer = scope.spawn(move || input.write_all(text.as_bytes()));
        let formatted = finished(child.wait_with_output(), "rustfmt");
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer to rustfmt panicked"))?
            .context("cannot write to rustfmt")?;
        formatted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown_with_its_line() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        let found = first_difference("a\nb\n", "a\nc\n").unwrap();
        assert_eq!(found, "line 2 is `b`, expected `c`");
        assert_eq!(first_difference("a\n", "a\nb\n").unwrap(), "line 2 is `the end of the file`, expected `b`");
        assert!(first_difference("a", "a\n").is_some());
    }
}
