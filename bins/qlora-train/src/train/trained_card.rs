//! The model card of a run, with what came of it so far: the same for the same run, wherever and however it was done.

use super::identity::Identity;
use super::record::{LogEntry, RunRecord, TrainerState};
use crate::adapter::{Adapter, TrainedFile, Training};
use crate::base::BaseName;
use crate::config::{FALLBACK_TEMPLATE, SETTINGS, SamplePrompts, Settings};
use crate::data::Builtin;
use crate::error::Result;
use crate::export::has_gguf;
use crate::hub::{DataSetFile, data_set_of, is_hub_name, license_of};
use crate::run_report::learning_curve;
use crate::session::{Loaded, TrainingData};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Stands for a path of this machine.
const PLACE: &str = "path/to";
/// Arithmetic of a run whose record does not name it
const PLAIN: &str = "f32";

/// A run as far as it has come.
pub(super) struct Told<'a> {
    pub settings: &'a Settings,
    pub loaded: &'a Loaded,
    pub data: &'a TrainingData,
    pub identity: &'a Identity,
    pub state: &'a TrainerState,
    /// Mean loss of its steps
    pub train_loss: f64,
    /// Without its tensors
    pub adapter: Adapter,
    pub parameters: u64,
    pub processes: usize,
}

impl Told<'_> {
    /// Facts for the card of the checkpoint that is written now.
    pub fn of_checkpoint(&self) -> Training {
        let (step, history) = (self.state.global_step, &self.state.log_history);
        let here = history.iter().rev().take_while(|entry| entry.step == step).find_map(|entry| entry.eval_loss);
        Training {
            of_steps: Some(self.data.schedule.total_steps()),
            logged: history.iter().rev().find_map(|entry| Some((entry.step, entry.loss?))),
            ..training(self, here)
        }
    }
}

/// Writes the card and the learning curve of a run whose adapter is there. A card of somebody else's is left alone.
pub(super) fn write_card(record: &RunRecord, run: &Told, eval_loss: Option<f64>) -> Result<()> {
    let curve = learning_curve(&run.state.log_history);
    let mut files = record.files()?;
    if run.adapter.add_story(&mut files, &training(run, eval_loss), curve.as_deref())? {
        files.update_sums()?;
        files.commit()?;
    }
    Ok(())
}

fn training(run: &Told, eval_loss: Option<f64>) -> Training {
    let (settings, data, identity) = (run.settings, run.data, run.identity);
    let checkpoint = &run.loaded.checkpoint;
    let files = trained_files(&settings.data, &data.hashes);
    let validation_files = trained_files(&settings.val_data, &data.validation_hashes);
    let mut repeated = places(settings, checkpoint.base_name(), &files, &validation_files);
    if identity.questions.is_some() && settings.sample_prompts != SamplePrompts::None {
        repeated.insert("sample_prompts".to_owned(), format!("{PLACE}/prompts").into());
    }
    repeated.extend(changed(&identity.settings));
    let arithmetic = arithmetic(&identity.settings);
    if arithmetic == PLAIN {
        // Without it a processor that has bf16 would compute in that.
        repeated.insert("compute".to_owned(), PLAIN.into());
    }
    Training {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        steps: run.state.global_step,
        of_steps: None,
        epochs: run.state.epoch,
        parameters: run.parameters,
        train_loss: run.train_loss,
        logged: None,
        eval_loss,
        lowest: lowest(&run.state.log_history),
        rows: data.rows.len() as u64,
        validation_rows: data.validation.len() as u64,
        tokens: data.rows.lengths().sum::<usize>() as u64,
        learned_tokens: data.rows.supervised_tokens() as u64,
        files,
        validation_files,
        tokens_hash: identity.tokens.clone(),
        arithmetic: Some(arithmetic.to_owned()),
        date: identity.clock.map(date),
        sums: identity.sums.as_deref().map(|sums| summed(run.processes, sums)),
        settings: repeated,
        license: license_of(checkpoint.dir()),
        // It goes beside the adapter even where all rows are token ids.
        tokenizer: checkpoint.dir().join("tokenizer.json").is_file(),
        gguf: has_gguf(checkpoint.arch()),
        curve: false,
    }
}

/// Arithmetic of a run.
fn arithmetic(settings: &Map<String, Value>) -> &str {
    settings.get("compute").and_then(Value::as_str).unwrap_or(PLAIN)
}

/// Words on the adding up of several processes' gradients; one may have ended the run that several began.
fn summed(processes: usize, sums: &str) -> String {
    let several = if processes > 1 { processes.to_string() } else { "several".to_owned() };
    format!("of {several} processes were added up {sums}")
}

/// The day of a time, as chat templates get it.
fn date(clock: Timestamp) -> String {
    clock.to_zoned(TimeZone::UTC).date().to_string()
}

/// Step and loss of the best evaluation, the first of several.
fn lowest(history: &[LogEntry]) -> Option<(u64, f64)> {
    let losses =
        history.iter().filter_map(|entry| Some((entry.step, entry.eval_loss.filter(|loss| loss.is_finite())?)));
    losses.min_by(|one, other| one.1.total_cmp(&other.1))
}

fn trained_files(paths: &[PathBuf], hashes: &[String]) -> Vec<TrainedFile> {
    let file = |(at, sha256): (usize, &String)| TrainedFile {
        sha256: sha256.clone(),
        origin: paths.get(at).and_then(|path| data_set_of(path)),
    };
    hashes.iter().enumerate().map(file).collect()
}

/// Settings that say where things are: on the hub, or at a place that is the reader's own.
fn places(
    settings: &Settings,
    base: &BaseName,
    files: &[TrainedFile],
    validation: &[TrainedFile],
) -> Map<String, Value> {
    let mut places = Map::new();
    let mut place = |name: &str, value: Value| drop(places.insert(name.to_owned(), value));
    match is_hub_name(&base.name) {
        true => {
            place("model", base.name.as_str().into());
            if let Some(revision) = &base.revision {
                place("revision", revision.as_str().into());
            }
        }
        false => place("model", format!("{PLACE}/base").into()),
    }
    place("data", named(files, "rows"));
    if !validation.is_empty() {
        place("val_data", named(validation, "validation-rows"));
    }
    if let Some(template) = &settings.chat_template {
        let named = template.trim_start_matches(FALLBACK_TEMPLATE);
        let fallback = &template[..template.len() - named.len()];
        // A name of one that is built in is no path, whatever stands there.
        let is_builtin = Builtin::from_name(named).is_some();
        let told = if is_builtin { template.clone() } else { format!("{fallback}{PLACE}/template.jinja") };
        place("chat_template", told.into());
    }
    if settings.init_adapter.is_some() {
        place("init_adapter", format!("{PLACE}/adapter").into());
    }
    places
}

/// Files by their data sets; by a word those of the machine, and those whose name would be read as a pattern, or as no
/// name at all.
fn named(files: &[TrainedFile], word: &str) -> Value {
    let name = |(at, file): (usize, &TrainedFile)| match &file.origin {
        Some(DataSetFile { id, commit, file }) if !file.contains(|c: char| c.is_control() || "*?[".contains(c)) => {
            format!("{id}@{commit}:{file}")
        }
        _ if files.len() == 1 => format!("{PLACE}/{word}"),
        _ => format!("{PLACE}/{word}-{}", at + 1),
    };
    files.iter().enumerate().map(name).collect()
}

/// Settings that decide the result and are not as they are by default.
fn changed(settings: &Map<String, Value>) -> Map<String, Value> {
    let default = Settings::default();
    let is_changed = |(name, value): &(&String, &Value)| {
        let info = SETTINGS.iter().find(|info| info.name == name.as_str());
        // Its arithmetic is named as it was, not as it was asked for.
        name.as_str() != "compute" && info.is_some_and(|info| info.value_in(&default) != **value)
    };
    settings.iter().filter(is_changed).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests;
