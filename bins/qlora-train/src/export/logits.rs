//! Change of the logits of a short prompt by an adapter.

use std::collections::BTreeMap;
use std::path::Path;

use crate::adapter::read_tokens;
use crate::backend::{Backend, Batch};
use crate::base::Checkpoint;
use crate::config::Settings;
use crate::data::{MicroBatch, Row};
use crate::error::{Error, Result};
use crate::infer::{Adapters, InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::session::{Device, DeviceJob};
use serde_json::{Value, json};

/// Tokens from all parts of the vocabulary.
const SPREAD: u32 = 8;
/// Maximum number of tokens whose rows the adapter holds.
const NAMED: usize = 8;

/// Logits of a prompt with an adapter beside those of the base alone.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitChange {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Largest difference of a logit.
    pub largest_change: f64,
    /// Largest logit of the base, in magnitude.
    pub largest: f64,
    /// Tokens after which another one is the most likely.
    pub other_choices: usize,
}

impl LogitChange {
    /// Logits `[tokens][vocab]` with the adapter and without. Failed: one is not finite.
    fn of(with: &[Vec<f32>], without: &[Vec<f32>]) -> Result<Self> {
        let mut change = Self { tokens: with.len(), largest_change: 0.0, largest: 0.0, other_choices: 0 };
        for (with, without) in with.iter().zip(without) {
            for (&x, &y) in with.iter().zip(without) {
                if !x.is_finite() || !y.is_finite() {
                    let which = if y.is_finite() { "with the adapter" } else { "of the base" };
                    return Err(Error::Failed(format!("a logit {which} is not finite: it diverged")));
                }
                change.largest_change = change.largest_change.max((f64::from(x) - f64::from(y)).abs());
                change.largest = change.largest.max(f64::from(y).abs());
            }
            change.other_choices += usize::from(choice(with) != choice(without));
        }
        Ok(change)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "largest_change": self.largest_change,
            "largest": self.largest,
            "other_choices": self.other_choices,
        })
    }

    pub fn line(&self) -> String {
        let Self { tokens, largest_change, largest, other_choices } = self;
        format!(
            "logits: of a prompt of {tokens} tokens moved by up to {largest_change:.4}, those of the base are up to \
             {largest:.4}; another choice after {other_choices}"
        )
    }
}

/// The most likely token, the first of equals.
fn choice(logits: &[f32]) -> usize {
    let better = |best: usize, (at, logit): (usize, &f32)| if *logit > logits[best] { at } else { best };
    logits.iter().enumerate().fold(0, better)
}

/// Computes a prompt with the adapter of `dir` on the base, and without. `settings` are those of the model and its
/// memory. Refused: an adapter of another base, unless the settings allow it; too little memory.
pub fn logit_change(settings: &Settings, checkpoint: &Checkpoint, dir: &Path, device: &Device) -> Result<LogitChange> {
    let input_ids = prompt(checkpoint.arch().vocab_size as u32, &read_tokens(dir)?);
    let labels = input_ids.iter().map(|&id| id as i32).collect();
    let row = Row { input_ids, labels, weights: Vec::new(), file: 0, line: 1, task: None };
    device.clone().run(Prompt { settings, checkpoint, dir, device, row })
}

/// Tokens from all parts of the vocabulary, behind those whose rows the adapter holds.
fn prompt(vocab_size: u32, rows: &BTreeMap<String, Vec<u32>>) -> Vec<u32> {
    let named = rows.values().flatten().copied().filter(|&token| token < vocab_size).take(NAMED);
    let spread = (1..=SPREAD).map(|part| (u64::from(vocab_size) * u64::from(part) / u64::from(SPREAD + 1)) as u32);
    named.chain(spread).collect()
}

struct Prompt<'a> {
    settings: &'a Settings,
    checkpoint: &'a Checkpoint,
    dir: &'a Path,
    device: &'a Device,
    row: Row,
}

impl DeviceJob for Prompt<'_> {
    type Output = LogitChange;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<LogitChange> {
        let Self { settings, checkpoint, dir, device, row } = self;
        let (length, adapters) = (row.len(), Adapters::one_by_one(vec![dir.to_owned()]));
        let job = InferenceJob::Loss;
        // The caller prints how the base is stored.
        let mut loaded =
            InferenceModel::load_rewritten(settings, checkpoint, &adapters, None, job, length, length, device, build)?;
        let tokens = MicroBatch::new([&row]);
        let (batch, all) = (Batch::from(&tokens), (0..length).collect::<Vec<usize>>());
        let with = loaded.model.logits(&mut loaded.backend, &batch, &all)?;
        loaded.remove_adapter(checkpoint)?;
        let without = loaded.model.logits(&mut loaded.backend, &batch, &all)?;
        LogitChange::of(&with, &without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_their_largest() {
        let (base, other) = ([vec![0.0, -3.0, 1.0], vec![2.0, 2.0, 0.0]], [vec![0.5, -3.0, 0.25], vec![2.0, 2.0, 0.0]]);
        let change = LogitChange::of(&other, &base).unwrap();
        assert_eq!(change, LogitChange { tokens: 2, largest_change: 0.75, largest: 3.0, other_choices: 1 });
        assert_eq!(LogitChange::of(&base, &base).unwrap().largest_change, 0.0);
        let error = LogitChange::of(&[vec![f32::NAN]], &[vec![1.0]]).unwrap_err().to_string();
        assert!(error.contains("with the adapter"), "{error}");
    }

    #[test]
    fn the_prompt_has_the_tokens_whose_rows_are_trained() {
        let rows = BTreeMap::from([("model.embed_tokens".to_owned(), vec![7, 95, 96])]);
        assert_eq!(prompt(96, &rows), [7, 95, 10, 21, 32, 42, 53, 64, 74, 85]);
        assert!(prompt(u32::MAX, &BTreeMap::new()).windows(2).all(|pair| pair[0] < pair[1]));
    }
}
