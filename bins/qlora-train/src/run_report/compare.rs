//! Several runs side by side: their curves in one chart, their results in a table, and the settings in which they
//! differ.

use super::page::{Page, Section, chart, table, text};
use super::records::LogEntry;
use super::run_data::RunData;
use super::svg::{Chart, Series, smoothed};
use super::verdict::verdict;
use crate::files::units::format_bytes;
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Runs side by side, of which each has a color
pub const MOST_RUNS: usize = 6;
/// Classes of the page, one for each run
const CLASSES: [&str; MOST_RUNS] = ["one", "two", "three", "four", "five", "six"];

/// A curve of each run that has one.
fn curves(runs: &[RunData], of: fn(&LogEntry) -> Option<f64>, smooth: bool, dots: bool) -> Vec<Series> {
    runs.iter()
        .zip(CLASSES.iter().cycle())
        .map(|(run, class)| {
            let points = run.curve(of);
            let points = if smooth { smoothed(&points) } else { points };
            Series { name: run.name.clone(), class: (*class).to_owned(), points, dots }
        })
        .collect()
}

/// Settings that not all runs have alike.
fn differing(runs: &[RunData]) -> Vec<Vec<String>> {
    let of = |run: &RunData, name: &str| run.run.get("settings").and_then(|settings| settings.get(name)).cloned();
    let names: BTreeSet<&String> = runs
        .iter()
        .filter_map(|run| run.run.get("settings")?.as_object())
        .flat_map(|settings| settings.keys())
        .collect();
    let shown = |value: Option<Json>| match value {
        None => "–".to_owned(),
        Some(Json::String(text)) => text,
        Some(value) => value.to_string(),
    };
    names
        .into_iter()
        .filter(|name| name.as_str() != "output_dir" && runs.iter().any(|run| of(run, name) != of(&runs[0], name)))
        .map(|name| [name.clone()].into_iter().chain(runs.iter().map(|run| shown(of(run, name)))).collect())
        .collect()
}

fn results(runs: &[RunData]) -> Vec<Vec<String>> {
    let row = |run: &RunData| {
        let finished = run.finished();
        let last = |of: fn(&LogEntry) -> Option<f64>| run.history.iter().rev().find_map(of);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let four = |loss: f64| format!("{loss:.4}");
        let lowest = run.curve(|entry| entry.eval_loss).into_iter().min_by(|one, other| one.1.total_cmp(&other.1));
        vec![
            run.name.clone(),
            format!("{}{}", run.steps(), if finished.is_some() { "" } else { ", not finished" }),
            or_dash(last(|entry| entry.loss).map(four)),
            or_dash(finished.as_ref().and_then(|f| f.eval_loss).or_else(|| last(|entry| entry.eval_loss)).map(four)),
            or_dash(lowest.map(|(step, loss)| format!("{loss:.4} at step {step}"))),
            or_dash(finished.as_ref().and_then(|f| f.tokens_per_second).map(|speed| format!("{speed:.0}"))),
            or_dash(finished.as_ref().map(|f| format_bytes(f.peak_bytes))),
            format!("{}", run.details.warnings.len()),
        ]
    };
    runs.iter().map(row).collect()
}

/// Values that identify the tokens of an evaluation: tokenizer and template, and the validation files, or the settings
/// that draw rows from the training files. None: the record does not have them.
fn evaluated_on<'a>(run: &'a RunData) -> Option<Vec<&'a Json>> {
    let of = |path: &str| run.run.pointer(path);
    let mut known = vec![of("/identity/tokenizer")?, of("/identity/chat_template")?];
    let files = of("/identity/val_data")?;
    match files.as_array().is_some_and(Vec::is_empty) {
        false => known.push(files),
        true => {
            known.extend([of("/identity/data")?, of("/identity/tokens")?]);
            known.extend([of("/settings/seed")?, of("/settings/val_set_size")?]);
        }
    }
    Some(known)
}

/// The run with the lowest validation loss, in words.
fn best(runs: &[RunData]) -> String {
    let last = |run: &RunData| run.history.iter().rev().find_map(|entry| entry.eval_loss);
    let of = |run: &RunData| run.finished().and_then(|finished| finished.eval_loss).or_else(|| last(run));
    let losses: Vec<(&str, f64)> = runs.iter().filter_map(|run| Some((run.name.as_str(), of(run)?))).collect();
    let rows = evaluated_on(&runs[0]);
    let same = rows.is_some() && runs.iter().all(|run| evaluated_on(run) == rows);
    match losses.iter().min_by(|one, other| one.1.total_cmp(&other.1)) {
        Some((name, loss)) if losses.len() > 1 => {
            let caution = if same { "" } else { " They were not evaluated on the same tokens, so this says little." };
            format!("{name} has the lowest validation loss, {loss:.4}.{caution}")
        }
        _ => "Fewer than two of the runs have a validation loss, so they cannot be compared on new rows.".to_owned(),
    }
}

pub fn page(runs: &[RunData]) -> String {
    let x = "optimizer step";
    let y = "loss, nats per learned token";
    let losses = curves(runs, |entry| entry.loss, true, false);
    let validation = curves(runs, |entry| entry.eval_loss, false, true);
    let heads = ["run", "steps", "training loss", "validation loss", "lowest", "tokens/s", "memory held", "warnings"];
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let difference: Vec<&str> = ["setting"].into_iter().chain(names.iter().copied()).collect();
    let warnings = runs.iter().flat_map(|run| {
        run.details.warnings.iter().map(|warning| {
            (format!("{}, step {}:", run.name, warning.step), warning.message.clone(), warning.name.clone())
        })
    });
    let verdicts = runs.iter().map(|run| text(format!("{}: {}", run.name, verdict(run))));
    let section = |id, title, blocks: Vec<Option<minijinja::Value>>| Section {
        id,
        title,
        blocks: blocks.into_iter().flatten().collect(),
    };
    let of_difference = differing(runs);
    let same = of_difference.is_empty().then(|| text("Their settings are the same."));
    Page {
        title: format!("{} runs", runs.len()),
        kicker: names.join(" · "),
        verdict: best(runs),
        figures: Vec::new(),
        warnings: warnings.collect(),
        sections: vec![
            Section { id: "verdicts", title: "What came of each", blocks: verdicts.collect() },
            section("results", "Results", vec![table("Figures of each run", &heads, results(runs))]),
            section(
                "losses",
                "Learning",
                vec![
                    chart(
                        Chart { title: "Validation loss", x, y, series: &validation, marks: &[] }.svg(),
                        "Validation loss. Lower is better.",
                    ),
                    chart(
                        Chart { title: "Training loss", x, y, series: &losses, marks: &[] }.svg(),
                        "Training loss, smoothed.",
                    ),
                ],
            ),
            section("settings", "Settings in which they differ", vec![same, table("", &difference, of_difference)]),
        ],
    }
    .html()
}
