//! Steps that run beside others: each is this program again, with one step.

use super::step::{CLOSING, Outcome};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tools_support::workspace::Workspace;

/// A step that runs; what it prints goes to a file until it is asked for.
pub struct Aside {
    child: Child,
    log: PathBuf,
}

impl Aside {
    pub fn start(workspace: &Workspace, name: &str) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's file")?;
        fs::create_dir_all(&workspace.target)?;
        let log = workspace.target.join(format!("step-{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&program);
        command.args(["test", "--only", name]).current_dir(&workspace.root).stdin(Stdio::null());
        command.stderr(file.try_clone()?).stdout(file);
        let child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self { child, log })
    }

    /// Waits for its end, and prints what it has printed.
    pub fn finish(mut self) -> Result<Outcome> {
        let status = self.child.wait().context("cannot wait for the step")?;
        let text = fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        print!("{text}");
        outcome(&text, status.success())
    }
}

/// The outcome that a run of one step prints at its end.
fn outcome(text: &str, has_passed: bool) -> Result<Outcome> {
    if !has_passed {
        let error = text.lines().rev().find(|line| line.contains(" failed: ")).unwrap_or("it failed without a word");
        bail!("{error}");
    }
    ensure!(text.contains("steps: 1 passed") || text.contains("1 skipped"), "it ended without a summary");
    if let Some(why) = text.lines().find_map(|line| line.strip_prefix("skipped: ")) {
        return Ok(Outcome::Skipped(why.to_owned()));
    }
    let summary = text.lines().skip_while(|line| !line.starts_with("passed ")).skip(1);
    Ok(Outcome::Passed(summary.filter_map(|line| line.strip_prefix(CLOSING)).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_of_one_step_says_is_its_outcome() {
        let passed = "== features (1/1): all\nqlora-train with []\n\npassed      80.1 s  features\n                    \
                      24 sets compile\nsteps: 1 passed, 0 skipped, 0 failed in 80.1 s\n";
        assert!(matches!(outcome(passed, true).unwrap(), Outcome::Passed(lines) if lines == ["24 sets compile"]));
        let skipped =
            "skipped: no tool\n\nskipped      0.1 s  msrv: no tool\nsteps: 0 passed, 1 skipped, 0 failed in 0.1 s\n";
        assert!(matches!(outcome(skipped, true).unwrap(), Outcome::Skipped(why) if why == "no tool"));
        let error = outcome("warning: x\nstep features failed: clippy\n\nFAILED  1 s  features\n", false).unwrap_err();
        assert_eq!(error.to_string(), "step features failed: clippy");
        assert!(outcome("killed", false).is_err() && outcome("", true).is_err());
    }
}
