//! Keys of other trainers' files that are no settings here: they are read, checked and either accepted or refused by
//! name, never ignored silently.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use super::gpus;
use super::table::{SETTINGS, SettingInfo};
use super::template_names;
use super::types::{Reject, SettingValue, is_auto, is_off, is_unset};
use super::yaml::Value;

/// Treatment of a key that other trainers have and this one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It has one possible value here, under the names listed.
    Only,
    /// A missing feature: a value that turns it off passes, any other is refused.
    Off,
    /// It cannot change an adapter: every value passes, with a note if it asks for something.
    NoEffect,
    /// It has one possible value here; others pass, with a note on what is done instead.
    Told,
    /// A word that people try: refused, with the setting that does it here.
    Instead,
}

/// Note on a key that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    NoEffect,
    Note(&'static str),
}

/// A key of another trainer, from `foreign_keys.txt`.
#[derive(Debug)]
pub struct Foreign {
    pub name: &'static str,
    pub treatment: Treatment,
    /// Values, in lower case, that ask for nothing, beside those that turn it off.
    pub neutral: Vec<&'static str>,
    /// Empty, or a clause that says what to do.
    pub advice: &'static str,
}

pub static FOREIGN: LazyLock<Vec<Foreign>> = LazyLock::new(|| parse_foreign(include_str!("foreign_keys.txt")));

/// Lines of `names [= neutral | values] [; advice]` under headings in brackets.
fn parse_foreign(text: &'static str) -> Vec<Foreign> {
    let mut keys = Vec::new();
    let mut treatment = Treatment::Off;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line {
            "[only]" => treatment = Treatment::Only,
            "[off]" => treatment = Treatment::Off,
            "[no effect]" => treatment = Treatment::NoEffect,
            "[told]" => treatment = Treatment::Told,
            "[instead]" => treatment = Treatment::Instead,
            line => {
                let (rest, advice) = line.split_once(';').unwrap_or((line, ""));
                let (names, values) = rest.split_once('=').unwrap_or((rest, ""));
                let neutral: Vec<&str> = values.split('|').map(str::trim).filter(|value| !value.is_empty()).collect();
                let foreign = |name| Foreign { name, treatment, neutral: neutral.clone(), advice: advice.trim() };
                keys.extend(names.split_whitespace().map(foreign));
            }
        }
    }
    keys
}

impl Foreign {
    /// True if the value asks for nothing that is not done here anyway.
    fn is_neutral(&self, value: &Value) -> bool {
        let listed = |value: &Value| self.neutral.contains(&plain(value).as_str());
        // `auto` leaves the choice to a trainer that does not have the feature.
        let has_off = !matches!(self.treatment, Treatment::Only | Treatment::Told);
        // A section of arguments for another library, where `false` has a meaning.
        let handed_on = matches!(value, Value::Map(entries) if !entries.is_empty()) && self.name.ends_with("_kwargs");
        let off = has_off && !handed_on && (is_off(value) || is_auto(value));
        match value {
            Value::Null => true,
            Value::List(items) if !items.is_empty() => off || items.iter().all(listed),
            value => off || listed(value),
        }
    }

    /// Checks a value; returns the note for one that is not refused.
    pub fn check(&self, value: &Value) -> Result<Heard, String> {
        let asks = self.treatment != Treatment::Instead || *value == Value::Null;
        if asks && self.is_neutral(value) {
            return Ok(Heard::Nothing);
        }
        let advice = if self.advice.is_empty() { String::new() } else { format!(": {}", self.advice) };
        match self.treatment {
            Treatment::NoEffect => Ok(Heard::NoEffect),
            Treatment::Told => Ok(Heard::Note(self.advice)),
            Treatment::Only => {
                let only = self.neutral.join("` or `");
                let advice = if self.advice.is_empty() { ": this trainer has nothing else" } else { &advice };
                Err(format!("found {value}, expected `{only}`{advice}"))
            }
            Treatment::Off if self.advice.is_empty() => {
                Err(format!("found {value}, but this setting is not supported yet: remove it or turn it off"))
            }
            Treatment::Off => Err(format!("found {value}, but this setting is not supported yet{advice}")),
            Treatment::Instead => Err(format!("is not a setting{advice}")),
        }
    }
}

/// A value as the table writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::Str(s) => s.trim().to_lowercase(),
        other => other.to_string().trim_matches('`').to_lowercase(),
    }
}

/// A key of another trainer that implies one of our settings.
pub struct Derived {
    pub names: &'static [&'static str],
    pub switch: bool,
    pub values: &'static str,
    /// None: it implies nothing.
    pub read: fn(&Value) -> Result<Option<Implied>, Reject>,
}

pub struct Implied {
    pub setting: &'static str,
    pub value: Value,
    /// Applies only where nothing else gives the setting.
    pub weak: bool,
    /// Empty, or a note for the user.
    pub note: Cow<'static, str>,
}

impl Implied {
    pub fn new(setting: &'static str, value: Value) -> Self {
        Self { setting, value, weak: false, note: Cow::Borrowed("") }
    }

    pub fn weak(setting: &'static str, value: Value) -> Self {
        Self { weak: true, ..Self::new(setting, value) }
    }
}

fn quantization(value: &'static str, weak: bool) -> Result<Option<Implied>, Reject> {
    Ok(Some(Implied { weak, ..Implied::new("quantization", Value::text(value)) }))
}

fn strategy(setting: &'static str, value: &Value) -> Result<Option<Implied>, Reject> {
    let text = if is_off(value) { "no".to_owned() } else { String::read(value)?.trim().to_ascii_lowercase() };
    match text.as_str() {
        "steps" => Ok(None),
        "no" => Ok(Some(Implied::new(setting, Value::text("0")))),
        "epoch" => Ok(Some(Implied::new(setting, Value::text("epoch")))),
        "best" => Err(Reject::NotYet("best")),
        _ => Err(Reject::Wrong),
    }
}

/// A whole number of times in each epoch, as `save_steps` and `eval_steps` take it.
fn per_epoch(setting: &'static str, value: &Value, weak: bool) -> Result<Option<Implied>, Reject> {
    if is_off(value) {
        return Ok(None);
    }
    match u64::read(value)? {
        times @ 1..=1_000_000 => {
            Ok(Some(Implied { weak, ..Implied::new(setting, Value::text(format!("{times} per epoch"))) }))
        }
        _ => Err(Reject::Wrong),
    }
}

/// Name for alpha / r, which becomes alpha once r is known.
pub const LORA_SCALE: &str = "lora.scale";

/// Name for mlx-lm's count of layers from the end, which becomes layer numbers once the model is known.
pub const LAST_LAYERS: &str = "lora.last_layers";

/// Name for ms-swift's initial rank of AdaLoRA, which it has beside the rank of LoRA.
pub const ADALORA_RANK: &str = "lora.adalora_rank";

/// Names for the subset and the split of a data set of the hub, where they are given beside its id.
pub const SUBSET: &str = "data.name";
pub const SPLIT: &str = "data.split";

/// The split that is meant where none is named.
pub const DEFAULT_SPLIT: &str = "train";

/// A name that is part of the data set beside it. The default counts as well: as a flag it replaces the file's.
fn part_of_data(setting: &'static str, value: &Value, default: &str) -> Result<Option<Implied>, Reject> {
    let text = if is_unset(value) { default.to_owned() } else { String::read(value)? };
    Ok(Some(Implied::new(setting, Value::text(text.trim()))))
}

pub const DERIVED: &[Derived] = &[
    Derived {
        names: &["gpu"],
        switch: false,
        values: "the name of a GPU, such as l40s, a100-40gb or \"NVIDIA GeForce RTX 4090\"",
        read: |value| {
            let name = match value {
                Value::Int(number) => number.to_string(),
                value => String::read(value)?,
            };
            let chosen = gpus::choose(&name).map_err(|why| Reject::Because(format!("found {value}, {why}")))?;
            Ok(Some(Implied { note: chosen.note.into(), ..Implied::new("device_memory", Value::text(chosen.memory)) }))
        },
    },
    Derived {
        names: &[LORA_SCALE],
        switch: false,
        values: "a number above 0: alpha / r",
        read: |value| match f64::read(value)? {
            scale if scale > 0.0 => Ok(Some(Implied::new(LORA_SCALE, value.clone()))),
            _ => Err(Reject::Wrong),
        },
    },
    // mlx-lm counts from the end of the model; -1, or more layers than there are, means all.
    Derived {
        names: &["num_layers", "lora_layers"],
        switch: false,
        values: "a count of layers, or -1 for all",
        read: |value| {
            let says_all = matches!(value, Value::Str(text) if text.trim().eq_ignore_ascii_case("all"));
            if is_off(value) || says_all || f64::read(value) == Ok(-1.0) {
                return Ok(None);
            }
            usize::read(value).map(|_| Some(Implied::new(LAST_LAYERS, value.clone())))
        },
    },
    Derived {
        names: &["adalora_init_r"],
        switch: false,
        values: "an integer from 1 to 256",
        read: |value| match usize::read(value)? {
            1..=256 => Ok(Some(Implied::new(ADALORA_RANK, value.clone()))),
            _ => Err(Reject::Wrong),
        },
    },
    Derived {
        names: &["fine_tune_type"],
        switch: false,
        values: "lora or dora",
        read: |value| match String::read(value)?.trim() {
            "lora" => Ok(None),
            "dora" => Ok(Some(Implied::new("use_dora", Value::Bool(true)))),
            _ => Err(Reject::Wrong),
        },
    },
    // TRL's names of the two arguments that `load_dataset` takes beside the id.
    Derived {
        names: &["dataset_config"],
        switch: false,
        values: "the name of a subset of a data set on the hub",
        read: |value| part_of_data(SUBSET, value, ""),
    },
    Derived {
        names: &["dataset_train_split"],
        switch: false,
        values: "the name of a split of a data set on the hub",
        read: |value| part_of_data(SPLIT, value, DEFAULT_SPLIT),
    },
    Derived {
        names: &["use_tensorboard", "enable_tensorboard"],
        switch: true,
        values: "true or false",
        read: |value| {
            let wanted = !is_off(value) && bool::read(value)?;
            Ok(wanted.then(|| Implied::new("report_to", Value::text("tensorboard"))))
        },
    },
    Derived {
        names: &["saves_per_epoch"],
        switch: false,
        values: "a count of checkpoints in each epoch",
        read: |value| per_epoch("save_steps", value, false),
    },
    // Axolotl does not evaluate without validation rows, whatever this says.
    Derived {
        names: &["evals_per_epoch"],
        switch: false,
        values: "a count of evaluations in each epoch",
        read: |value| per_epoch("eval_steps", value, true),
    },
    Derived {
        names: &["steps_per_eval"],
        switch: false,
        values: "a count of steps",
        read: |value| Ok(Some(Implied::weak("eval_steps", value.clone()))),
    },
    Derived {
        names: &["load_in_8bit"],
        switch: true,
        values: "true or false",
        read: |value| match value {
            value if is_off(value) => Ok(None),
            value => match bool::read(value)? {
                // The nearest equivalent: nothing is lost, and the weights take twice the memory.
                true => Ok(Some(Implied {
                    note:
                        "the base is held in 16 bits, as 8 bits are not supported; `quantization: nf4` takes a quarter \
                           of the memory"
                            .into(),
                    ..Implied::weak("quantization", Value::text("none"))
                })),
                false => Ok(None),
            },
        },
    },
    Derived {
        names: &["curriculum_sampling", "disable_shuffling"],
        switch: true,
        values: "true or false",
        read: |value| {
            let in_order = !is_off(value) && bool::read(value)?;
            Ok(in_order.then(|| Implied::new("shuffle", Value::Bool(false))))
        },
    },
    Derived {
        names: &["train_sampling_strategy"],
        switch: false,
        values: "random or sequential",
        read: |value| match String::read(value)?.trim() {
            "random" => Ok(None),
            "sequential" => Ok(Some(Implied::new("shuffle", Value::Bool(false)))),
            "group_by_length" => Err(Reject::NotYet("group_by_length")),
            _ => Err(Reject::Wrong),
        },
    },
    Derived {
        names: &["use_cpu", "no_cuda"],
        switch: true,
        values: "true or false",
        read: |value| {
            let cpu = !is_off(value) && bool::read(value)?;
            Ok(cpu.then(|| Implied::new("device", Value::text("cpu"))))
        },
    },
    Derived {
        names: &["template"],
        switch: false,
        values: "the name of a chat template",
        read: |value| match value {
            value if is_off(value) => Ok(None),
            value => {
                template_names::check_llama_factory(value)?;
                Ok(Some(Implied::new("chat_template", value.clone())))
            }
        },
    },
    // With this off, LLaMA-Factory writes an empty thought into each prompt of a reasoning model.
    Derived {
        names: &["enable_thinking"],
        switch: true,
        values: "true",
        read: |value| {
            match value {
            Value::Null => Ok(None),
            value => match bool::read(value)? {
                true => Ok(None),
                false => Err(Reject::Because(
                    "found `false`: an empty thought in each prompt is not supported; write it in the rows or in a template \
                     file, or leave the key out (`--enable-thinking true` does)"
                        .to_owned(),
                )),
            },
        }
        },
    },
    Derived {
        names: &["save_strategy"],
        switch: false,
        values: "steps, epoch or no",
        read: |value| strategy("save_steps", value),
    },
    Derived {
        names: &["eval_strategy", "evaluation_strategy"],
        switch: false,
        values: "steps, epoch or no",
        read: |value| strategy("eval_steps", value),
    },
    Derived {
        names: &["load_in_4bit"],
        switch: true,
        values: "true or false",
        read: |value| match value {
            value if is_unset(value) => Ok(None),
            value => quantization(if bool::read(value)? { "nf4" } else { "none" }, false),
        },
    },
    Derived {
        names: &["quantization_bit", "quantization.bits", "quant_bits"],
        switch: false,
        values: "4 or none",
        read: |value| match usize::read(value) {
            _ if is_unset(value) => Ok(None),
            Ok(4) => quantization("nf4", false),
            Ok(8) => Err(Reject::NotYet("8")),
            _ => Err(Reject::Wrong),
        },
    },
    Derived {
        names: &["adapter"],
        switch: false,
        values: "lora or qlora",
        read: |value| match String::read(value)?.trim() {
            "qlora" => quantization("nf4", false),
            // In Axolotl `lora` keeps the base in 16 bits unless a load_in_… key says otherwise.
            "lora" => quantization("none", true),
            _ => Err(Reject::Wrong),
        },
    },
    Derived {
        names: &["peft_type", "train_type", "tuner_type", "training_type"],
        switch: false,
        values: "lora or adalora",
        read: |value| match String::read(value)?.trim().to_ascii_lowercase().as_str() {
            "lora" => Ok(None),
            "adalora" => Ok(Some(Implied::new("use_adalora", Value::Bool(true)))),
            _ => Err(Reject::Wrong),
        },
    },
    Derived {
        names: &["lora_target_linear"],
        switch: true,
        values: "true or false",
        read: |value| {
            let all = !is_off(value) && bool::read(value)?;
            Ok(all.then(|| Implied::new("lora_target_modules", Value::text("all-linear"))))
        },
    },
];

#[derive(Clone, Copy)]
pub enum Known {
    Setting(&'static SettingInfo),
    Derived(&'static Derived),
    Foreign(&'static Foreign),
}

/// Names of sections in use, each with the one in dotted aliases.
const SECTIONS: &[(&str, &str)] = &[
    ("model", "model"),
    ("lora", "lora"),
    ("lora_config", "lora"),
    ("lora_parameters", "lora"),
    ("peft", "lora"),
    ("peft_config", "lora"),
    ("training", "training"),
    ("train", "training"),
    ("trainer", "training"),
    ("training_args", "training"),
    ("training_arguments", "training"),
    ("data", "data"),
    ("dataset", "data"),
    ("output", "output"),
    ("quantization", "quantization"),
    ("quantization_config", "quantization"),
    ("bnb_config", "quantization"),
    // Keys that are passed on to bitsandbytes and to transformers: each is checked as it is elsewhere.
    ("bnb_config_kwargs", "quantization"),
    ("model_init_kwargs", "model"),
    ("logging", "logging"),
    ("special_tokens", "special_tokens"),
];

pub fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

/// `--lora-r`, `lora-r` and `lora_r` are one name.
pub fn normal(name: &str) -> String {
    name.trim_start_matches('-').replace('-', "_")
}

/// Every name that [`lookup`] takes as it stands, with its first meaning.
static NAMES: LazyLock<HashMap<&'static str, Known>> = LazyLock::new(|| {
    let settings = SETTINGS.iter().flat_map(|s| {
        std::iter::once(s.name).chain(s.aliases.iter().copied()).map(move |name| (name, Known::Setting(s)))
    });
    let derived = DERIVED.iter().flat_map(|d| d.names.iter().map(move |&name| (name, Known::Derived(d))));
    let foreign = FOREIGN.iter().map(|foreign| (foreign.name, Known::Foreign(foreign)));
    let mut names = HashMap::new();
    for (name, known) in settings.chain(derived).chain(foreign) {
        names.entry(name).or_insert(known);
    }
    names
});

fn exact(name: &str) -> Option<Known> {
    NAMES.get(name).copied()
}

/// Meaning of a key; `section.key` is looked up as such, then as `key` alone.
pub fn lookup(name: &str) -> Option<Known> {
    let name = normal(name);
    if let Some(known) = exact(&name) {
        return Some(known);
    }
    let (section, key) = name.split_once('.')?;
    let (_, section) = SECTIONS.iter().find(|(other, _)| *other == section)?;
    exact(&format!("{section}.{key}")).or_else(|| if key.contains('.') { None } else { exact(key) })
}

/// Every name that `lookup` takes as it stands.
pub fn all_names() -> impl Iterator<Item = &'static str> {
    working_names().chain(FOREIGN.iter().map(|foreign| foreign.name))
}

/// The names that set something.
pub fn working_names() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
    settings.chain(DERIVED.iter().flat_map(|d| d.names.iter().copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        assert!(FOREIGN.len() > 500);
        for foreign in FOREIGN.iter() {
            let name = foreign.name;
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)), "{name}");
            let one_value = matches!(foreign.treatment, Treatment::Only | Treatment::Told);
            assert!(!one_value || !foreign.neutral.is_empty(), "{name}");
            let advises = matches!(foreign.treatment, Treatment::Instead | Treatment::Told);
            assert!(!advises || !foreign.advice.is_empty(), "{name}");
            assert!(foreign.neutral.iter().all(|value| *value == value.to_lowercase()), "{name}");
        }
    }
}
