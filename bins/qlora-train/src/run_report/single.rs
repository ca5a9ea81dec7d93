//! The page of one run.

use super::page::Page;
use super::records::LogEntry;
use super::run_data::RunData;
use super::sections;
use super::verdict::verdict;
use crate::files::units::format_bytes;
use crate::report::thousands;

/// Figures at the top of the page of a run.
fn figures(run: &RunData) -> Vec<(String, String)> {
    let mut figures = Vec::new();
    let mut add = |name: &str, value: Option<String>| figures.extend(value.map(|value| (name.to_owned(), value)));
    let last = |of: &dyn Fn(&LogEntry) -> Option<f64>| run.history.iter().rev().find_map(of);
    let finished = run.finished();
    let four = |loss: f64| format!("{loss:.4}");
    add("training loss", last(&|entry| entry.loss).map(four));
    let validation = finished.as_ref().and_then(|f| f.eval_loss).or_else(|| last(&|entry| entry.eval_loss));
    add("validation loss", validation.map(four));
    add("perplexity", validation.map(|loss| format!("{:.3}", loss.exp())));
    let total = run.details.total_steps;
    let steps = run.steps();
    add("steps", Some(if total > steps { format!("{steps} of {total}") } else { thousands(steps) }));
    let seen = run.history.iter().filter_map(|entry| entry.num_input_tokens_seen).max();
    add("tokens seen", seen.map(thousands));
    let speed = finished.as_ref().and_then(|f| f.tokens_per_second).or_else(|| last(&|entry| entry.tokens_per_second));
    add("tokens per second", speed.map(|speed| format!("{speed:.0}")));
    let memory =
        finished.map(|f| f.peak_bytes).or_else(|| run.history.iter().rev().find_map(|entry| entry.memory_bytes));
    add("memory held", memory.map(format_bytes));
    add("trained parameters", (run.details.trainable > 0).then(|| thousands(run.details.trainable)));
    figures
}

fn when(step: u64) -> String {
    if step == 0 { "Before the first step:".to_owned() } else { format!("Step {step}:") }
}

/// The page of one run.
pub fn page(run: &RunData) -> String {
    let warnings = &run.details.warnings;
    let settings = run.run.get("settings").cloned().unwrap_or_default();
    let kicker = [
        run.base().to_owned(),
        run.details.quantization.clone(),
        run.details.device.clone(),
        format!("seed {}", settings.get("seed").map_or_else(|| "?".to_owned(), ToString::to_string)),
    ];
    let kicker: Vec<String> = kicker.into_iter().filter(|part| !part.is_empty()).collect();
    Page {
        title: format!("Run {}", run.name),
        kicker: kicker.join(" · "),
        verdict: verdict(run),
        figures: figures(run),
        warnings: warnings.iter().map(|w| (when(w.step), w.message.clone(), w.name.clone())).collect(),
        sections: sections::all(run),
    }
    .html()
}
