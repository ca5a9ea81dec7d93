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
/// What a run computes in whose record has no word of it
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
    /// What the card of the checkpoint tells that is written here.
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

/// What a run computed in.
fn arithmetic(settings: &Map<String, Value>) -> &str {
    settings.get("compute").and_then(Value::as_str).unwrap_or(PLAIN)
}

/// How the gradients of several processes were added up; one may have ended the run that several began.
fn summed(processes: usize, sums: &str) -> String {
    let several = if processes > 1 { processes.to_string() } else { "several".to_owned() };
    format!("of {several} processes were added up {sums}")
}

/// The day of a time, as chat templates are told it.
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
        // What it computes in is told as it came to be, not as it was asked for.
        name.as_str() != "compute" && info.is_some_and(|info| info.value_in(&default) != **value)
    };
    settings.iter().filter(is_changed).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Purpose;

    const COMMIT: &str = "0e9e39f249a16976918f6564b8830bc894c89659";

    fn files() -> Vec<TrainedFile> {
        let hub = format!("/home/me/hub/datasets--org--rows/snapshots/{COMMIT}/data/a.jsonl");
        let paths = [PathBuf::from(hub), PathBuf::from("/home/me/secret-customer.jsonl")];
        trained_files(&paths, &["01".to_owned(), "23".to_owned()])
    }

    #[test]
    fn the_settings_of_a_card_are_read_again_and_name_no_place_of_the_machine() {
        let text = "model: /home/me/base\ndata: /home/me/secret-customer.jsonl\noutput_dir: /home/me/out\n\
                    chat_template: /home/me/template.jinja\nlora_r: 4\nlearning_rate: 1e-2\ndata_weights: [1, 2]\n\
                    rank_pattern: {'.*q_proj': 8}\n";
        let settings = Settings::from_yaml(text, "run.yaml", &[]).unwrap();
        let base = BaseName { name: "org/base".into(), revision: Some(COMMIT.into()), is_hub: true };
        let places = places(&settings, &base, &files(), &[]);
        let hub = format!("org/rows@{COMMIT}:data/a.jsonl");
        assert_eq!(places["data"], serde_json::json!([hub, "path/to/rows-2"]));
        assert_eq!(places["chat_template"], "path/to/template.jinja");
        assert!(!Value::Object(places.clone()).to_string().contains("/home/me"), "{places:?}");
        // The card has JSON in YAML. In a run the places are none of the settings that decide.
        let mut all = changed(&settings.result_settings());
        all.extend(places);
        for name in ["lora_alpha", "output_dir", "seed"] {
            assert!(!all.contains_key(name), "{name}: {all:?}");
        }
        let yaml: String = all.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let output = ("output_dir".to_owned(), "out".to_owned());
        let again = Settings::from_yaml(&yaml, "settings.yaml", &[output]);
        let again = again.unwrap_or_else(|error| panic!("{yaml}: {error}"));
        again.validate(Purpose::Train).unwrap_or_else(|error| panic!("{yaml}: {error}"));
        assert_eq!((again.lora_r, again.learning_rate), (4, Some(0.01)));
        assert_eq!(again.rank_pattern, settings.rank_pattern);
        assert_eq!(again.model.as_deref(), Some("org/base"));
    }

    #[test]
    fn a_template_is_told_by_its_name_or_not_at_all() {
        let base = BaseName { name: "base".into(), revision: None, is_hub: false };
        for (given, told) in [
            ("phi-3.5", "phi-3.5"),
            ("chatml", "chatml"),
            ("tokenizer_default_fallback_chatml", "tokenizer_default_fallback_chatml"),
            ("tokenizer_default_fallback_mine", "tokenizer_default_fallback_path/to/template.jinja"),
            ("mine", "path/to/template.jinja"),
            ("a/b", "path/to/template.jinja"),
        ] {
            let settings = Settings { chat_template: Some(given.to_owned()), ..Settings::default() };
            assert_eq!(places(&settings, &base, &files(), &[])["chat_template"], told, "{given}");
        }
    }

    #[test]
    fn a_file_whose_name_would_be_a_pattern_is_told_by_a_word() {
        for name in ["data/x[0].jsonl", "data/st*r.jsonl", "data/q?.jsonl", "data/two\nlines.jsonl"] {
            let origin = DataSetFile { id: "org/rows".into(), commit: COMMIT.into(), file: name.into() };
            let file = TrainedFile { sha256: "01".into(), origin: Some(origin) };
            assert_eq!(named(std::slice::from_ref(&file), "rows"), serde_json::json!(["path/to/rows"]), "{name}");
            let two = [files()[0].clone(), file];
            let hub = format!("org/rows@{COMMIT}:data/a.jsonl");
            assert_eq!(named(&two, "rows"), serde_json::json!([hub, "path/to/rows-2"]), "{name}");
        }
    }

    #[test]
    fn what_decides_the_bits_is_told_in_words() {
        let recorded = serde_json::json!({"compute": "bf16, AMX"});
        assert_eq!(arithmetic(recorded.as_object().unwrap()), "bf16, AMX");
        assert_eq!(arithmetic(&Map::new()), "f32");
        assert_eq!(date(Timestamp::from_second(1_772_323_199).unwrap()), "2026-02-28");
        assert_eq!(summed(2, "by NCCL"), "of 2 processes were added up by NCCL");
        assert_eq!(summed(1, "by NCCL"), "of several processes were added up by NCCL");
    }

    #[test]
    fn the_lowest_loss_is_that_of_the_best_evaluation() {
        let entry = |step: u64, eval_loss: f64| LogEntry { eval_loss: Some(eval_loss), ..LogEntry::new(step, 0.0) };
        let history = [entry(1, 2.0), LogEntry::new(2, 0.0), entry(3, f64::NAN), entry(4, 0.5), entry(5, 0.5)];
        assert_eq!(lowest(&history), Some((4, 0.5)));
        assert_eq!(lowest(&history[1..2]), None);
    }
}
