//! The identity of a run, gathered before the weights are read: everything, settings and contents, that decides its
//! result.
//!
//! The paths of model and data do not count, their contents do. Of the base these are its config.json as it was
//! understood and, where rows are text, its tokenizer with its special and added tokens, the chat templates in use and
//! their time. The rows' tokens count too. Two bases that differ in their weights only are told apart by the
//! fingerprint, which is kept beside.

use super::names::{RUN_FILE, RUN_STATE};
use super::owned::MAX_RUN_BYTES;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
use crate::bail_usage;
use crate::config::{Resume, Settings};
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::files::hash::{file_hash, hex};
use crate::files::json::{read_bounded, shown};
use crate::files::regular;
use crate::hub::HubCommit;
use crate::infer::questions::Questions;
use crate::session::model_spec::effective_settings;
use crate::session::{Loaded, TrainingData};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Two runs with equal identities, on bases of equal fingerprints, give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Every setting that changes results, less the paths of model and data, whose contents count.
    pub settings: Map<String, Value>,
    /// The base's config.json as it was understood.
    pub base_config: Value,
    /// Linear layers that a quantized base keeps as they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_quantized: Vec<String>,
    /// SHA-256 (hex) of tokenizer.json; none where all rows are token ids.
    pub tokenizer: Option<String>,
    /// Special tokens in use, by their names in tokenizer_config.json
    pub special_tokens: BTreeMap<String, String>,
    /// SHA-256 (hex) over the tokens that were added to the vocabulary
    pub added_tokens: Option<String>,
    /// SHA-256 (hex) of the chat template's text.
    pub chat_template: Option<String>,
    /// SHA-256 (hex) of the template for conversations with tools, where it is another one
    pub tool_template: Option<String>,
    /// Time in UTC for a chat template that writes the date: that of the run's start
    pub clock: Option<Timestamp>,
    /// SHA-256 (hex) of the files of the adapter that the run begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// SHA-256 (hex) of each file.
    pub data: Vec<String>,
    pub val_data: Vec<String>,
    /// SHA-256 (hex) over what is asked, where answers have a say in the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<String>,
    /// SHA-256 (hex) over the tokens of all rows
    pub tokens: String,
    /// The way in which several processes add up gradients, on which last bits depend. A run may go on in one process,
    /// which has no such order, and from one: it is no part of the hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<String>,
}

impl Identity {
    /// SHA-256 (hex) over all of it but the way of sums.
    pub fn hash(&self) -> String {
        let mut settings: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        settings.sort();
        let rest = Self { settings: Map::new(), sums: None, ..self.clone() };
        hex(Sha256::digest(settings.join("\n") + "\n" + &serde_json::to_string(&rest).expect("texts serialize")))
    }

    /// With what the run asks, where answers have a say in it.
    pub fn judging(self, settings: &Settings, questions: &Questions) -> Self {
        // `eval_answers` is a result setting exactly there.
        let judged = settings.result_settings().contains_key("eval_answers");
        Self { questions: judged.then(|| questions.hash()), ..self }
    }

    /// Everything in which `earlier`, which was recorded, differs from this run, what changes rows first; none if they
    /// are the same.
    pub fn difference(&self, earlier: &Self) -> Option<String> {
        self.difference_but_for(earlier, &[])
    }

    /// [`difference`](Self::difference) to a run that this one may be the longer form of: their lengths do not count.
    pub fn difference_beyond_length(&self, earlier: &Self) -> Option<String> {
        self.difference_but_for(earlier, &LENGTHS)
    }

    fn difference_but_for(&self, earlier: &Self, uncounted: &[&str]) -> Option<String> {
        let says_nothing = |name: &str| self.tokens == earlier.tokens && OF_ROWS.contains(&name);
        let differs = |name: &&String| {
            let counts = !uncounted.contains(&name.as_str()) && !says_nothing(name);
            counts && self.settings.get(*name) != earlier.settings.get(*name)
        };
        let names: BTreeSet<&String> = self.settings.keys().chain(earlier.settings.keys()).filter(differs).collect();
        let (lengths, names): (Vec<&String>, Vec<&String>) =
            names.into_iter().partition(|name| LENGTHS.contains(&name.as_str()));
        let (of_rows, others): (Vec<&String>, Vec<&String>) =
            names.into_iter().partition(|name| ROWS.contains(&name.as_str()));
        let told =
            |names: &[&String]| -> Vec<String> { names.iter().map(|name| self.other_setting(earlier, name)).collect() };
        let mut found = self.other_text(earlier);
        found.extend(told(&of_rows));
        // All that was named may come to other tokens.
        if found.is_empty() && others.is_empty() && self.tokens != earlier.tokens {
            let made = "the tokens that this version of the program makes of the same rows and tokenizer changed";
            found.push(made.to_owned());
        }
        found.extend(told(&others));
        let parts = [
            (self.base_config == earlier.base_config, "the model's config.json"),
            (self.not_quantized == earlier.not_quantized, "which linear layers the base keeps unquantized"),
            (self.init_adapter == earlier.init_adapter, "the contents of `init_adapter`"),
            (
                self.questions == earlier.questions,
                "what is asked while the run trains (`sample_prompts`, `eval_answers`), or what ends an answer (the model's \
                 generation_config.json)",
            ),
        ];
        found.extend(changed(&parts));
        if let (Some(here), Some(there)) = (&self.sums, &earlier.sums)
            && here != there
        {
            found.push(format!("gradients of the processes were added up {there} and are {here} now (QLORA_SUMS)"));
        }
        found.extend(told(&lengths));
        (!found.is_empty()).then(|| found.join("; "))
    }

    /// A setting that `earlier` has otherwise.
    fn other_setting(&self, earlier: &Self, name: &str) -> String {
        let (here, there) = (self.settings.get(name), earlier.settings.get(name));
        if name == ARITHMETIC {
            let of = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("f32 on the CPU").to_owned();
            let (there, here) = (of(there), of(here));
            // In full: what differs may stand at the end.
            return format!("arithmetic (`compute`, `linear`, `device`) was {there:?} and is {here:?} now");
        }
        let of = |value: Option<&Value>| value.filter(|value| !value.is_null()).map_or("nothing".to_owned(), shown);
        format!("`{name}` was {} and is {} now", of(there), of(here))
    }

    /// Differences to `earlier` of the rows and of all that makes tokens of them, beside settings.
    fn other_text(&self, earlier: &Self) -> Vec<String> {
        let data = [
            (self.data == earlier.data, "the contents of `data`"),
            (self.val_data == earlier.val_data, "the contents of `val_data`"),
        ];
        let mut found = changed(&data);
        // Other rows may be token ids, which have no tokenizer.
        if !found.is_empty() && self.tokenizer.is_some() != earlier.tokenizer.is_some() {
            return found;
        }
        found.extend(changed(&[(self.tokenizer == earlier.tokenizer, "the model's tokenizer.json")]));
        let names: BTreeSet<&String> = self.special_tokens.keys().chain(earlier.special_tokens.keys()).collect();
        for name in names {
            let of = |tokens: &BTreeMap<String, String>| {
                tokens.get(name).map_or("nothing".to_owned(), |token| format!("{token:?}"))
            };
            let (there, here) = (of(&earlier.special_tokens), of(&self.special_tokens));
            if there != here {
                found.push(format!(
                    "`{name}` of the model's tokenizer_config.json or special_tokens_map.json was {there} and is {here} \
                     now"
                ));
            }
        }
        let same_template = self.chat_template == earlier.chat_template;
        let parts = [
            (self.added_tokens == earlier.added_tokens, "the tokens that are added to the model's vocabulary"),
            (same_template, "the chat template"),
            (self.tool_template == earlier.tool_template, "the chat template for conversations with tools"),
            // Not every template writes one.
            (!same_template || self.clock == earlier.clock, "the date that the chat template writes"),
        ];
        found.extend(changed(&parts));
        found
    }
}

/// Words for the parts that are not the same.
fn changed(parts: &[(bool, &str)]) -> Vec<String> {
    parts.iter().filter(|(same, _)| !same).map(|(_, what)| format!("{what} changed")).collect()
}

/// Settings that name a place; what is found there counts.
const PLACES: [&str; 7] = ["model", "revision", "data", "val_data", "chat_template", "init_adapter", "sample_prompts"];

/// Settings of arithmetic: what they came to counts, as `compute`.
const AS_IT_CAME: [&str; 2] = [ARITHMETIC, "linear"];

/// Key of what a run computes in and by; none of f32 on the CPU
const ARITHMETIC: &str = "compute";

/// Every setting that changes results, less places.
pub fn result_settings(settings: &Settings, loaded: &Loaded, arithmetic: Option<String>) -> Map<String, Value> {
    let mut result_settings = effective_settings(settings, &loaded.checkpoint).result_settings();
    result_settings.retain(|name, _| !PLACES.contains(&name.as_str()) && !AS_IT_CAME.contains(&name.as_str()));
    // The arithmetic of this processor counts, not the setting that asked for it.
    if let Some(arithmetic) = arithmetic {
        result_settings.insert(ARITHMETIC.to_owned(), arithmetic.into());
    }
    result_settings
}

pub fn run_identity(
    settings: &Settings,
    loaded: &Loaded,
    data: &TrainingData,
    arithmetic: Option<String>,
    clock: Timestamp,
) -> Result<Identity> {
    let checkpoint = &loaded.checkpoint;
    let tokenizer = match loaded.tokenizer() {
        Some(_) => Some(file_hash(&checkpoint.dir().join("tokenizer.json"))?),
        None => None,
    };
    let init_adapter = settings.init_adapter.as_deref().map(adapter_hash).transpose()?;
    Ok(Identity {
        settings: result_settings(settings, loaded, arithmetic),
        base_config: checkpoint.arch().to_json("").into(),
        not_quantized: checkpoint.skipped_modules(),
        tokenizer,
        special_tokens: loaded.tokenizer().map(|t| t.special_tokens().iter().cloned().collect()).unwrap_or_default(),
        added_tokens: loaded.tokenizer().map(ChatTokenizer::added_tokens_hash),
        chat_template: loaded.tokenizer().and_then(ChatTokenizer::template_hash),
        tool_template: loaded.tokenizer().and_then(ChatTokenizer::tool_template_hash),
        clock: loaded.tokenizer().filter(|tokenizer| tokenizer.uses_date()).map(|_| clock),
        data: data.hashes.clone(),
        val_data: data.validation_hashes.clone(),
        init_adapter,
        questions: None,
        tokens: data.tokens_hash.clone(),
        sums: None,
    })
}

fn read_record(path: &Path) -> Option<Value> {
    serde_json::from_slice(&read_bounded(path, MAX_RUN_BYTES).ok()?).ok()
}

/// Key of `run.json` and of a checkpoint's state: the micro-batches of a step that each of several processes was asked
/// for, where they are not all of the step's
pub const PER_PROCESS: &str = "accumulation_per_process";

/// Key of `run.json` and of a checkpoint's state: the commits that branches of the hub stood for
pub const HUB_COMMITS: &str = "hub_commits";

/// Commits of the hub on which the run in `output` began. None where there is no run, or one that says none.
pub fn commits_of_run(output: &Path) -> Vec<HubCommit> {
    read_record(&output.join(RUN_FILE)).as_ref().map(commits_in).unwrap_or_default()
}

/// Commits of the hub on which the run began that this one goes on with. None where it begins from the start.
pub fn commits_to_follow(settings: &Settings) -> Vec<HubCommit> {
    match &settings.resume_from_checkpoint {
        Resume::From(dir) => read_record(&dir.join(RUN_STATE)).as_ref().map(commits_in).unwrap_or_default(),
        // A run that is to be overwritten has nothing to say.
        Resume::Latest if !settings.overwrite_output_dir => {
            settings.output_dir.as_deref().map(commits_of_run).unwrap_or_default()
        }
        Resume::Latest | Resume::No => Vec::new(),
    }
}

fn commits_in(record: &Value) -> Vec<HubCommit> {
    let commits = record.get(HUB_COMMITS).cloned().unwrap_or_default();
    serde_json::from_value(commits).unwrap_or_default()
}

/// Micro-batches of a step of all `processes`: as many as each was asked for, times their number. A run that goes on,
/// or is asked about again, by the same settings keeps those that it began with, whatever the number of processes.
pub fn micro_batches_of_step(
    settings: &Settings,
    output: &Path,
    result_settings: &Map<String, Value>,
    processes: usize,
) -> usize {
    const NAME: &str = "gradient_accumulation_steps";
    let asked = settings.gradient_accumulation_steps;
    let recorded = match &settings.resume_from_checkpoint {
        Resume::From(dir) => read_record(&dir.join(RUN_STATE)),
        Resume::No | Resume::Latest => read_record(&output.join(RUN_FILE)),
    };
    let began_with = |record: &Value| {
        let of_run = record.pointer("/identity/settings")?.as_object()?;
        let same = are_alike(of_run, result_settings, &[&[NAME][..], &LENGTHS, &OF_ROWS].concat());
        let all = of_run.get(NAME)?.as_u64()?;
        let each = record.get(PER_PROCESS).and_then(Value::as_u64).unwrap_or(all);
        (same && each == asked as u64).then_some(all as usize)
    };
    recorded.as_ref().and_then(began_with).unwrap_or(asked.saturating_mul(processes))
}

/// Time for the chat template of a run of these `result_settings`: that of the run's start, which a run that goes on,
/// or is asked about again, has recorded in `run.json` or in its checkpoint.
pub fn run_clock(settings: &Settings, output: &Path, result_settings: &Map<String, Value>) -> Timestamp {
    let read = read_record;
    let clock = |record: &Value| record.pointer("/identity/clock")?.as_str()?.parse().ok();
    let recorded = match &settings.resume_from_checkpoint {
        Resume::From(dir) => read(&dir.join(RUN_STATE)),
        Resume::No | Resume::Latest => None,
    };
    // A run that is to be overwritten has nothing to say.
    let other = |run: &Value| {
        settings.overwrite_output_dir
            && run.pointer("/identity/settings").and_then(Value::as_object) != Some(result_settings)
    };
    let recorded = recorded.or_else(|| read(&output.join(RUN_FILE)).filter(|run| !other(run)));
    // Whole seconds, as the record has them.
    let now = || Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    recorded.as_ref().and_then(clock).unwrap_or_else(now)
}

/// The way in which the processes of the run of these `result_settings`, which goes on or is asked about again, add up
/// gradients, where there are several. None of another run, which may be overwritten.
pub fn recorded_sums(settings: &Settings, output: &Path, result_settings: &Map<String, Value>) -> Option<String> {
    let recorded = match &settings.resume_from_checkpoint {
        Resume::From(dir) => read_record(&dir.join(RUN_STATE)),
        Resume::No | Resume::Latest => read_record(&output.join(RUN_FILE)),
    }?;
    let of_run = recorded.pointer("/identity/settings")?.as_object()?;
    let same = are_alike(of_run, result_settings, &[&LENGTHS[..], &OF_ROWS].concat());
    Some(recorded.pointer("/identity/sums")?.as_str()?.to_owned()).filter(|_| same)
}

/// Settings that decide nothing but the tokens that rows come to, which count themselves. Another version of this
/// program may understand in another way what a file of another trainer says of them.
const OF_ROWS: [&str; 5] = ["messages_column", "role_key", "content_key", "roles", "too_long"];

/// Settings that decide the rows and their tokens, which are named before the others.
const ROWS: [&str; 23] = [
    "val_set_size",
    "max_samples",
    "data_max_samples",
    "data_rows",
    "val_data_rows",
    "data_weights",
    "mix_strategy",
    "interleave_probs",
    "prompt_column",
    "completion_column",
    "input_column",
    "system_column",
    "messages_column",
    "role_key",
    "content_key",
    "roles",
    "text_column",
    "max_length",
    "too_long",
    "on_bad_row",
    "prompt_completion",
    "deduplicate",
    "packing",
];

/// Settings of a run's length, which one that goes on may change.
const LENGTHS: [&str; 2] = ["num_train_epochs", "max_steps"];

fn are_alike(one: &Map<String, Value>, other: &Map<String, Value>, uncounted: &[&str]) -> bool {
    let mut counted = one.keys().chain(other.keys()).filter(|name| !uncounted.contains(&name.as_str()));
    counted.all(|name| one.get(name) == other.get(name))
}

/// SHA-256 (hex) of an adapter's files. Refused: they are not there.
fn adapter_hash(adapter: &Path) -> Result<String> {
    check_adapter(adapter).usage_context(|| "`init_adapter`".to_owned())?;
    let mut hashes = Vec::new();
    for path in [ADAPTER_CONFIG, ADAPTER_MODEL].map(|name| adapter.join(name)) {
        if !regular::is_there(&path).usage_context(|| "`init_adapter`".to_owned())? {
            bail_usage!("`init_adapter`: {}: found no such file, expected that of an adapter", path.display());
        }
        hashes.push(file_hash(&path)?);
    }
    Ok(hex(Sha256::digest(hashes.concat())))
}

#[cfg(test)]
mod tests;
