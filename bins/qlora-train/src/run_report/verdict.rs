//! Verdict on a run, in a sentence or two.

use super::answers::best_by_answers;
use super::run_data::RunData;
use crate::report::{count, duration};
use std::cmp::Ordering;
use std::time::Duration;

/// The first and the lowest validation loss, and the last, each with its step.
fn validation(run: &RunData) -> Option<[(f64, f64); 3]> {
    let losses = run.curve(|entry| entry.eval_loss);
    let lowest = *losses.iter().min_by(|one, other| one.1.total_cmp(&other.1))?;
    Some([losses[0], lowest, *losses.last()?])
}

/// Means of the first and of the last tenth of the training losses.
fn training(run: &RunData) -> Option<(f64, f64)> {
    let losses = run.curve(|entry| entry.loss);
    if losses.len() < 2 {
        return None;
    }
    let part = losses.len().div_ceil(10).min(losses.len() / 2);
    let mean = |part: &[(f64, f64)]| part.iter().map(|point| point.1).sum::<f64>() / part.len() as f64;
    Some((mean(&losses[..part]), mean(&losses[losses.len() - part..])))
}

/// Verdict on a run.
pub fn verdict(run: &RunData) -> String {
    let steps = run.steps();
    let seconds = duration(Duration::from_secs_f64(run.seconds().clamp(0.0, 1e9)));
    let state = match (run.finished(), run.details.total_steps) {
        (Some(finished), total) if total > 0 && finished.steps < total => {
            format!("Stopped early after {} of {total}, in {seconds}.", count(finished.steps, "step"))
        }
        (Some(finished), _) => format!("{} in {seconds}.", count(finished.steps, "step")),
        (None, _) if steps == 0 => "No step is done yet.".to_owned(),
        (None, 0) => format!("Not finished: {} so far.", count(steps, "step")),
        (None, total) => format!("Not finished: step {steps} of {total}."),
    };
    let takes_best =
        run.run.pointer("/settings/load_best_model_at_end").and_then(serde_json::Value::as_bool) == Some(true);
    let by_answers = best_by_answers(run);
    let is_best = takes_best && by_answers.is_none();
    let answers = by_answers.map_or(String::new(), |(name, step, value)| {
        let kept = if takes_best { ", which is kept" } else { "" };
        format!("The best {name} is {value:.4}, that of step {step}{kept}. ")
    });
    let losses = match (validation(run), training(run)) {
        (Some([first, lowest, last]), _) if first.0 < last.0 => {
            let kept = if is_best { lowest } else { last };
            let best = match lowest.0 < last.0 && lowest.1 < last.1 {
                true if is_best => format!(", that of step {}, which is kept,", lowest.0),
                true => format!(" (it was lowest at step {}: {:.4})", lowest.0, lowest.1),
                false => String::new(),
            };
            match kept.1.total_cmp(&first.1) {
                Ordering::Less => format!("The validation loss fell from {:.4} to {:.4}{best}. ", first.1, kept.1),
                Ordering::Equal => format!("The validation loss did not fall below {:.4}{best}. ", first.1),
                Ordering::Greater => format!("The validation loss rose from {:.4} to {:.4}{best}. ", first.1, kept.1),
            }
        }
        (Some([only, ..]), Some((first, last))) => format!(
            "The validation loss is {:.4}; the training loss {} from {first:.4} to {last:.4}. ",
            only.1,
            if last < first { "fell" } else { "rose" }
        ),
        (Some([only, ..]), None) => format!("The validation loss is {:.4}. ", only.1),
        (None, Some((first, last))) => format!(
            "The training loss {} from {first:.4} to {last:.4}; no rows are held back, so its loss on new rows is not \
             known. ",
            if last < first { "fell" } else { "rose" }
        ),
        (None, None) => String::new(),
    };
    format!("{}{answers}{state}", losses.replace(",.", "."))
}
