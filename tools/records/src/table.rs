//! The table in Markdown.

use super::format::{NOT_MEASURED, Record, Row};
use super::goals::{Bound, Figure, GOALS, Unit};
use super::steps::{self, Steps};
use std::fmt::Write;

/// A GPU's records of the same kernels, as one: the newest, with the rows that only older ones have.
struct Merged {
    record: Record,
    files: Vec<String>,
}

fn merged(records: &[Record]) -> Vec<Merged> {
    let mut all: Vec<Merged> = Vec::new();
    for record in records.iter().rev() {
        let Some(newer) = all.iter_mut().find(|newer| newer.record.gpu == record.gpu) else {
            all.push(Merged { record: record.clone(), files: vec![record.file_name()] });
            continue;
        };
        if newer.record.kernels_hash != record.kernels_hash {
            continue;
        }
        let key = |row: &Row| (row.operation.clone(), row.shape.clone(), row.m);
        let known: Vec<_> = newer.record.rows.iter().map(key).collect();
        let missing: Vec<Row> = record.rows.iter().filter(|row| !known.contains(&key(row))).cloned().collect();
        if !missing.is_empty() {
            newer.record.rows.extend(missing);
            newer.files.push(record.file_name());
        }
    }
    all.sort_by(|a, b| a.record.gpu.cmp(&b.record.gpu));
    all
}

/// Table of the newest kernels' records of each GPU; `hash` is that of the kernels as they are.
pub fn table(records: &[Record], steps: &[Steps], hash: &str) -> String {
    let merged = merged(records);
    let mut text = String::from("| work | goal | measured |\n|---|---|---|\n");
    for goal in &GOALS {
        let cells: Vec<String> = merged.iter().filter_map(|of| cell(goal.figures, &of.record)).collect();
        let cell = if cells.is_empty() { NOT_MEASURED.into() } else { cells.join("<br>") };
        let _ = writeln!(text, "| {} | {} | {cell} |", goal.work, goal.goal);
    }
    text.push_str(&steps::rows(steps, hash));
    text.push('\n');
    if merged.is_empty() {
        text.push_str("There is no record of the kernels on a GPU.\n");
    }
    for of in merged {
        text.push_str(&facts(&of));
        if of.record.kernels_hash != hash {
            text.push_str(" **The kernels have changed since.**");
        }
        text.push('\n');
    }
    text
}

/// A GPU's figures of one goal; none if none of them was measured.
fn cell(figures: &[Figure], record: &Record) -> Option<String> {
    let wanted: Vec<&Figure> = figures.iter().filter(|figure| record.gpu.contains(figure.gpu)).collect();
    let found: Vec<Option<String>> = wanted.iter().map(|figure| worst(figure, record)).collect();
    if found.iter().all(Option::is_none) {
        return None;
    }
    let shown = wanted.iter().zip(found).map(|(figure, found)| {
        let found = found.unwrap_or_else(|| "not measured".into());
        if figure.what.is_empty() { found } else { format!("{}: {found}", figure.what) }
    });
    Some(format!("{}: {}", record.gpu, shown.collect::<Vec<_>>().join("; ")))
}

/// The worst value, where it is, and whether it is within the bound.
fn worst(figure: &Figure, record: &Record) -> Option<String> {
    let worse = |a: &(f64, String), b: &(f64, String)| match figure.bound {
        Bound::AtLeast(_) => a.0.total_cmp(&b.0),
        Bound::AtMost(_) => b.0.total_cmp(&a.0),
    };
    let (value, place) = (figure.values)(&record.rows).into_iter().min_by(worse)?;
    let met = match figure.bound {
        Bound::AtLeast(bound) => value >= bound,
        Bound::AtMost(bound) => value <= bound,
    };
    let number = match figure.unit {
        Unit::Percent => format!("{:.0}%", 100.0 * value),
        Unit::PercentOnTop => format!("{value:.1}%"),
        Unit::TeraFlops => format!("{value:.0} TFLOP/s"),
        Unit::Gigabytes => format!("{:.2} GB", value / 1e9),
    };
    Some(format!("{number} ({place}), {}", if met { "met" } else { "missed" }))
}

fn facts(Merged { record, files }: &Merged) -> String {
    let of =
        |name: &str, value: &Option<String>| value.as_ref().map_or(String::new(), |value| format!(", {name} {value}"));
    let commit = record.commit.as_ref().map(|commit| commit.chars().take(12).collect());
    format!(
        "{}: {} UTC{}, CUDA {}{}{}; {} runs, {:.0} GB/s copied; {}.",
        record.gpu,
        record.date,
        of("driver", &record.driver),
        record.cuda,
        of("cuBLASLt", &record.cublaslt),
        of("commit", &commit),
        record.mode,
        record.copy_gb_per_s,
        files.iter().map(|name| format!("[`{name}`](../benches/records/{name})")).collect::<Vec<_>>().join(", "),
    )
}
