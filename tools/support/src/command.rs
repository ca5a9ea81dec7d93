//! Programs run with their output visible, keeping the lines in which it sums itself up.

use anyhow::{Context, Result, ensure};
use std::borrow::BorrowMut;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitCode, Output, Stdio};

/// Runs a command; its failure is an error that shows the command.
pub fn check(mut command: impl BorrowMut<Command>) -> Result<()> {
    let command = command.borrow_mut();
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    ensure!(status.success(), "`{}`: {status}", shown(command));
    Ok(())
}

/// The standard output of a command that has succeeded; its failure is an error with its standard error.
pub fn finished(output: std::io::Result<Output>, shown: &str) -> Result<String> {
    let output = output.with_context(|| format!("cannot run {shown}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{shown}`: {} {}", output.status, stderr.trim());
    String::from_utf8(output.stdout).with_context(|| format!("the output of {shown} is not UTF-8"))
}

/// Runs a command as [`check`] does, and returns the lines of both outputs for which `is_closing` holds.
pub fn check_and_keep(command: &mut Command, is_closing: fn(&str) -> bool) -> Result<Vec<String>> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", shown(command)))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let (out, err) = std::thread::scope(|scope| {
        let err = scope.spawn(move || pass_on(stderr, std::io::stderr(), is_closing));
        (pass_on(stdout, std::io::stdout(), is_closing), err.join())
    });
    let status = child.wait()?;
    let mut closing = out?;
    closing.extend(err.map_err(|_| anyhow::anyhow!("the reader of standard error panicked"))??);
    ensure!(status.success(), "`{}`: {status}", shown(command));
    Ok(closing)
}

/// Runs a tool of this repository as [`check`] does. Its last line on standard output sums it up.
pub fn last_line(mut command: Command) -> Result<Vec<String>> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {}", shown(&command)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    ensure!(output.status.success(), "`{}`: {}", shown(&command), output.status);
    Ok(text.lines().last().map(str::to_owned).into_iter().collect())
}

fn pass_on(from: impl Read, mut to: impl Write, is_closing: fn(&str) -> bool) -> Result<Vec<String>> {
    let mut reader = BufReader::new(from);
    let mut closing = Vec::new();
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        if is_closing(text.trim()) {
            closing.push(text.trim().to_owned());
        }
        line.clear();
    }
    to.flush()?;
    Ok(closing)
}

/// The exit status of a tool from what it did: its closing line goes to standard output, an error to standard error.
pub fn finish(outcome: Result<String>) -> ExitCode {
    match outcome {
        Ok(closing) => {
            println!("{closing}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn shown(command: &Command) -> String {
    let name = std::path::Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test program itself stands in for a tool: it exists wherever the tests run.
    fn tool(filter: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", filter]);
        command
    }

    #[test]
    fn closing_lines_are_kept_and_failures_name_the_command() {
        let kept = check_and_keep(&mut tool("no::such::test"), |line| line.starts_with("test result: ")).unwrap();
        assert_eq!(kept.len(), 1);
        assert!(kept[0].contains("0 passed"), "{kept:?}");
        let error = check_and_keep(&mut tool("--no-such-flag"), |_| false).unwrap_err().to_string();
        assert!(error.contains("--no-such-flag"), "{error}");
        assert!(check(tool("--no-such-flag")).is_err());
        assert!(check(Command::new("no-such-program-here")).is_err());
    }
}
