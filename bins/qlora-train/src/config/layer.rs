//! One source of settings, a file or the flags: its values by the settings' own names.

use std::collections::BTreeMap;

use super::compat::{ADALORA_RANK, LAST_LAYERS, LORA_SCALE, SPLIT, SUBSET};
use super::compat::{Foreign, Heard, Implied, Known, Treatment, is_section, lookup, normal};
use super::dataset_info;
use super::datasets::{OF_EACH, OWN_TEMPLATE, data_faults, data_implies};
use super::role_names::RoleNames;
use super::suggest::{shortened, suggestion};
use super::table::{SETTINGS, SettingInfo, Settings};
use super::template_names::{self, own_template};
use super::tools::{self, LLAMA_FACTORY, Tool};
use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::{Entry, Value};

/// A value and how a message names its place: ``cfg.yaml line 3: `lora.rank` `` or `` `--lora-rank` ``.
#[derive(Clone)]
pub struct Given {
    pub place: String,
    pub value: Value,
    /// In the settings file; 0 for a flag.
    pub line: u64,
}

/// The reason why a key or value was not accepted.
pub struct Fault {
    pub message: String,
    pub key: String,
    pub line: u64,
    /// A flag of this setting or key removes the fault.
    pub silenced_by: Option<&'static str>,
}

impl Fault {
    pub fn new(message: String, key: impl Into<String>, line: u64) -> Self {
        Self { message, key: key.into(), line, silenced_by: None }
    }
}

/// Values from one file or from the flags, by the settings' own names.
#[derive(Default)]
pub struct Layer {
    pub given: BTreeMap<&'static str, Given>,
    pub weak: BTreeMap<&'static str, Given>,
    /// mlx-lm's scale, which is alpha / r.
    pub scale: Option<Given>,
    /// Count of layers from the end that get adapters, as mlx-lm has it
    pub last_layers: Option<Given>,
    /// The rank that AdaLoRA begins with, as ms-swift has it
    pub adalora_rank: Option<Given>,
    /// Lists of tokens that the tokenizer must have already, because nothing adds them
    pub tokens: Vec<(&'static Foreign, Given)>,
    /// A data set that asks for the model's own chat template
    pub own_template: Option<Given>,
    /// Subset and split of the data set, where they stand beside it
    pub parts: BTreeMap<&'static str, Given>,
    /// Keys that change nothing here, as they were written.
    pub no_effect: Vec<String>,
    pub notes: Vec<String>,
    pub faults: Vec<Fault>,
    /// Settings and keys of flags, which remove the faults of a file
    pub silences: Vec<&'static str>,
}

pub fn rejected(place: &str, value: &Value, expected: &str, reject: Reject) -> String {
    match reject {
        Reject::Wrong => format!("{place}: found {value}, expected {expected}"),
        Reject::NotYet(name) => format!("{place}: `{name}` is not supported yet, expected {expected}"),
        Reject::Because(sentence) => format!("{place}: {sentence}"),
    }
}

impl Layer {
    /// Takes one key. One that is not accepted becomes a fault, so that all faults are reported together.
    fn add(&mut self, name: &str, given: Given) {
        let line = given.line;
        let silenced_by = silenced_by(name);
        if let Some(Known::Setting(info)) = lookup(name)
            && (info.name == "data" || info.name == "val_data")
        {
            let wrong = data_faults(&given.value);
            for fault in &wrong {
                // The key's own line, where the file's lines are known.
                let at = if fault.line > 0 { fault.line } else { line };
                let place = given.place.replacen(&format!(" line {line}: "), &format!(" line {at}: "), 1);
                let message = rejected(&place, &given.value, info.values, fault.why.clone());
                self.faults.push(Fault { message, key: fault.key.clone(), line: at, silenced_by });
            }
            if !wrong.is_empty() {
                return;
            }
        }
        match self.try_add(name, given) {
            Err(message) => {
                let key = name.rsplit('.').next().unwrap_or(name).to_owned();
                self.faults.push(Fault { message, key, line, silenced_by });
            }
            Ok(()) => self.silences.extend(silenced_by.filter(|_| line == 0)),
        }
    }

    fn try_add(&mut self, name: &str, given: Given) -> Result<(), String> {
        let Given { place, value, line } = &given;
        match lookup(name) {
            // Null means that the key is not given.
            Some(Known::Setting(_) | Known::Derived(_)) if *value == Value::Null => Ok(()),
            // Axolotl's and LLaMA-Factory's names of the model's own template.
            Some(Known::Setting(info)) if info.name == "chat_template" && own_template(value) => Ok(()),
            Some(Known::Setting(info)) if info.name == "gradient_checkpointing" && is_unsloth(value) => {
                let told = "`unsloth` is read as `true`: activations are recomputed; `offload` keeps what they are \
                            recomputed from in host memory too";
                self.notes.push(format!("{place}: {told}"));
                self.insert(info, Given { value: Value::Bool(true), ..given })
            }
            Some(Known::Setting(info)) => {
                if info.name == "chat_template" {
                    template_names::check(value).map_err(|reject| rejected(place, value, info.values, reject))?;
                }
                if info.name == "data" || info.name == "val_data" {
                    for implied in data_implies(value).map_err(|r| rejected(place, value, info.values, r))? {
                        if info.name == "val_data" && OF_EACH.contains(&implied.setting) {
                            let what = "weights and counts apply to training rows only: leave them out of val_data";
                            return Err(format!("{place}: {what}"));
                        }
                        self.imply(implied, place, *line)?;
                    }
                }
                self.insert(info, given)
            }
            Some(Known::Derived(derived)) => {
                let implied = (derived.read)(value).map_err(|r| rejected(place, value, derived.values, r))?;
                implied.map_or(Ok(()), |implied| self.imply(implied, place, *line))
            }
            Some(Known::Foreign(foreign)) if TOKEN_LISTS.contains(&foreign.name) && is_list_of_text(value) => {
                self.tokens.push((foreign, given));
                Ok(())
            }
            Some(Known::Foreign(foreign)) => {
                let section = section_of_text(foreign.name, value);
                let value = section.as_ref().unwrap_or(value);
                if foreign.name == "dataset_kwargs"
                    && let Some(told) = told_of_preparing(value)
                {
                    self.notes.extend(told.map(|told| format!("{place}: {told}")));
                    return Ok(());
                }
                let heard = foreign.check(value).map_err(|why| match foreign.treatment {
                    Treatment::Instead => format!("{place} {why}"),
                    Treatment::Off if *line > 0 => {
                        format!("{place}: {why}; `--{} false` leaves it out", foreign.name.replace('_', "-"))
                    }
                    _ => format!("{place}: {why}"),
                })?;
                match heard {
                    Heard::Nothing => {}
                    Heard::NoEffect => self.no_effect.push(shortened(name)),
                    Heard::Note(note) => self.notes.push(format!("{place}: found {value}, but {note}")),
                }
                Ok(())
            }
            None => Err(match suggestion(name, *line == 0) {
                Some(meant) => format!("{place} is not a known setting; did you mean {meant}?"),
                None => format!("{place} is not a known setting; `qlora-train train --help` lists them"),
            }),
        }
    }

    fn imply(&mut self, implied: Implied, place: &str, line: u64) -> Result<(), String> {
        let Implied { setting, value, weak, note } = implied;
        let told = format!("{place}: {note}");
        // Several data sets with the same key give one note.
        if !note.is_empty() && !self.notes.contains(&told) {
            self.notes.push(told);
        }
        let given = Given { place: place.to_owned(), value, line };
        if setting == LORA_SCALE {
            self.scale = Some(given);
            return Ok(());
        }
        if setting == LAST_LAYERS {
            self.last_layers = Some(given);
            return Ok(());
        }
        if setting == ADALORA_RANK {
            self.adalora_rank = Some(given);
            return Ok(());
        }
        if setting == OWN_TEMPLATE {
            self.own_template = Some(given);
            return Ok(());
        }
        if [SUBSET, SPLIT].contains(&setting) {
            self.parts.insert(setting, given);
            return Ok(());
        }
        if weak {
            self.weak.insert(setting, given);
            return Ok(());
        }
        self.insert(find(setting), given)
    }

    fn insert(&mut self, info: &'static SettingInfo, given: Given) -> Result<(), String> {
        let mut scratch = Settings::default();
        apply(info, &given, &mut scratch)?;
        let json = (info.get)(&scratch);
        if let Some(before) = self.given.get(info.name) {
            apply(info, before, &mut scratch)?;
            if (info.get)(&scratch) != json {
                let joined = if info.name == "roles" { RoleNames::joined(&before.value, &given.value) } else { None };
                if let Some(value) = joined {
                    self.given.insert(info.name, Given { value, ..given });
                    return Ok(());
                }
                return Err(format!(
                    "{}: found {}, but {} already gave `{}` the value {}: keep one of them",
                    given.place, given.value, before.place, info.name, before.value
                ));
            }
            return Ok(());
        }
        self.given.insert(info.name, given);
        Ok(())
    }

    pub fn from_entries(entries: &[Entry], file: &str) -> Self {
        let mut layer = Layer::default();
        if let Some(line) = tools::torchtune_component(entries) {
            let message = format!(
                "{file} line {line}: `_component_` is a call of torchtune, whose files are not read: give `model`, \
                 `data` and `output_dir`, and `lora_r`, `lora_alpha`, `learning_rate` and the others as \
                 `qlora-train init` writes them"
            );
            layer.faults.push(Fault::new(message, "_component_", line));
            return layer;
        }
        if Tool::of(entries).is_none_or(|tool| !std::ptr::eq(tool, &LLAMA_FACTORY)) {
            layer.add_section(entries, file, None);
            return layer;
        }
        let dir = entries.iter().find(|entry| entry.key == "dataset_dir").map(|entry| &entry.value);
        let dir = dir.and_then(|dir| String::read(dir).ok()).unwrap_or_else(|| dataset_info::DEFAULT_DIR.to_owned());
        let (mut explained, mut is_read) = (entries.to_vec(), false);
        for entry in explained.iter_mut().filter(|entry| ["dataset", "eval_dataset"].contains(&entry.key.as_str())) {
            match dataset_info::data_sets(&entry.value, &dir) {
                Ok((sets, notes)) => {
                    let place = format!("{file} line {}: `{}`", entry.line, entry.key);
                    layer.notes.extend(notes.into_iter().map(|note| format!("{place}: {note}")));
                    is_read |=
                        matches!(&sets, Value::List(sets) if sets.iter().any(|set| matches!(set, Value::Map(_))));
                    entry.value = sets;
                }
                Err(why) => {
                    let message = format!("{file} line {}: `{}`: {why}", entry.line, entry.key);
                    let silenced_by = silenced_by(&entry.key);
                    layer.faults.push(Fault { silenced_by, ..Fault::new(message, entry.key.clone(), entry.line) });
                    entry.value = Value::Null;
                }
            }
        }
        layer.add_section(&explained, file, None);
        layer.no_effect.retain(|key| !is_read || key != "dataset_dir");
        layer
    }

    fn add_section(&mut self, entries: &[Entry], file: &str, section: Option<&str>) {
        let of_model =
            |entry: &&Entry| matches!(lookup(&entry.key), Some(Known::Setting(info)) if info.name == "model");
        let model = entries.iter().find(of_model).map(|entry| &entry.value);
        for Entry { key, line, value } in entries {
            // Axolotl's names of the directories of config and tokenizer, which are the model's.
            if ["tokenizer_config", "base_model_config"].contains(&key.as_str()) && model == Some(value) {
                continue;
            }
            // ms-swift's keys for a model's description of itself.
            let of_swift = key == "model_name" && entries.iter().any(|entry| entry.key == "model_author");
            if of_swift && entries.iter().any(|entry| entry.key == "model") {
                self.no_effect.push(key.clone());
                continue;
            }
            let name = section.map_or_else(|| key.clone(), |section| format!("{section}.{key}"));
            match value {
                Value::Map(inner) if section.is_none() && is_section(&normal(key)) => {
                    self.add_section(inner, file, Some(key));
                }
                // `lora:` with nothing under it; where the name is a setting too, the setting decides about the null.
                Value::Null if section.is_none() && is_section(&normal(key)) && lookup(key).is_none() => {}
                value => {
                    let place = format!("{file} line {line}: `{}`", shortened(&name));
                    self.add(&name, Given { place, value: value.clone(), line: *line });
                }
            }
        }
    }

    pub fn from_flags(flags: &[(String, String)]) -> Self {
        // Repeating the flag of a list adds to it.
        let mut lists: BTreeMap<&'static str, Given> = BTreeMap::new();
        let mut layer = Layer::default();
        for (name, text) in flags {
            let place = format!("`--{}`", shortened(&normal(name).replace('_', "-")));
            let value = Value::text(text);
            match lookup(name) {
                Some(Known::Setting(info)) if info.list && !is_unset(&value) => {
                    let list =
                        lists.entry(info.name).or_insert(Given { place, value: Value::List(Vec::new()), line: 0 });
                    if let Value::List(items) = &mut list.value {
                        items.push(value);
                    }
                }
                _ => layer.add(name, Given { place, value, line: 0 }),
            }
        }
        for (name, mut given) in lists {
            // One flag is one text, which may be a regular expression; an entry of a list is a name.
            if let Value::List(items) = &given.value
                && let [one] = &items[..]
                && name == "lora_target_modules"
            {
                given.value = one.clone();
            }
            layer.add(name, given);
        }
        layer
    }
}

/// The flag that overrides a key of the file even if the file's value is at fault: for the rows, which are then
/// elsewhere; for the chat template, whose name may be another trainer's; and for missing features, which it turns off.
/// A wrong value of another setting is a fault whatever the flags say.
fn silenced_by(name: &str) -> Option<&'static str> {
    match lookup(name)? {
        Known::Foreign(foreign) if foreign.treatment == Treatment::Off => Some(foreign.name),
        Known::Setting(info) if ["data", "val_data", "chat_template"].contains(&info.name) => Some(info.name),
        Known::Derived(derived) => match derived.names[0] {
            "template" => Some("chat_template"),
            "enable_thinking" => Some("enable_thinking"),
            "num_layers" => Some("num_layers"),
            _ => None,
        },
        _ => None,
    }
}

/// Keys that add tokens, or name those that end turns: they change nothing if the tokenizer has the tokens.
const TOKEN_LISTS: [&str; 2] = ["tokens", "eot_tokens"];

fn is_list_of_text(value: &Value) -> bool {
    matches!(value, Value::List(items) if !items.is_empty() && items.iter().all(|item| matches!(item, Value::Str(_))))
}

/// A section that is given as the JSON of an object, as flags and some files have it.
fn section_of_text(name: &str, value: &Value) -> Option<Value> {
    let Value::Str(text) = value else { return None };
    if !name.ends_with("_kwargs") || !text.trim_start().starts_with('{') {
        return None;
    }
    serde_json::from_str::<serde_json::Value>(text).ok().map(|json| Value::from(&json))
}

/// A note on TRL's arguments for preparing rows, if they ask for what is done here with rows of turns anyway. None:
/// they ask for something else.
fn told_of_preparing(value: &Value) -> Option<Option<&'static str>> {
    let Value::Map(entries) = value else { return None };
    let tokens = |entry: &Entry| ["add_special_tokens", "append_concat_token"].contains(&entry.key.as_str());
    let asks_nothing = |entry: &Entry| is_off(&entry.value) && (entry.key == "skip_prepare_dataset" || tokens(entry));
    let told = "the chat template alone writes the special tokens of rows of turns, so this changes nothing in them; \
                rows of plain text keep theirs";
    entries.iter().all(asks_nothing).then(|| entries.iter().any(tokens).then_some(told))
}

/// True for Unsloth's own checkpointing, which keeps activations in host memory.
fn is_unsloth(value: &Value) -> bool {
    matches!(value, Value::Str(text) if text.trim().eq_ignore_ascii_case("unsloth"))
}

pub fn find(name: &str) -> &'static SettingInfo {
    SETTINGS.iter().find(|info| info.name == name).expect("names in code are names of the table")
}

pub fn apply(info: &SettingInfo, given: &Given, settings: &mut Settings) -> Result<(), String> {
    (info.set)(settings, &given.value).map_err(|reject| rejected(&given.place, &given.value, info.values, reject))
}
