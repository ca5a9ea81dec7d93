//! `cargo xtask demo`: fine-tunes a small real Llama on the CPU and shows what that changed.

mod habit;
mod report;

use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use habit::has_habit;
use report::{Summary, Training};
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use tools_support::workspace::Workspace;

/// Settings of the run; everything else is the trainer's default. 170 rows in packs of 512 tokens are 18 to 20 steps an
/// epoch, enough for the habit at this rate.
const SETTINGS: [(&str, &str); 5] = [
    ("lora-r", "16"),
    ("lora-target-modules", "all-linear"),
    ("learning-rate", "5e-4"),
    ("num-train-epochs", "3"),
    ("max-length", "512"),
];

/// The longest answer in the data has 22 tokens; one that is cut off here does not have the habit.
const ANSWER_TOKENS: &str = "40";

/// Most answers with the habit before the training of a demo that works, and the least after it.
const AT_MOST_BEFORE: usize = 1;
const AT_LEAST_AFTER: usize = 7;

#[derive(Clone, Copy, Debug, Deserialize)]
struct Evaluation {
    loss: f64,
    perplexity: f64,
}

#[derive(Deserialize)]
struct Completions {
    completions: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    text: String,
}

pub fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    let model = setup::run(workspace, &[])?;
    step("building qlora-train");
    let status = workspace.cargo(&["build", "--release", "--package", "qlora-train"]).status().context("cargo")?;
    ensure!(status.success(), "qlora-train does not build: see above");
    let trainer = Trainer { binary: workspace.binary("qlora-train"), model };

    let out = workspace.target.join("demo");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let data = |name: &str| workspace.root.join("examples/data").join(name);
    let (train_data, validation_data) = (data("habit.train.jsonl"), data("habit.validation.jsonl"));
    let questions_path = data("habit.questions.txt");
    let questions =
        fs::read_to_string(&questions_path).with_context(|| format!("cannot read {}", questions_path.display()))?;
    let questions: Vec<String> = questions.lines().map(str::to_owned).collect();

    step("the model as it comes: validation loss and answers");
    let loss_before = trainer.evaluate(None, &validation_data)?;
    let answers_before = trainer.answers(None, &questions)?;

    step("fine-tuning");
    let training = trainer.train(&train_data, &validation_data, &out.join("adapter"))?;

    step("the fine-tuned model: validation loss and answers");
    let loss_after = trainer.evaluate(Some(&training.adapter), &validation_data)?;
    let answers_after = trainer.answers(Some(&training.adapter), &questions)?;

    let summary = Summary {
        questions,
        habit_before: answers_before.iter().filter(|answer| has_habit(answer)).count(),
        habit_after: answers_after.iter().filter(|answer| has_habit(answer)).count(),
        answers_before,
        answers_after,
        loss_before: loss_before.loss,
        loss_after: loss_after.loss,
        perplexity_before: loss_before.perplexity,
        perplexity_after: loss_after.perplexity,
        training,
        seconds: started.elapsed().as_secs_f64(),
        machine: report::machine(),
    };
    let report = report::write(&summary, &out)?;
    println!("{}", report::for_terminal(&summary, &report));
    judge(&summary)
}

/// The demo fails when the training did not teach the habit.
fn judge(summary: &Summary) -> Result<()> {
    let total = summary.questions.len();
    if summary.habit_before > AT_MOST_BEFORE || summary.habit_after < AT_LEAST_AFTER {
        bail!(
            "{} of {total} answers had the habit before (expected at most {AT_MOST_BEFORE}), {} after (expected at least \
             {AT_LEAST_AFTER})",
            summary.habit_before,
            summary.habit_after
        );
    }
    if summary.loss_after.is_nan() || summary.loss_after >= summary.loss_before {
        bail!("the validation loss did not fall: {:.4} before, {:.4} after", summary.loss_before, summary.loss_after);
    }
    Ok(())
}

fn step(what: &str) {
    eprintln!("== {what}");
}

struct Trainer {
    binary: PathBuf,
    model: PathBuf,
}

impl Trainer {
    fn evaluate(&self, adapter: Option<&Path>, data: &Path) -> Result<Evaluation> {
        self.call("eval", adapter, &["--data".as_ref(), data.as_ref()])
    }

    /// Greedy answers, in the order of the questions.
    fn answers(&self, adapter: Option<&Path>, questions: &[String]) -> Result<Vec<String>> {
        let mut arguments: Vec<&OsStr> = vec!["--max-new-tokens".as_ref(), ANSWER_TOKENS.as_ref()];
        arguments.extend(questions.iter().flat_map(|question| [OsStr::new("--prompt"), OsStr::new(question)]));
        let answer: Completions = self.call("generate", adapter, &arguments)?;
        let found = answer.completions.len();
        ensure!(found == questions.len(), "generate gave {found} answers to {} prompts", questions.len());
        Ok(answer.completions.into_iter().map(|completion| completion.text).collect())
    }

    fn train(&self, data: &Path, validation: &Path, out: &Path) -> Result<Training> {
        let flags: Vec<String> = SETTINGS.iter().map(|(name, _)| format!("--{name}")).collect();
        let mut arguments: Vec<&OsStr> = vec!["--data".as_ref(), data.as_ref(), "--val-data".as_ref()];
        arguments.extend([validation.as_os_str(), "--output-dir".as_ref(), out.as_os_str()]);
        arguments
            .extend(flags.iter().zip(SETTINGS).flat_map(|(flag, (_, value))| [OsStr::new(flag), OsStr::new(value)]));
        self.call("train", None, &arguments)
    }

    /// Runs a command of the trainer; its bars and messages stay visible, its JSON answer is read.
    fn call<T: for<'a> Deserialize<'a>>(
        &self,
        command: &str,
        adapter: Option<&Path>,
        arguments: &[&OsStr],
    ) -> Result<T> {
        let mut process = std::process::Command::new(&self.binary);
        // On a machine with a GPU too: the demo's figures are those of the CPU.
        process.args([command, "--json", "--device", "cpu", "--model"]).arg(&self.model).args(arguments);
        if let Some(adapter) = adapter {
            process.arg("--adapter").arg(adapter);
        }
        let output = process.stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot run {}", self.binary.display()))?;
        ensure!(output.status.success(), "`qlora-train {command}` failed ({}): see above", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| {
            let text = String::from_utf8_lossy(&output.stdout);
            format!("`qlora-train {command} --json` answered {:?}", text.chars().take(200).collect::<String>())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(habit_before: usize, habit_after: usize, loss_after: f64) -> Summary {
        Summary {
            questions: vec!["?".to_owned(); 8],
            answers_before: vec!["a|b\nc".to_owned(); 8],
            answers_after: vec!["It is.\nTopic: art".to_owned(); 8],
            habit_before,
            habit_after,
            loss_before: 2.0,
            loss_after,
            perplexity_before: 7.0,
            perplexity_after: 3.0,
            training: Training {
                steps: 60,
                train_loss: 1.0,
                eval_loss: Some(loss_after),
                tokens_per_second: 200.0,
                peak_bytes: 1 << 30,
                adapter: "adapter".into(),
            },
            seconds: 1.0,
            machine: "machine".to_owned(),
        }
    }

    #[test]
    fn the_demo_fails_without_the_habit_or_with_a_loss_that_did_not_fall() {
        assert!(judge(&summary(0, 8, 1.0)).is_ok());
        assert!(judge(&summary(1, 7, 1.0)).is_ok());
        assert!(judge(&summary(2, 8, 1.0)).is_err());
        assert!(judge(&summary(0, 6, 1.0)).is_err());
        assert!(judge(&summary(0, 8, 2.0)).is_err());
        assert!(judge(&summary(0, 8, f64::NAN)).is_err());
    }

    #[test]
    fn the_report_and_the_metrics_hold_what_was_measured() {
        let dir = tempfile::tempdir().unwrap();
        let summary = summary(0, 8, 1.25);
        let path = report::write(&summary, dir.path()).unwrap();
        let text = fs::read_to_string(path).unwrap();
        for expected in ["0 of 8", "8 of 8", "1.2500", "a\\|b<br>c", "60"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let metrics: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("metrics.json")).unwrap()).unwrap();
        assert_eq!(metrics["habit_after"], 8);
        assert_eq!(metrics["training"]["steps"], 60);
    }
}
