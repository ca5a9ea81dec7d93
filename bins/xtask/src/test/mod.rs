//! `cargo xtask test`: everything that has to pass, as named steps, cheap ones first. Every step runs, also after one
//! has failed.

mod aside;
mod kernels;
mod packages;
mod runner;
mod step;
mod steps;

use anyhow::{Result, bail};
use aside::Aside;
use std::time::{Duration, Instant};
use step::{CLOSING, Outcome, Step};
use tools_support::workspace::Workspace;

pub fn list() {
    for step in steps::STEPS {
        let is_quick = if steps::QUICK.iter().any(|quick| quick.name == step.name) { "check" } else { "" };
        println!("{:<16} {is_quick:<6} {}", step.name, step.about);
    }
}

/// Runs all steps, or those of `only`.
pub fn run(workspace: &Workspace, only: &[String]) -> Result<()> {
    finish(&workspace.for_tests(), &select(steps::STEPS, only)?)
}

/// `cargo xtask check`: the steps that take seconds where everything is built.
pub fn check(workspace: &Workspace) -> Result<()> {
    finish(workspace, &steps::QUICK.iter().collect::<Vec<_>>())
}

fn finish(workspace: &Workspace, steps: &[&Step]) -> Result<()> {
    let (summary, failures) = run_steps(workspace, steps);
    println!("\n{}", summary.join("\n"));
    if !failures.is_empty() {
        bail!("{} of {} steps failed:\n{}", failures.len(), steps.len(), failures.join("\n"));
    }
    Ok(())
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
fn run_steps(workspace: &Workspace, steps: &[&Step]) -> (Vec<String>, Vec<String>) {
    let started = Instant::now();
    let mut report = Report::default();
    let mut aside = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        println!("\n== {} ({}/{}): {}", step.name, index + 1, steps.len(), step.about);
        // The last one has nothing to run beside.
        if steps::ASIDE.contains(&step.name) && index + 1 < steps.len() {
            match Aside::start(workspace, step.name) {
                Ok(started) => {
                    println!("runs beside the following steps; what it prints follows them");
                    aside.push((step, Instant::now(), started));
                }
                Err(error) => report.add(step, Duration::ZERO, Err(error)),
            }
            continue;
        }
        let step_started = Instant::now();
        let outcome = (step.run)(workspace);
        report.add(step, step_started.elapsed(), outcome);
    }
    for (step, step_started, running) in aside {
        println!("\n== {}, which ran beside the others", step.name);
        let outcome = running.finish();
        report.add(step, step_started.elapsed(), outcome);
    }
    let (failed, elapsed) = (report.failures.len(), seconds(started.elapsed()));
    let passed = steps.len() - failed - report.skipped;
    report.summary.push(format!(
        "steps: {passed} passed, {} skipped, {failed} failed in {}",
        report.skipped,
        elapsed.trim_start()
    ));
    (report.summary, report.failures)
}

#[derive(Default)]
struct Report {
    summary: Vec<String>,
    failures: Vec<String>,
    skipped: usize,
}

impl Report {
    fn add(&mut self, step: &Step, elapsed: Duration, outcome: Result<Outcome>) {
        let (name, elapsed) = (step.name, seconds(elapsed));
        match outcome {
            Ok(Outcome::Passed(closing)) => {
                self.summary.push(format!("passed   {elapsed}  {name}"));
                self.summary.extend(closing.iter().map(|line| format!("{CLOSING}{}", line.trim())));
            }
            Ok(Outcome::Skipped(why)) => {
                self.skipped += 1;
                println!("skipped: {why}");
                self.summary.push(format!("skipped  {elapsed}  {name}: {why}"));
            }
            Err(error) => {
                eprintln!("step {name} failed: {error:#}");
                self.summary.push(format!("FAILED   {elapsed}  {name}"));
                self.failures.push(format!("{name}: {error:#}\n  alone: cargo xtask test --only {name}"));
            }
        }
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("{:>7.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: [Step; 5] = [
        Step { name: "good", about: "", run: |_| Ok(Outcome::Passed(vec!["3 tests run: 3 passed".to_owned()])) },
        Step { name: "absent", about: "", run: |_| Ok(Outcome::Skipped("no tool".to_owned())) },
        Step { name: "bad", about: "", run: |_| bail!("it broke") },
        Step { name: "later", about: "", run: |_| Ok(Outcome::Passed(vec!["ran after a failure".to_owned()])) },
        Step { name: "worse", about: "", run: |_| bail!("this too") },
    ];

    fn workspace() -> Workspace {
        Workspace { root: "unused".into(), target: "unused".into(), variables: &[] }
    }

    #[test]
    fn every_step_runs_and_every_failure_is_reported() {
        let (summary, failures) = run_steps(&workspace(), &SAMPLE.iter().collect::<Vec<_>>());
        assert_eq!(failures.len(), 2);
        assert!(failures[0].starts_with("bad: it broke"), "{failures:?}");
        assert!(failures[0].contains("cargo xtask test --only bad"), "{failures:?}");
        assert!(failures[1].starts_with("worse: this too"), "{failures:?}");
        let text = summary.join("\n");
        for expected in ["3 tests run: 3 passed", "absent: no tool", "ran after a failure"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(text.contains("2 passed, 1 skipped, 2 failed"), "{text}");
        assert!(finish(&workspace(), &[&SAMPLE[0], &SAMPLE[2]]).is_err());
        assert!(finish(&workspace(), &[&SAMPLE[0], &SAMPLE[1]]).is_ok());
    }

    #[test]
    fn steps_are_selected_by_name_and_unknown_names_are_refused() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| name.to_string()).collect();
            select(&SAMPLE, &only).map(|steps| steps.iter().map(|step| step.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["good", "absent", "bad", "later", "worse"]);
        assert_eq!(names(&["later", "good"]).unwrap(), ["good", "later"]);
        let error = names(&["god"]).unwrap_err().to_string();
        assert!(error.contains("\"god\"") && error.contains("good, absent, bad, later, worse"), "{error}");
    }

    #[test]
    fn no_two_steps_share_a_name() {
        for steps in [steps::STEPS, steps::QUICK] {
            let mut names: Vec<_> = steps.iter().map(|step| step.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), steps.len());
        }
    }
}
