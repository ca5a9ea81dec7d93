//! From a settings file and flags to [`Settings`]: names are resolved, contradictions refused, flags win.

use std::collections::BTreeMap;
use std::path::Path;

use super::answers::SamplePrompts;
use super::compat::{DEFAULT_SPLIT, Heard, Implied, Known, LORA_SCALE, SPLIT, SUBSET, Treatment};
use super::compat::{is_section, lookup, nearest, normal};
use super::datasets::{OF_EACH, OWN_TEMPLATE, data_faults, data_implies, with_parts};
use super::enums::{Preset, Quantization, Scheduler};
use super::intervals::{Every, Resume};
use super::table::{SETTINGS, SettingInfo, Settings};
use super::template_names::{self, own_template};
use super::types::{Reject, SettingValue, ValSet, is_unset};
use super::yaml::{self, Document, Entry, Value};
use crate::error::{Error, Result};
use crate::files::home::expand_home;
use crate::hub::HubId;

/// Pairs of settings that stand in for each other, so that a flag for one silences the file's other.
const INSTEAD: [(&str, &str); 2] = [("warmup_steps", "warmup_ratio"), ("val_data", "val_set_size")];

/// A value and how a message names its place: ``cfg.yaml line 3: `lora.rank` `` or `` `--lora-rank` ``.
#[derive(Clone)]
struct Given {
    place: String,
    value: Value,
    /// In the settings file; 0 for a flag.
    line: u64,
}

/// Why a key or value was not taken.
struct Fault {
    message: String,
    key: String,
    line: u64,
    /// A flag of this setting or key takes the fault away.
    silenced_by: Option<&'static str>,
}

impl Fault {
    fn new(message: String, key: impl Into<String>, line: u64) -> Self {
        Self { message, key: key.into(), line, silenced_by: None }
    }
}

/// Values from one file or from the flags, by the settings' own names.
#[derive(Default)]
struct Layer {
    given: BTreeMap<&'static str, Given>,
    weak: BTreeMap<&'static str, Given>,
    /// mlx-lm's scale, which is alpha / r.
    scale: Option<Given>,
    /// A data set that asks for the model's own chat template
    own_template: Option<Given>,
    /// Subset and split of the data set, where they stand beside it
    parts: BTreeMap<&'static str, Given>,
    /// Keys that change nothing here, as they were written.
    no_effect: Vec<String>,
    notes: Vec<String>,
    faults: Vec<Fault>,
    /// Settings and keys of flags, which take away the faults of a file
    silences: Vec<&'static str>,
}

fn rejected(place: &str, value: &Value, expected: &str, reject: Reject) -> String {
    match reject {
        Reject::Wrong => format!("{place}: found {value}, expected {expected}"),
        Reject::NotYet(name) => format!("{place}: `{name}` is not supported yet, expected {expected}"),
        Reject::Because(sentence) => format!("{place}: {sentence}"),
    }
}

impl Layer {
    /// Takes one key; what cannot be taken becomes a fault, so that all of them are told together.
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
            // Null is a key that is not written.
            Some(Known::Setting(_) | Known::Derived(_)) if *value == Value::Null => Ok(()),
            // Axolotl's and LLaMA-Factory's names of the model's own template.
            Some(Known::Setting(info)) if info.name == "chat_template" && own_template(value) => Ok(()),
            Some(Known::Setting(info)) => {
                if info.name == "chat_template" {
                    template_names::check(value).map_err(|reject| rejected(place, value, info.values, reject))?;
                }
                if info.name == "data" || info.name == "val_data" {
                    for implied in data_implies(value).map_err(|r| rejected(place, value, info.values, r))? {
                        if info.name == "val_data" && OF_EACH.contains(&implied.setting) {
                            let what = "weights and counts are of rows that are trained on: leave them out of val_data";
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
            Some(Known::Foreign(foreign)) => {
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
            None => Err(match nearest(name) {
                Some(near) if *line == 0 => {
                    format!("{place} is not a known setting; did you mean `--{}`?", near.replace('_', "-"))
                }
                Some(near) => format!("{place} is not a known setting; did you mean `{near}`?"),
                None => format!("{place} is not a known setting; `qlora-train train --help` lists them"),
            }),
        }
    }

    fn imply(&mut self, implied: Implied, place: &str, line: u64) -> Result<(), String> {
        let Implied { setting, value, weak, note } = implied;
        if !note.is_empty() {
            self.notes.push(format!("{place}: {note}"));
        }
        let given = Given { place: place.to_owned(), value, line };
        if setting == LORA_SCALE {
            self.scale = Some(given);
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

    fn from_entries(entries: &[Entry], file: &str) -> Self {
        let mut layer = Layer::default();
        layer.add_section(entries, file, None);
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
            let name = section.map_or_else(|| key.clone(), |section| format!("{section}.{key}"));
            match value {
                Value::Map(inner) if section.is_none() && is_section(&normal(key)) => {
                    self.add_section(inner, file, Some(key));
                }
                // `lora:` with nothing under it; where the name is a setting too, the setting judges the null.
                Value::Null if section.is_none() && is_section(&normal(key)) && lookup(key).is_none() => {}
                value => {
                    let place = format!("{file} line {line}: `{}`", shortened(&name));
                    self.add(&name, Given { place, value: value.clone(), line: *line });
                }
            }
        }
    }

    fn from_flags(flags: &[(String, String)]) -> Self {
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
        for (name, given) in lists {
            layer.add(name, given);
        }
        layer
    }
}

/// Flag that takes the place of what a file says of a key: of the rows, which are elsewhere then, of the chat template,
/// whose name may be another trainer's, and of features that are not here, which it turns off. A wrong value of another
/// setting is a fault whatever the flags say.
fn silenced_by(name: &str) -> Option<&'static str> {
    match lookup(name)? {
        Known::Foreign(foreign) if foreign.treatment == Treatment::Off => Some(foreign.name),
        Known::Setting(info) if ["data", "val_data", "chat_template"].contains(&info.name) => Some(info.name),
        Known::Derived(derived) => match derived.names[0] {
            "template" => Some("chat_template"),
            "enable_thinking" => Some("enable_thinking"),
            _ => None,
        },
        _ => None,
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect::<String>().escape_debug().to_string()
}

fn find(name: &str) -> &'static SettingInfo {
    SETTINGS.iter().find(|info| info.name == name).expect("names in code are names of the table")
}

fn apply(info: &SettingInfo, given: &Given, settings: &mut Settings) -> Result<(), String> {
    (info.set)(settings, &given.value).map_err(|reject| rejected(&given.place, &given.value, info.values, reject))
}

impl Settings {
    /// Defaults, then the preset, then the file, then the flags (`(name, value)`; any spelling of the name).
    ///
    /// Every value is checked, also one that a flag overrides. Refuses (exit status 2) with the place, what was found
    /// and what was expected, everything that is wrong at once. That `model` or `data` is given at all is checked by
    /// [`Settings::validate`].
    pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Self> {
        Self::load_noting(file, overrides).map(|(settings, _)| settings)
    }

    /// [`Settings::load`], and what should be told: keys without effect here, and values that were understood in a way
    /// of their own.
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

/// Another trainer that a settings file was written for.
struct Tool {
    name: &'static str,
    /// Keys that no other trainer has so many of: three tell the tool.
    keys: &'static [&'static str],
    /// Its own defaults that change what is trained and are not ours, by our names.
    defaults: &'static [(&'static str, &'static str)],
    /// lora_alpha over lora_r, where neither it nor a scale is given. None: ours.
    alpha_over_r: Option<f64>,
    /// Keys without which it does something that is not done here, and what is told of it.
    told_without: &'static [(&'static str, &'static str)],
}

static LLAMA_FACTORY: Tool = Tool {
    name: "LLaMA-Factory",
    keys: &[
        "stage",
        "finetuning_type",
        "cutoff_len",
        "template",
        "dataset_dir",
        "lora_target",
        "quantization_bit",
        "quantization_method",
        "do_train",
    ],
    // hparams/finetuning_args.py, and transformers' TrainingArguments for the rest.
    defaults: &[
        ("lora_r", "8"),
        ("learning_rate", "5e-5"),
        ("num_train_epochs", "3"),
        ("per_device_train_batch_size", "8"),
        ("lr_scheduler_type", "linear"),
        ("warmup_ratio", "0"),
        ("packing", "false"),
        ("optim", "adamw_torch"),
        ("quantization", "none"),
        ("too_long", "truncate"),
    ],
    alpha_over_r: Some(2.0),
    told_without: &[(
        "too_long",
        "it cuts long rows in the prompt and in the answer, in proportion; here they are cut at their end",
    )],
};

static AXOLOTL: Tool = Tool {
    name: "Axolotl",
    keys: &["base_model", "datasets", "sequence_len", "micro_batch_size", "sample_packing", "dataset_prepared_path"],
    // utils/schemas; a learning rate has to be given there.
    defaults: &[("max_length", "512"), ("packing", "false"), ("optim", "adamw_torch")],
    alpha_over_r: None,
    told_without: &[("adapter", "without `adapter` it trains all weights; here adapters are trained")],
};

static MLX_LM: Tool = Tool {
    name: "mlx-lm",
    keys: &[
        "iters",
        "lora_parameters",
        "num_layers",
        "fine_tune_type",
        "steps_per_report",
        "steps_per_eval",
        "adapter_path",
        "mask_prompt",
        "grad_checkpoint",
        "val_batches",
        "save_every",
    ],
    // CONFIG_DEFAULTS of mlx_lm/lora.py; its Adam has states of 32 bits and no schedule.
    defaults: &[
        ("lora_r", "8"),
        ("learning_rate", "1e-5"),
        ("max_steps", "1000"),
        ("per_device_train_batch_size", "4"),
        ("lr_scheduler_type", "constant"),
        ("packing", "false"),
        ("optim", "adamw_torch"),
        ("seed", "0"),
        ("quantization", "none"),
        ("too_long", "truncate"),
    ],
    alpha_over_r: Some(20.0),
    told_without: &[
        ("mask_prompt", "without `mask_prompt` it learns prompts too; here the loss is over answers"),
        ("num_layers", "without `num_layers` it adapts the last 16 layers; here every layer gets adapters"),
    ],
};

static TRL: Tool = Tool {
    name: "TRL",
    keys: &[
        "use_peft",
        "lora_task_type",
        "lora_target_parameters",
        "use_bnb_nested_quant",
        "assistant_only_loss",
        "completion_only_loss",
        "dataset_name",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
        "dataset_text_field",
        "dataset_kwargs",
        "packing_strategy",
        "padding_free",
        "eval_packing",
        "truncation_mode",
        "attn_implementation",
        "model_init_kwargs",
    ],
    // SFTConfig and ModelConfig, PEFT's modules for Llama, Mistral and Qwen, and TrainingArguments for the rest.
    defaults: &[
        ("quantization", "none"),
        ("double_quant", "false"),
        ("lora_dropout", "0.05"),
        ("lora_target_modules", "q_proj, v_proj"),
        ("learning_rate", "2e-5"),
        ("num_train_epochs", "3"),
        ("per_device_train_batch_size", "8"),
        ("lr_scheduler_type", "linear"),
        ("warmup_ratio", "0"),
        ("max_length", "1024"),
        ("too_long", "truncate"),
        ("packing", "false"),
        ("optim", "adamw_torch"),
    ],
    alpha_over_r: None,
    told_without: &[
        ("use_peft", "without `use_peft` it trains all weights; here adapters are trained"),
        (
            "assistant_only_loss",
            "without `assistant_only_loss` it learns the whole of a conversation; here the loss is over answers",
        ),
    ],
};

/// Settings that say how long a run is: where one is given, the tool's own length does not count.
const LENGTHS: [&str; 2] = ["num_train_epochs", "max_steps"];
/// Settings that say how it warms up.
const WARM_UPS: [&str; 2] = ["warmup_ratio", "warmup_steps"];

impl Tool {
    fn of(entries: &[Entry]) -> Option<&'static Self> {
        let count = |tool: &Self| entries.iter().filter(|entry| tool.keys.contains(&entry.key.as_str())).count();
        [&LLAMA_FACTORY, &MLX_LM, &AXOLOTL, &TRL].into_iter().find(|tool| count(tool) >= 3)
    }

    /// Takes the tool's own defaults where nothing is given, and says which.
    fn apply(&self, settings: &mut Settings, is_given: &dyn Fn(&str) -> bool) -> Option<String> {
        let mut taken = Vec::new();
        for &(name, text) in self.defaults {
            let group = [LENGTHS, WARM_UPS].into_iter().find(|group| group.contains(&name));
            if group.map_or_else(|| is_given(name), |group| group.iter().any(|name| is_given(name))) {
                continue;
            }
            // It says nothing where weights are not quantized.
            if name == "double_quant" && settings.quantization == Quantization::Off {
                continue;
            }
            let given = Given { place: self.name.to_owned(), value: Value::text(text), line: 0 };
            apply(find(name), &given, settings).expect("defaults are among the values");
            taken.push(format!("{name} {text}"));
        }
        if let Some(factor) = self.alpha_over_r.filter(|_| !is_given("lora_alpha")) {
            settings.lora_alpha = factor * settings.lora_r as f64;
            taken.push(format!("lora_alpha {}", settings.lora_alpha));
        }
        let taken = taken.join(", ");
        (!taken.is_empty()).then(|| format!("as in {} where they are not given: {taken}", self.name))
    }
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
    // Numbers of single entries go with the entries.
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
    // Nothing weak silences something said outright.
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
    let tool = Tool::of(&document.entries);
    if let Some(tool) = tool {
        let is_given = |name: &str| all.contains_key(name) || (name == "lora_alpha" && scale.is_some());
        notes.extend(tool.apply(&mut settings, &is_given));
    }
    if let Some(scale) = scale {
        let alpha = f64::read(&scale.value).unwrap_or_default() * settings.lora_r as f64;
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
    if asked && settings.val_set_size == ValSet::Off && settings.val_data.is_empty() && !prompts {
        settings.eval_steps = Every::Never;
    }
    faults.extend(one_warmup(&mut settings, &all));
    if let (Some(own), Some(other)) = (&file.own_template, all.get("chat_template").filter(|given| given.line > 0)) {
        let message = format!(
            "{}: a data set asks for the model's own chat template, but {} chooses {}: keep one of them",
            own.place, other.place, other.value
        );
        faults.push(Fault::new(message, "chat_template", own.line));
    }
    if settings.val_set_size != ValSet::Off && !settings.val_data.is_empty() {
        let given = &all["val_set_size"];
        let message = format!("{}: {}", given.place, clash("val_set_size", "val_data", &all["val_data"].place));
        faults.push(Fault::new(message, "val_set_size", given.line));
    }
    // Here, so that what is recorded of the base can be found by others.
    settings.model = settings.model.map(|model| expand_home(Path::new(&model)).to_string_lossy().into_owned());
    faults.extend(split_revision(&mut settings).err());
    let Settings { output_dir, init_adapter, logging_dir, tokenized_cache, .. } = &mut settings;
    for path in [output_dir, init_adapter, logging_dir, tokenized_cache].into_iter().flatten() {
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

/// Puts the revision of `model: org/name@revision` into `revision`.
fn split_revision(settings: &mut Settings) -> Result<(), Fault> {
    let named = settings.model.as_deref().filter(|model| model.contains('@') && !Path::new(model).exists());
    let Some(id) = named.and_then(HubId::parse) else { return Ok(()) };
    let id = id.at(settings.revision.as_deref()).map_err(|error| Fault::new(error.to_string(), "revision", 0))?;
    (settings.model, settings.revision) = (Some(id.name), id.revision);
    Ok(())
}

/// Leaves at most one of `warmup_ratio` and `warmup_steps` in force, so that the resolved settings say it plainly.
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
