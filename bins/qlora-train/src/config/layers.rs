//! From a settings file and flags to [`Settings`]: names are resolved, contradictions refused, flags win.

use std::collections::BTreeMap;
use std::path::Path;

use super::answers::SamplePrompts;
use super::compat::{DEFAULT_SPLIT, Foreign, SPLIT, SUBSET};
use super::datasets::{BY_TEMPLATE, OF_EACH, may_hold_validation, with_parts};
use super::enums::{Preset, Quantization, Scheduler};
use super::intervals::{Every, Resume};
use super::layer::{Fault, Given, Layer, apply, find, rejected};
use super::table::{SETTINGS, Settings};
use super::tools::{LENGTHS, Tool, WARM_UPS};
use super::types::{Reject, SettingValue, ValSet};
use super::yaml::{self, Document, Value};
use super::{idle, model_files};
use crate::error::{Error, Result};
use crate::files::home::expand_home;
use crate::files::json::shown;
use crate::hub::HubId;
use serde_json::Value as Json;

/// Pairs of settings that stand in for each other, so that a flag for one silences the file's other.
const INSTEAD: [(&str, &str); 2] = [("warmup_steps", "warmup_ratio"), ("val_data", "val_set_size")];

impl Settings {
    /// Defaults, then the preset, then the file, then the flags (`(name, value)`; any spelling of the name).
    ///
    /// Every value is checked, also one that a flag overrides. Refuses (exit status 2) everything that is wrong at
    /// once, with the place, the value and the expected values. [`Settings::validate`] checks that `model` and `data`
    /// are given at all.
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self> {
        Self::load_noting(file, overrides).map(|(settings, _)| settings)
    }

    /// [`Settings::load`] with notes for the user: keys without effect here, and values that were translated.
    pub fn load_noting(file: Option<&Path>, overrides: &[(String, String)]) -> Result<(Self, Vec<String>)> {
        let document = file.map(yaml::read_file).transpose()?.unwrap_or_default();
        merge(&document, overrides)
    }

    /// [`Settings::load`] from YAML text that messages call `name`.
    pub fn from_yaml(text: &str, name: &str, overrides: &[(String, String)]) -> Result<Self> {
        Self::from_yaml_noting(text, name, overrides).map(|(settings, _)| settings)
    }

    /// [`Settings::load_noting`] from YAML text that messages call `name`.
    pub fn from_yaml_noting(text: &str, name: &str, overrides: &[(String, String)]) -> Result<(Self, Vec<String>)> {
        merge(&yaml::parse(text, name)?, overrides)
    }
}

impl Settings {
    /// Takes values of settings, by their names, where these were not given. `place` is what errors call the values'
    /// source. Returns the settings that changed, in words. Refused: a value that a setting does not have.
    pub fn take_where_not_given(&mut self, place: &str, values: &[(&str, Json)]) -> Result<Vec<String>> {
        let (mut taken, rank) = (Vec::new(), self.lora_r);
        for (name, value) in values {
            if self.given.has(name) {
                continue;
            }
            let info = find(name);
            let before = info.value_in(self);
            let given = Given { place: format!("{place}: `{name}`"), value: value.into(), line: 0 };
            let flag = name.replace('_', "-");
            let refused = |why: String| Error::Refused(format!("{why}; `--{flag}` replaces it"));
            apply(info, &given, self).map_err(refused)?;
            let now = info.value_in(self);
            if now != before {
                taken.push(format!("{name} {}", shown(&now)));
            }
        }
        if let Some(scale) = self.given.scale.filter(|_| self.lora_r != rank) {
            self.lora_alpha = scale * self.lora_r as f64;
            taken.push(format!("lora_alpha {}", self.lora_alpha));
        }
        Ok(taken)
    }
}

/// Takes a tool's own defaults where nothing is given, and says which.
fn take_defaults(tool: &Tool, settings: &mut Settings, is_given: &dyn Fn(&str) -> bool) -> Option<String> {
    let mut taken = Vec::new();
    for &(name, text) in tool.defaults {
        let group = [LENGTHS, WARM_UPS].into_iter().find(|group| group.contains(&name));
        if group.map_or_else(|| is_given(name), |group| group.iter().any(|name| is_given(name))) {
            continue;
        }
        // It has no meaning where weights are not quantized.
        if name == "double_quant" && settings.quantization == Quantization::None {
            continue;
        }
        let given = Given { place: tool.name.to_owned(), value: Value::text(text), line: 0 };
        apply(find(name), &given, settings).expect("defaults are among the values");
        taken.push(format!("{name} {text}"));
    }
    if let Some(factor) = tool.alpha_over_r.filter(|_| !is_given("lora_alpha")) {
        settings.lora_alpha = factor * settings.lora_r as f64;
        taken.push(format!("lora_alpha {}", settings.lora_alpha));
    }
    let taken = taken.join(", ");
    (!taken.is_empty()).then(|| format!("as in {} where they are not given: {taken}", tool.name))
}

/// One refusal of all faults. Each stands on its own line, under "error:" from the second on, with its line of the
/// file.
fn refusal(faults: &[Fault], text: &str) -> Error {
    let mut lines = Vec::new();
    for fault in faults {
        let prefix = if lines.is_empty() { "" } else { "error: " };
        lines.push(format!("{prefix}{}", fault.message));
        lines.extend(yaml::snippet(text, fault.line, &fault.key));
    }
    Error::RefusedLines(lines)
}

fn merge(document: &Document, overrides: &[(String, String)]) -> Result<(Settings, Vec<String>)> {
    let mut file = Layer::from_entries(&document.entries, &document.name);
    let flags = Layer::from_flags(overrides);
    let silenced = |fault: &Fault| fault.silenced_by.is_some_and(|name| flags.silences.contains(&name));
    let stands = file.faults.into_iter().filter(|fault| !silenced(fault));
    let mut faults: Vec<Fault> = stands.chain(flags.faults).collect();
    for (one, other) in INSTEAD {
        if flags.given.contains_key(one) || flags.given.contains_key(other) {
            file.given.remove(one);
            file.given.remove(other);
        }
    }
    // Values for single entries are dropped with the entries.
    for (data, rows) in [("data", "data_rows"), ("val_data", "val_data_rows")] {
        if flags.given.contains_key(data) {
            file.given.remove(rows);
        }
    }
    for name in OF_EACH.iter().filter(|_| flags.given.contains_key("data")) {
        file.given.remove(name);
    }
    let mut all = file.weak;
    all.extend(file.given);
    // A weak value never overrides an explicit one.
    for (name, given) in flags.weak {
        all.entry(name).or_insert(given);
    }
    let other_data = flags.given.contains_key("data");
    all.extend(flags.given);
    let mut parts = if other_data { BTreeMap::new() } else { file.parts };
    parts.extend(flags.parts);
    parts.retain(|setting, part| part.value != Value::text(if *setting == SPLIT { DEFAULT_SPLIT } else { "" }));
    faults.extend(join_parts(&mut all, &parts).err());

    let mut notes = Vec::new();
    let adalora_rank = flags.adalora_rank.or(file.adalora_rank);
    notes.extend(adalora_rank.and_then(|rank| take_adalora_rank(rank, &mut all)));
    let mut settings = Settings::default();
    for info in SETTINGS {
        if let Some(given) = all.get(info.name)
            && let Err(message) = apply(info, given, &mut settings)
        {
            faults.push(Fault::new(message, info.name, given.line));
        }
    }
    // A flag for alpha wins over a scale of the file.
    let alpha_is_flag = all.get("lora_alpha").is_some_and(|alpha| alpha.line == 0);
    let scale = flags.scale.or(file.scale.filter(|_| !alpha_is_flag));
    settings.given.add(all.keys().copied().chain(scale.iter().map(|_| "lora_alpha")));
    let tool = Tool::of(&document.entries);
    if let Some(tool) = tool {
        let is_given = |name: &str| all.contains_key(name) || (name == "lora_alpha" && scale.is_some());
        notes.extend(take_defaults(tool, &mut settings, &is_given));
    }
    if let Some(scale) = scale {
        settings.given.scale = f64::read(&scale.value).ok();
        let alpha = settings.given.scale.unwrap_or_default() * settings.lora_r as f64;
        if let Some(given) = all.get("lora_alpha").filter(|given| f64::read(&given.value) != Ok(alpha)) {
            notes.push(format!("{}: without effect here, as {} gives alpha / r", given.place, scale.place));
        }
        let given = Given { value: Value::Float(alpha), ..scale };
        if let Err(message) = apply(find("lora_alpha"), &given, &mut settings) {
            faults.push(Fault::new(message, "scale", given.line));
        }
    }
    for (tool, (key, told)) in tool.iter().flat_map(|tool| tool.told_without.iter().map(move |told| (tool, told))) {
        if !document.entries.iter().any(|entry| entry.key == *key) {
            notes.push(format!("a file of {}: {told}", tool.name));
        }
    }
    if settings.preset == Some(Preset::Loraplus) && !all.contains_key("loraplus_lr_ratio") {
        settings.loraplus_lr_ratio = 16.0;
    }
    // evals_per_epoch and steps_per_eval stand in files that have no rows to validate on.
    let asked =
        all.get("eval_steps").is_some_and(|given| ["evals", "steps_per"].iter().any(|w| given.place.contains(w)));
    let prompts = settings.sample_prompts != SamplePrompts::None;
    let may_hold = settings.data.iter().any(|path| may_hold_validation(path));
    if asked && settings.val_set_size == ValSet::Off && settings.val_data.is_empty() && !prompts && !may_hold {
        settings.eval_steps = Every::Never;
    }
    faults.extend(one_warmup(&mut settings, &all));
    notes.extend(idle::notes(&settings, &all));
    if let (Some(own), Some(other)) = (&file.own_template, all.get("chat_template").filter(|given| given.line > 0)) {
        // Another data set has another type; a given template applies to the rows of both.
        let by_type = own.value == Value::text(BY_TEMPLATE[0]);
        let message = if by_type {
            format!(
                "{}: `type: chat_template` of one data set and `type: alpaca` of another ask for two chat templates, and a \
                 run has one: name one for all rows (`--chat-template`), or have a run for each",
                own.place
            )
        } else {
            format!(
                "{}: a data set asks for the model's own chat template, but {} chooses {}: keep one of them",
                own.place, other.place, other.value
            )
        };
        if !by_type || own.place == other.place {
            faults.push(Fault::new(message, "chat_template", own.line));
        }
    }
    if settings.val_set_size != ValSet::Off && !settings.val_data.is_empty() {
        let given = &all["val_set_size"];
        let message = format!("{}: {}", given.place, clash("val_set_size", "val_data", &all["val_data"].place));
        faults.push(Fault::new(message, "val_set_size", given.line));
    }
    // It is resolved here, so that the recorded path of the base can be found later.
    settings.model = settings.model.map(|model| expand_home(Path::new(&model)).to_string_lossy().into_owned());
    faults.extend(split_revision(&mut settings).err());
    notes.extend(leave_out_revision(&mut settings));
    let turned_off = |name: &str| flags.silences.contains(&name);
    let last_layers = flags.last_layers.or(file.last_layers.filter(|_| !turned_off("num_layers")));
    settings.given.add(last_layers.iter().map(|_| "layers_to_transform"));
    if let Some(given) = last_layers {
        match transform_last(&given, &all, &mut settings) {
            Ok(note) => notes.extend(note),
            Err(fault) => faults.push(fault),
        }
    }
    let tokens = file.tokens.iter().filter(|(foreign, _)| !turned_off(foreign.name));
    faults.extend(tokens.filter_map(|(foreign, given)| lacks_token(foreign, given, settings.model.as_deref())));
    faults.extend(nothing_to_ask(&settings, &all));
    let Settings { output_dir, init_adapter, logging_dir, scratch_dir, tokenized_cache, quantized_cache, .. } =
        &mut settings;
    let paths = [output_dir, init_adapter, logging_dir, scratch_dir, tokenized_cache, quantized_cache];
    for path in paths.into_iter().flatten() {
        *path = expand_home(path);
    }
    if let Resume::From(path) = &mut settings.resume_from_checkpoint {
        *path = expand_home(path);
    }
    if let SamplePrompts::File(path) = &mut settings.sample_prompts {
        *path = expand_home(path);
    }
    if !faults.is_empty() {
        return Err(refusal(&faults, &document.text));
    }
    let mut notes: Vec<String> = file.notes.into_iter().chain(flags.notes).chain(notes).collect();
    let no_effect: Vec<String> =
        file.no_effect.iter().chain(&flags.no_effect).map(|name| format!("`{name}`")).collect();
    if !no_effect.is_empty() {
        notes.push(format!("without effect here: {}", no_effect.join(", ")));
    }
    Ok((settings, notes))
}

/// Replaces the rank of LoRA by ms-swift's rank of AdaLoRA where ranks are pruned. Returns a note for the user.
fn take_adalora_rank(rank: Given, all: &mut BTreeMap<&'static str, Given>) -> Option<String> {
    let is_adalora = all.get("use_adalora").is_some_and(|given| bool::read(&given.value) == Ok(true));
    let of_lora = all.get("lora_r");
    // A flag for the rank wins over the file.
    if !is_adalora || of_lora.is_some_and(|given| given.line == 0 && rank.line > 0) {
        return None;
    }
    let other = of_lora.filter(|given| usize::read(&given.value) != usize::read(&rank.value));
    let note = other.map(|other| format!("{}: without effect here, as {} gives the rank", other.place, rank.place));
    all.insert("lora_r", rank);
    note
}

fn clash(one: &str, other: &str, place: &str) -> String {
    format!("`{one}` stands in for `{other}`, which {place} gives as well: keep one of them")
}

/// Puts subset and split of a data set of the hub into the value of `data` that they stand beside.
fn join_parts(all: &mut BTreeMap<&'static str, Given>, parts: &BTreeMap<&'static str, Given>) -> Result<(), Fault> {
    let Some((setting, part)) = parts.first_key_value() else { return Ok(()) };
    let key = if *setting == SUBSET { "dataset_config" } else { "dataset_train_split" };
    let fault = |reject| Fault::new(rejected(&part.place, &part.value, "a part of the data", reject), key, part.line);
    let Some(data) = all.get_mut("data") else {
        return Err(fault(Reject::Because("found no data set beside it, expected its id on the hub".to_owned())));
    };
    let named: Vec<(&str, &Value)> =
        parts.iter().map(|(setting, part)| (setting.trim_start_matches("data."), &part.value)).collect();
    data.value = with_parts(&data.value, &named).map_err(fault)?;
    Ok(())
}

/// Gives adapters to the last layers alone, by their numbers in the model.
fn transform_last(
    given: &Given,
    all: &BTreeMap<&'static str, Given>,
    settings: &mut Settings,
) -> Result<Option<String>, Fault> {
    let count = usize::read(&given.value).unwrap_or_default();
    let fault = |message: String| {
        let key = if given.place.contains("lora_layers") { "lora_layers" } else { "num_layers" };
        Fault { silenced_by: Some("num_layers"), ..Fault::new(message, key, given.line) }
    };
    if let Some(other) = all.get("layers_to_transform") {
        // A flag that names layers wins over a count of the file.
        return match other.line == 0 && given.line > 0 {
            true => Ok(None),
            false => Err(fault(format!(
                "{}: found {}, but {} names the layers: keep one of them",
                given.place, given.value, other.place
            ))),
        };
    }
    let Some(layers) = settings.model.as_deref().and_then(model_files::layers) else {
        return Err(fault(format!(
            "{}: found {}, which counts from the end of the model, and no directory of it says how many layers it has: \
             give their numbers as `layers_to_transform`, or `--num-layers false` for all",
            given.place, given.value
        )));
    };
    if count >= layers {
        return Ok(None);
    }
    let numbers = Value::List((layers - count..layers).map(|layer| Value::Int(layer as i128)).collect());
    let numbers = Given { value: numbers, ..given.clone() };
    apply(find("layers_to_transform"), &numbers, settings).map_err(fault)?;
    let shown = if count == 1 { "layer gets" } else { "layers get" };
    Ok(Some(format!("{}: the last {count} of {layers} {shown} adapters", given.place)))
}

/// The fault of a listed token that the model's tokenizer lacks, or of a tokenizer that cannot be read.
fn lacks_token(foreign: &Foreign, given: &Given, model: Option<&str>) -> Option<Fault> {
    let Value::List(items) = &given.value else { return None };
    let (place, flag) = (&given.place, foreign.name.replace('_', "-"));
    let fault = |what: String| {
        let message = format!("{place}: found {what}; `--{flag} false` leaves it out");
        Some(Fault::new(message, foreign.name, given.line))
    };
    let Some(known) = model.and_then(model_files::added_tokens) else {
        let value = &given.value;
        return fault(format!(
            "{value}, and no directory of the model says whether its tokenizer has them all, as is needed"
        ));
    };
    let missing = items.iter().find(|item| !matches!(item, Value::Str(token) if known.contains(token)))?;
    let why = "which is none of the added tokens in the model's tokenizer.json, and adding tokens is not supported yet";
    fault(format!("{missing}, {why}"))
}

/// The fault of `eval_answers` without validation rows.
fn nothing_to_ask(settings: &Settings, all: &BTreeMap<&'static str, Given>) -> Option<Fault> {
    let given = all.get("eval_answers").filter(|_| settings.eval_answers > 0 && !settings.data.is_empty())?;
    let may_hold = settings.data.iter().any(|path| may_hold_validation(path));
    if settings.val_set_size != ValSet::Off || !settings.val_data.is_empty() || may_hold {
        return None;
    }
    let key =
        given.place.rsplit('`').nth(1).unwrap_or("eval_answers").rsplit('.').next().unwrap_or_default().to_owned();
    let message = format!(
        "{}: found {}, but `eval_answers` needs rows to ask: give `val_data` or `val_set_size` as well",
        given.place, given.value
    );
    Some(Fault::new(message, key, given.line))
}

/// Puts the revision of `model: org/name@revision` into `revision`.
fn split_revision(settings: &mut Settings) -> Result<(), Fault> {
    let named = settings.model.as_deref().filter(|model| model.contains('@') && !Path::new(model).exists());
    let Some(id) = named.and_then(HubId::parse) else { return Ok(()) };
    let id = id.at(settings.revision.as_deref()).map_err(|error| Fault::new(error.to_string(), "revision", 0))?;
    (settings.model, settings.revision) = (Some(id.name), id.revision);
    Ok(())
}

/// Removes a revision that is the hub's default branch if the model is a directory. Returns a note for the user.
fn leave_out_revision(settings: &mut Settings) -> Option<String> {
    let dir = settings.model.as_deref().filter(|model| Path::new(model).is_dir())?;
    let note = format!("{dir}: a directory has no revisions, so `revision: main` is left out");
    settings.revision.take_if(|revision| revision.as_str() == "main").map(|_| note)
}

/// Leaves at most one of `warmup_ratio` and `warmup_steps` in force, so that the resolved settings are unambiguous.
fn one_warmup(settings: &mut Settings, all: &BTreeMap<&'static str, Given>) -> Option<Fault> {
    let ratio_given = all.get("warmup_ratio");
    match settings.warmup_steps {
        // transformers reads `warmup_steps: 0` beside a ratio as "see the ratio".
        Some(0.0) if ratio_given.is_some() => settings.warmup_steps = None,
        Some(steps) => {
            if let Some(ratio) = ratio_given.filter(|_| settings.warmup_ratio != 0.0) {
                let given = &all["warmup_steps"];
                let message = format!("{}: {}", given.place, clash("warmup_steps", "warmup_ratio", &ratio.place));
                return Some(Fault::new(message, "warmup_steps", given.line));
            }
            let is_ratio = steps < 1.0;
            settings.warmup_ratio = if is_ratio { steps } else { 0.0 };
            settings.warmup_steps = (!is_ratio).then_some(steps);
        }
        None => {}
    }
    if settings.lr_scheduler_type == Scheduler::Constant {
        (settings.warmup_ratio, settings.warmup_steps) = (0.0, None);
    }
    None
}
