//! Measurements of the demo, for the terminal, as a page, and as JSON.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// The answer of `qlora-train train --json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Training {
    pub steps: u64,
    pub train_loss: f64,
    pub eval_loss: Option<f64>,
    pub tokens_per_second: f64,
    pub peak_bytes: u64,
    pub adapter: PathBuf,
}

#[derive(Debug, Serialize)]
pub struct Summary {
    pub questions: Vec<String>,
    pub answers_before: Vec<String>,
    pub answers_after: Vec<String>,
    pub habit_before: usize,
    pub habit_after: usize,
    /// Per supervised token, natural logarithm.
    pub loss_before: f64,
    pub loss_after: f64,
    pub perplexity_before: f64,
    pub perplexity_after: f64,
    pub training: Training,
    /// Seconds of the whole demo, building included.
    pub seconds: f64,
    pub machine: String,
}

/// Writes `report.md` and `metrics.json`; returns the report's path.
pub fn write(summary: &Summary, dir: &Path) -> Result<PathBuf> {
    let metrics = dir.join("metrics.json");
    fs::write(&metrics, serde_json::to_string_pretty(summary)? + "\n")
        .with_context(|| format!("cannot write {}", metrics.display()))?;
    let report = dir.join("report.md");
    fs::write(&report, markdown(summary)).with_context(|| format!("cannot write {}", report.display()))?;
    Ok(report)
}

fn markdown(summary: &Summary) -> String {
    let (total, training) = (summary.questions.len(), &summary.training);
    let mut text = String::from("# Demo: a habit taught to SmolLM2-135M-Instruct\n\n");
    text += "The habit: one sentence, then a line `Topic: <word>`. The questions are in no training row; answers are greedy.\n\n";
    text += "| | before | after |\n|---|---|---|\n";
    let mut row = |name: &str, before: String, after: String| {
        text += &format!("| {name} | {before} | {after} |\n");
    };
    let count = |habit: usize| format!("{habit} of {total}");
    row("answers with the habit", count(summary.habit_before), count(summary.habit_after));
    row("validation loss", format!("{:.4}", summary.loss_before), format!("{:.4}", summary.loss_after));
    row("perplexity", format!("{:.2}", summary.perplexity_before), format!("{:.2}", summary.perplexity_after));
    text += "\n| question | before | after |\n|---|---|---|\n";
    for ((question, before), after) in summary.questions.iter().zip(&summary.answers_before).zip(&summary.answers_after)
    {
        text += &format!("| {} | {} | {} |\n", cell(question), cell(before), cell(after));
    }
    text += &format!(
        "\n{} steps at {:.0} tokens/s, training loss {:.4}, {:.2} GiB held; the whole demo took {:.0} s on {}.\n\nAdapter \
         (PEFT format): `{}`\n",
        training.steps,
        training.tokens_per_second,
        training.train_loss,
        gib(training.peak_bytes),
        summary.seconds,
        summary.machine,
        training.adapter.display()
    );
    text
}

fn cell(text: &str) -> String {
    text.trim().replace('|', "\\|").replace('\n', "<br>")
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

pub fn for_terminal(summary: &Summary, report: &Path) -> String {
    let total = summary.questions.len();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |content: std::fmt::Arguments| {
        let _ = writeln!(text, "{content}");
    };
    for ((question, before), after) in summary.questions.iter().zip(&summary.answers_before).zip(&summary.answers_after)
    {
        line(format_args!("\n{question}"));
        line(format_args!("  before: {}", before.trim().replace('\n', "\n          ")));
        line(format_args!("  after:  {}", after.trim().replace('\n', "\n          ")));
    }
    line(format_args!("\n                          before     after"));
    line(format_args!(
        "answers with the habit    {:>6}    {:>6}",
        format!("{}/{total}", summary.habit_before),
        format!("{}/{total}", summary.habit_after)
    ));
    line(format_args!("validation loss           {:>6.4}    {:>6.4}", summary.loss_before, summary.loss_after));
    let training = &summary.training;
    line(format_args!(
        "\n{} steps, {:.0} tokens/s, {:.2} GiB held; {:.0} s in all on {}",
        training.steps,
        training.tokens_per_second,
        gib(training.peak_bytes),
        summary.seconds,
        summary.machine
    ));
    line(format_args!("adapter: {}", training.adapter.display()));
    line(format_args!("report:  {}", report.display()));
    text
}

/// The processor's name and the cores this process may use.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    format!("{} ({cores} cores)", name.unwrap_or(std::env::consts::ARCH).trim())
}
