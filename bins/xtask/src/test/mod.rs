//! `cargo xtask test`: everything that has to pass, as named steps in order. It stops at the first that fails.

pub mod command;
mod kernels;
mod steps;
mod tree;

use crate::workspace::Workspace;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// One thing that has to pass.
struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Workspace) -> Result<Outcome>,
}

pub enum Outcome {
    /// With the lines in which the step's tool sums itself up, repeated at the end of the run.
    Passed(Vec<String>),
    /// What was not checked on this machine, and why.
    Skipped(String),
}

pub fn list() {
    for step in steps::STEPS {
        println!("{:<16} {}", step.name, step.about);
    }
}

pub fn run(workspace: &Workspace, only: &[String]) -> Result<()> {
    let selected = select(steps::STEPS, only)?;
    let (summary, failure) = run_steps(workspace, &selected);
    println!("\n{}", summary.join("\n"));
    match failure {
        None => Ok(()),
        Some(message) => bail!(message),
    }
}

fn select<'a>(steps: &'a [Step], only: &[String]) -> Result<Vec<&'a Step>> {
    for name in only {
        if !steps.iter().any(|step| step.name == name) {
            let known: Vec<_> = steps.iter().map(|step| step.name).collect();
            bail!("no step is named {name:?} (the steps are {})", known.join(", "));
        }
    }
    Ok(steps.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)).collect())
}

/// The closing summary, and what failed.
fn run_steps(workspace: &Workspace, steps: &[&Step]) -> (Vec<String>, Option<String>) {
    let started = Instant::now();
    let mut summary = Vec::new();
    let (mut passed, mut skipped) = (0, 0);
    for (index, step) in steps.iter().enumerate() {
        println!("\n== {} ({}/{}): {}", step.name, index + 1, steps.len(), step.about);
        let step_started = Instant::now();
        let outcome = (step.run)(workspace);
        let elapsed = seconds(step_started.elapsed());
        match outcome {
            Ok(Outcome::Passed(closing)) => {
                passed += 1;
                summary.push(format!("passed   {elapsed}  {}", step.name));
                summary.extend(closing.iter().map(|line| format!("                    {}", line.trim())));
            }
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                println!("skipped: {why}");
                summary.push(format!("skipped  {elapsed}  {}: {why}", step.name));
            }
            Err(error) => {
                summary.push(format!("FAILED   {elapsed}  {}", step.name));
                let not_run = steps.len() - index - 1;
                summary.push(counts(passed, skipped, 1, not_run, started.elapsed()));
                let name = step.name;
                let message = format!("step {name} failed: {error:#}\n  alone: cargo xtask test --only {name}");
                return (summary, Some(message));
            }
        }
    }
    summary.push(counts(passed, skipped, 0, 0, started.elapsed()));
    (summary, None)
}

fn counts(passed: usize, skipped: usize, failed: usize, not_run: usize, elapsed: Duration) -> String {
    format!(
        "steps: {passed} passed, {skipped} skipped, {failed} failed, {not_run} not run in {}",
        seconds(elapsed).trim_start()
    )
}

fn seconds(elapsed: Duration) -> String {
    format!("{:>7.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: [Step; 4] = [
        Step { name: "good", about: "", run: |_| Ok(Outcome::Passed(vec!["3 tests run: 3 passed".to_owned()])) },
        Step { name: "absent", about: "", run: |_| Ok(Outcome::Skipped("no tool".to_owned())) },
        Step { name: "bad", about: "", run: |_| bail!("it broke") },
        Step { name: "later", about: "", run: |_| panic!("ran after a failure") },
    ];

    fn workspace() -> Workspace {
        Workspace { root: "unused".into(), target: "unused".into() }
    }

    #[test]
    fn the_first_failure_ends_the_run_and_says_how_to_run_it_alone() {
        let (summary, failure) = run_steps(&workspace(), &SAMPLE.iter().collect::<Vec<_>>());
        let failure = failure.unwrap();
        assert!(failure.contains("step bad failed: it broke"), "{failure}");
        assert!(failure.contains("cargo xtask test --only bad"), "{failure}");
        let text = summary.join("\n");
        assert!(text.contains("3 tests run: 3 passed") && text.contains("absent: no tool"), "{text}");
        assert!(text.contains("1 passed, 1 skipped, 1 failed, 1 not run"), "{text}");
    }

    #[test]
    fn steps_are_selected_by_name_and_unknown_names_are_refused() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| name.to_string()).collect();
            select(&SAMPLE, &only).map(|steps| steps.iter().map(|step| step.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["good", "absent", "bad", "later"]);
        assert_eq!(names(&["later", "good"]).unwrap(), ["good", "later"]);
        let error = names(&["god"]).unwrap_err().to_string();
        assert!(error.contains("\"god\"") && error.contains("good, absent, bad, later"), "{error}");
    }

    #[test]
    fn no_two_steps_share_a_name() {
        let mut names: Vec<_> = steps::STEPS.iter().map(|step| step.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
