//! Measured training steps beside their predictions, whole and by operation, from the files of
//! `benches/records/steps`. A record lists the operations that ran, so that just these are predicted.

use crate::launches::Kernels;
use crate::measured::{apart, card_of};
use crate::operations::Operation;
use crate::steps::{Products, step_of};
use anyhow::{Context, Result};
use records::steps::{Kind, Steps};
use serde_json::Value;
use std::fmt::Write;

/// A step of a record, and what was predicted of it.
#[derive(Debug)]
pub struct ComparedStep {
    pub card: &'static str,
    pub work: String,
    pub file: String,
    pub measured: f64,
    /// Seconds; none of a step with an operation that the predictor does not know
    pub predicted: Option<f64>,
    pub kinds: Vec<ComparedKind>,
}

/// All operations of one kind, in seconds; none where only one of the two has the kind.
#[derive(Debug, PartialEq)]
pub struct ComparedKind {
    pub name: String,
    pub measured: Option<f64>,
    pub predicted: Option<f64>,
}

impl ComparedKind {
    fn seconds_apart(&self) -> f64 {
        (self.measured.unwrap_or(0.0) - self.predicted.unwrap_or(0.0)).abs()
    }
}

/// The code that an operation of frozen layers ran on, by the record's lines.
fn products_of(steps: &Steps, operation: &Operation) -> Products {
    let n: usize = operation.segments.iter().map(|[n, _]| n).sum();
    let pass = if operation.name == "linear" { "forward" } else { "dX" };
    let wanted = format!(", N {n}, K {}, {pass}: dequantize", operation.k);
    if steps.linear.iter().any(|line| line.contains(&wanted)) { Products::Library } else { Products::Fused }
}

/// The record's operations. Rows of a batch do not see each other: their attention is that of each.
fn operations_of(steps: &Steps) -> Result<Vec<Operation>> {
    let mut operations: Vec<Operation> = serde_json::from_value(Value::Array(steps.operations.clone()))
        .with_context(|| format!("operations of {} are not those of this trainer", steps.file))?;
    for operation in operations.iter_mut().filter(|operation| operation.name.starts_with("attention")) {
        operation.tokens /= steps.batch.max(1);
        operation.count *= steps.batch.max(1);
    }
    Ok(operations)
}

/// The step in words, with a note where it was measured with other kernels.
fn work(steps: &Steps, hash: &str) -> String {
    let of_kernels = match steps.is_of(hash) {
        Some(true) => "",
        Some(false) => ", of other kernels",
        None => ", of which kernels is not known",
    };
    steps.work() + of_kernels
}

/// All steps of the records of cards that are predicted: those whose measurement and prediction differ most first, and
/// so the operations of each, by their seconds. `hash` is that of the kernels as they are.
pub fn compared(kernels: &Kernels, records: &[Steps], hash: &str) -> Result<Vec<ComparedStep>> {
    let mut all = Vec::new();
    for steps in records {
        let Some(card) = card_of(steps.gpu()) else { continue };
        let is_known = |operation: &Operation| operation.launches(kernels, card).is_some();
        let (known, unknown): (Vec<_>, Vec<_>) = operations_of(steps)?.into_iter().partition(is_known);
        let predicted = step_of(kernels, &known, card, |operation| products_of(steps, operation))
            .with_context(|| steps.file.clone())?;
        let mut kinds: Vec<ComparedKind> = Vec::new();
        for Kind { name, seconds } in &steps.kernels {
            kinds.push(ComparedKind { name: name.clone(), measured: Some(*seconds), predicted: None });
        }
        for (name, seconds) in predicted.kinds {
            // A kind that is known in one shape and not in another has no prediction.
            let seconds = Some(seconds).filter(|_| unknown.iter().all(|operation| operation.name != name));
            match kinds.iter_mut().find(|kind| kind.name == name) {
                Some(kind) => kind.predicted = seconds,
                None => kinds.push(ComparedKind { name, measured: None, predicted: seconds }),
            }
        }
        kinds.sort_by(|a, b| b.seconds_apart().total_cmp(&a.seconds_apart()));
        all.push(ComparedStep {
            card: card.name,
            work: work(steps, hash),
            file: steps.file.clone(),
            measured: steps.step_seconds,
            predicted: unknown.is_empty().then_some(predicted.seconds),
            kinds,
        });
    }
    all.sort_by(|a, b| apart(b.measured, b.predicted).total_cmp(&apart(a.measured, a.predicted)));
    Ok(all)
}

/// " 1.234 | 1.000 | 1.23 |"
fn cells(measured: Option<f64>, predicted: Option<f64>) -> String {
    let shown = |seconds: Option<f64>, none: &str| seconds.map_or(none.to_owned(), |seconds| format!("{seconds:.4}"));
    let ratio =
        measured.zip(predicted).map_or(String::new(), |(measured, predicted)| format!("{:.2}", measured / predicted));
    format!(" {} | {} | {ratio} |", shown(measured, "not measured"), shown(predicted, "not predicted"))
}

/// Markdown of them: the whole steps, then each by operation.
pub fn tables(compared: &[ComparedStep]) -> String {
    if compared.is_empty() {
        return "No step has been measured on a GPU yet.\n".to_owned();
    }
    const HEAD: &str = "measured, s | predicted, s | measured over predicted |\n|---|---|---|---|";
    let mut text = format!("| card | step | {HEAD}---|\n");
    for ComparedStep { card, work, file, measured, predicted, .. } in compared {
        let cells = cells(Some(*measured), *predicted);
        let _ = writeln!(text, "| {card} | [{work}](../benches/records/steps/{file}) |{cells}");
    }
    for ComparedStep { card, work, kinds, .. } in compared {
        let _ = writeln!(text, "\n{card}, {work}:\n\n| operation | {HEAD}");
        for ComparedKind { name, measured, predicted } in kinds {
            let _ = writeln!(text, "| {name} |{}", cells(*measured, *predicted));
        }
        let traced = kinds.iter().filter_map(|kind| kind.measured).sum();
        let predicted = kinds.iter().filter_map(|kind| kind.predicted).sum();
        let _ = writeln!(text, "| all of these |{}", cells(Some(traced), Some(predicted)));
    }
    text
}
