//! A run as lints see it.

use super::{Loaded, TrainingData};
use crate::config::{Quantization, Settings};
use crate::data::{ChatTokenizer, Rows};
use crate::lint::{DataFacts, Facts};
use crate::lora::{LoraSpec, LoraTerm};
use crate::model::ModelSpec;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Training rows that were there before, and validation rows that are trained on too, by a hash of tokens, labels and
/// weights.
fn repeated(training: &Rows, validation: &Rows) -> (usize, usize) {
    // A sorted list is made several times faster than a set of a million.
    let mut known: Vec<u64> = (0..training.len()).into_par_iter().map(|row| training.hash(row)).collect();
    known.par_sort_unstable();
    known.dedup();
    let is_known = |&row: &usize| known.binary_search(&validation.hash(row)).is_ok();
    let overlap = (0..validation.len()).into_par_iter().filter(is_known).count();
    (training.len() - known.len(), overlap)
}

/// Facts of a run before its first step.
pub fn facts(settings: &Settings, loaded: &Loaded, spec: &ModelSpec, data: &TrainingData) -> Facts {
    let arch = loaded.checkpoint.arch();
    let (learning_rate_a, learning_rate_b) = settings.learning_rates_for(loaded.parameters());
    let name = |module: &str| Some((arch.find(module)?.1, module.rsplit('.').next()?.to_owned()));
    let targets: BTreeSet<_> = spec.lora.terms.keys().filter_map(|module| name(module)).collect();
    let term = |term: &LoraTerm| (term.r, term.alpha, LoraSpec::scale(term.alpha, term.r, spec.lora.rslora));
    let mut terms: Vec<(usize, f64, f64)> = spec.lora.terms.values().map(term).collect();
    terms.sort_by(|one, other| one.0.cmp(&other.0).then(one.1.total_cmp(&other.1)));
    terms.dedup();
    let is_nf4 = loaded.checkpoint.quantization().is_some() || settings.quantization == Quantization::Nf4;
    let schedule = &data.schedule;
    let (duplicates, overlap) = repeated(&data.rows, &data.validation);
    Facts {
        parameters: loaded.parameters(),
        positions: arch.max_position_embeddings,
        is_nf4,
        terms,
        use_rslora: settings.use_rslora,
        learning_rate_a,
        learning_rate_b,
        targets: targets.into_iter().map(|(_, name)| name).collect(),
        lora_parameters: spec.trained_parameters(),
        max_length: settings.max_length,
        data: Some(DataFacts {
            rows: data.rows.len(),
            validation_rows: data.validation.len(),
            longest: data.longest,
            duplicates,
            overlap,
            supervised_tokens: data.rows.supervised_tokens(),
            open_ended: data.report.open_ended,
            packs: schedule.packing().map(|packing| packing.packs),
            steps_per_epoch: schedule.steps_per_epoch(),
            total_steps: schedule.total_steps(),
            steps_are_given: settings.max_steps.0.is_some(),
            foreign_marks: loaded.tokenizer().map(ChatTokenizer::foreign_marks).unwrap_or_default(),
        }),
    }
}
