//! Section on the answers that the model gave during training.

use super::page::{chart, table, text};
use super::records::{LogEntry, Sample};
use super::run_data::RunData;
use super::svg::{Chart, series};
use minijinja::Value;
use std::collections::BTreeMap;

/// Name in the log, name here, color, and access to it in an entry
type Figure = (&'static str, &'static str, &'static str, fn(&LogEntry) -> Option<f64>);

/// Figures of answers.
const FIGURES: [Figure; 4] = [
    ("eval_exact_match", "exact match", "one", |entry| entry.eval_exact_match),
    ("eval_contains", "contains the reference", "two", |entry| entry.eval_contains),
    ("eval_match", "matches by answer_match", "three", |entry| entry.eval_match),
    ("eval_rouge_l", "ROUGE-L", "four", |entry| entry.eval_rouge_l),
];
/// Prompts whose answers are shown
const MOST: usize = 40;

/// Step of the best value of the run's metric, at an evaluation during training or at the end; none if the metric is
/// the validation loss.
pub fn best_by_answers(run: &RunData) -> Option<(&'static str, u64, f64)> {
    let metric = run.run.pointer("/settings/metric_for_best_model")?.as_str()?;
    let (_, name, _, of) = *FIGURES.iter().find(|(key, ..)| *key == metric)?;
    let mut best: Option<(u64, f64)> = None;
    for entry in run.history.iter().filter(|entry| entry.step > 0) {
        if let Some(value) = of(entry)
            && best.is_none_or(|(_, found)| value > found)
        {
            best = Some((entry.step, value));
        }
    }
    best.map(|(step, value)| (name, step, value))
}

/// The figures over the steps, and each prompt with its reference and its answers side by side.
pub fn answers(run: &RunData) -> Vec<Option<Value>> {
    let curves = FIGURES.map(|(_, name, class, of)| series(name, class, run.curve(of), true));
    let svg = Chart { title: "Answers", x: "optimizer step", y: "share, 0 to 1", series: &curves, marks: &[] }.svg();
    let caption = match best_by_answers(run) {
        Some((name, step, value)) => format!("Higher is better. The best {name} is {value:.4}, at step {step}."),
        None => "Higher is better: shares of the answers that have a reference.".to_owned(),
    };
    let answered: Vec<(u64, &Vec<Sample>)> =
        run.history.iter().filter_map(|entry| Some((entry.step, entry.samples.as_ref()?))).collect();
    let (Some((first_step, _)), Some((last_step, last))) = (answered.first(), answered.last()) else {
        return vec![chart(svg, caption)];
    };
    // Matched by prompt: a resumed run may have other prompts.
    let first: BTreeMap<&str, &Sample> = answered[0].1.iter().map(|sample| (sample.prompt.as_str(), sample)).collect();
    let before = |sample: &Sample| match first.get(sample.prompt.as_str()) {
        Some(first) if first_step < last_step => first.answer.clone(),
        _ => "–".to_owned(),
    };
    let row = |sample: &Sample| {
        let reference = sample.reference.clone().unwrap_or_else(|| "–".to_owned());
        vec![sample.prompt.clone(), reference, before(sample), sample.answer.clone()]
    };
    let (before_head, after) = (format!("at step {first_step}"), format!("at step {last_step}"));
    let left = last.len().saturating_sub(MOST);
    vec![
        chart(svg, caption),
        table(
            "Greedy answers",
            &["prompt", "reference", &before_head, &after],
            last.iter().take(MOST).map(row).collect(),
        ),
        (left > 0).then(|| text(format!("{left} more are in metrics.jsonl."))),
    ]
}
