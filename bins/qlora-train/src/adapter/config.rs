//! `adapter_config.json` of PEFT's LoRA.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fancy_regex::Regex;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::module_pattern::{ModulePattern, in_own_model, layer_of};
use super::token_indices;
use crate::arch::{Arch, Wrapper};
use crate::base::BaseName;
use crate::error::Result;
use crate::files::json::Keys;
use crate::lora::{LoraSpec, LoraTerm};

/// The PEFT release whose adapter format is followed.
const PEFT_VERSION: &str = "0.21.2";

/// Keys of PEFT that change what an adapter computes: anything but null, false, `[]` and `{}` is refused.
const REFUSED_UNLESS_EMPTY: [&str; 14] = [
    "lora_bias",
    "fan_in_fan_out",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
];

/// Names of the methods that some of those keys turn on.
const NAMED: [(&str, &str); 5] = [
    ("lora_bias", "a trained bias"),
    ("target_parameters", "LoRA on parameters"),
    ("layer_replication", "repetition of layers"),
    ("alora_invocation_tokens", "activated LoRA"),
    ("use_qalora", "QALoRA"),
];

/// Name of a value of `peft_type` other than LORA.
fn kind_of_adapter(peft_type: &str) -> Option<&'static str> {
    Some(match peft_type {
        "ADALORA" => "AdaLoRA",
        "IA3" => "IA3, learned factors",
        "PREFIX_TUNING" => "prefix tuning, a learned key-value cache",
        "PROMPT_TUNING" | "MULTITASK_PROMPT_TUNING" | "P_TUNING" | "CPT" => "prompt tuning, learned embeddings",
        "ADAPTION_PROMPT" => "LLaMA-Adapter",
        "LOHA" => "LoHa, a Hadamard product of low-rank matrices",
        "LOKR" => "LoKr, a Kronecker product of low-rank matrices",
        "OFT" | "BOFT" | "HRA" => "orthogonal fine-tuning",
        "VERA" => "VeRA, with random matrices that are shared",
        "FOURIERFT" | "WAVEFT" => "a spectrum",
        "LN_TUNING" => "tuning of norms",
        "XLORA" | "POLY" => "a mixture of adapters",
        "TRAINABLE_TOKENS" => "training of single tokens",
        "BONE" | "MISS" | "RANDLORA" | "SHIRA" | "C3A" | "ROAD" | "OSF" => "another kind of update",
        _ => return None,
    })
}

/// Keys of PEFT that change nothing about a finished adapter.
const HARMLESS: [&str; 7] = [
    "auto_mapping",
    "ensure_weight_tying",
    "eva_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
];

/// The linear layers that carry an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Names such as "q_proj": a set, in sorted order.
    Names(BTreeSet<String>),
    /// "all-linear", or a regular expression of PEFT's; the tensors tell which linears it meant.
    Pattern(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    pub base_model_name_or_path: Option<String>,
    pub revision: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    pub target_modules: TargetModules,
    /// scale = alpha / √r instead of alpha / r.
    pub use_rslora: bool,
    /// Terms have magnitudes.
    pub use_dora: bool,
    /// `ModulePattern` → rank or alpha of its own; the first that matches counts.
    pub rank_pattern: IndexMap<String, usize>,
    pub alpha_pattern: IndexMap<String, f64>,
    /// `None`: every layer.
    pub layers_to_transform: Option<Vec<usize>>,
    /// The class that serves it is one around the text model.
    pub wrapped: bool,
    /// Linears that carry no adapter although the targets name them; a pattern is a regular expression for whole paths.
    pub exclude_modules: Option<TargetModules>,
    /// Modules whose whole weights the adapter holds, by the end of their paths.
    pub modules_to_save: Vec<String>,
    /// Embedding and output layer stay one tensor.
    pub ensure_weight_tying: bool,
    /// Embedding or output layer → tokens whose rows the adapter holds, in the order of its tensor.
    pub trainable_token_indices: BTreeMap<String, Vec<u32>>,
}

impl AdapterConfig {
    /// The terms of `lora` on a model of `arch`. Rank and alpha are those that most terms have; `rank_pattern` and
    /// `alpha_pattern` name the others.
    pub fn new(base: &BaseName, arch: &Arch, lora: &LoraSpec) -> Self {
        let LoraTerm { r, alpha, .. } = most_common(lora.terms.values().copied());
        let mut config = Self {
            base_model_name_or_path: Some(base.name.clone()),
            revision: base.revision.clone(),
            r,
            lora_alpha: alpha,
            lora_dropout: lora.dropout,
            target_modules: TargetModules::Names(BTreeSet::new()),
            use_rslora: lora.rslora,
            use_dora: lora.is_dora(),
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            layers_to_transform: None,
            wrapped: arch.wrapper.is_some(),
            exclude_modules: None,
            modules_to_save: modules_to_save(arch, &lora.whole),
            ensure_weight_tying: lora.whole.iter().any(|module| lora.shares_embedding(arch, module)),
            trainable_token_indices: lora.tokens.clone(),
        };
        let mut targets = BTreeSet::new();
        let mut by_name: BTreeMap<&str, Vec<(&str, LoraTerm)>> = BTreeMap::new();
        for (module, &term) in &lora.terms {
            by_name.entry(last_part(module)).or_default().push((module, term));
        }
        // Layer numbers are enough if the layers that have terms have all of them.
        let layers: BTreeSet<usize> = lora.terms.keys().filter_map(|module| layer_of(module)).collect();
        let modules_of = |name: &str| {
            let within = |module: &String| layer_of(module).is_some_and(|layer| layers.contains(&layer));
            arch.modules().filter(|module| last_part(module) == name && within(module)).count()
        };
        let by_layers =
            layers.len() < arch.num_layers && by_name.iter().all(|(name, terms)| modules_of(name) == terms.len());
        if by_layers && !layers.is_empty() {
            config.layers_to_transform = Some(layers.into_iter().collect());
        }
        for (name, terms) in by_name {
            // A name stands for all modules that end with it; where only some have a term, each is named by its path.
            let all = by_layers || arch.modules().filter(|module| last_part(module) == name).count() == terms.len();
            match all {
                true => drop(targets.insert(name.to_owned())),
                false => targets.extend(terms.iter().map(|(module, _)| (*module).to_owned())),
            }
            let first = terms[0].1;
            let alike = terms.iter().all(|(_, term)| *term == first);
            let keys = if alike { vec![(name, first)] } else { terms };
            for (key, term) in keys {
                if term.r != r {
                    config.rank_pattern.insert(key.to_owned(), term.r);
                }
                if term.alpha != alpha {
                    config.alpha_pattern.insert(key.to_owned(), term.alpha);
                }
            }
        }
        config.target_modules = TargetModules::Names(targets);
        config
    }

    /// The object that PEFT reads, keys sorted.
    pub fn to_json(&self) -> Map<String, Value> {
        // PEFT refuses layers beside an expression, which has their numbers then.
        let of_expression = |_: &&Vec<usize>| self.wrapped && matches!(self.target_modules, TargetModules::Names(_));
        let in_expression = self.layers_to_transform.as_ref().filter(of_expression);
        let layers_to_transform = self.layers_to_transform.as_ref().filter(|_| in_expression.is_none());
        let target_modules = match &self.target_modules {
            TargetModules::Pattern(pattern) => json!(pattern),
            TargetModules::Names(names) if self.wrapped => json!(in_text_model(names, in_expression)),
            TargetModules::Names(names) => json!(names),
        };
        let path = |key: &String| if self.wrapped { Wrapper::path(key) } else { key.clone() };
        let alpha_pattern: IndexMap<_, _> = self.alpha_pattern.iter().map(|(key, &x)| (path(key), number(x))).collect();
        let rank_pattern: IndexMap<_, _> = self.rank_pattern.iter().map(|(key, &r)| (path(key), r)).collect();
        let value = json!({
            "alpha_pattern": alpha_pattern,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": layers_to_transform,
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": Some(self.modules_to_save.iter().map(path).collect::<Vec<_>>()).filter(|names| !names.is_empty()),
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "r": self.r,
            "rank_pattern": rank_pattern,
            "revision": self.revision,
            "target_modules": target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        let Value::Object(mut map) = value else { unreachable!("json! of braces is an object") };
        // Only where there is something: older releases of PEFT do not know the keys.
        if self.ensure_weight_tying {
            map.insert("ensure_weight_tying".to_owned(), json!(true));
        }
        if let Some(indices) = token_indices::to_json(&self.trainable_token_indices, self.wrapped) {
            map.insert(token_indices::KEY.to_owned(), indices);
        }
        match &self.exclude_modules {
            Some(TargetModules::Names(names)) => drop(map.insert("exclude_modules".to_owned(), json!(names))),
            Some(TargetModules::Pattern(pattern)) => drop(map.insert("exclude_modules".to_owned(), json!(pattern))),
            None => {}
        }
        map
    }

    /// Reads PEFT's object; `path` is what errors call it. A key that changes what the adapter computes in a way that
    /// is not supported is refused; a key that PEFT does not know only warns.
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let config = Self::read(path, map)?;
        let known = config.to_json();
        for key in map.keys().map(String::as_str) {
            if !known.contains_key(key)
                && !["exclude_modules", token_indices::KEY].contains(&key)
                && !HARMLESS.contains(&key)
                && !REFUSED_UNLESS_EMPTY.contains(&key)
            {
                crate::report::warning!("{}: key `{key}` is not known and not used", path.display());
            }
        }
        Ok(config)
    }

    /// [`from_json`](Self::from_json) without warnings of unknown keys.
    pub(super) fn read(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(path, map);
        check_kind(&keys)?;
        Ok(Self {
            base_model_name_or_path: keys.text("base_model_name_or_path")?.map(str::to_owned),
            revision: keys.text("revision")?.map(str::to_owned),
            r: keys.whole("r")?.filter(|&r| r > 0).ok_or_else(|| keys.wrong("r", "a whole number above 0"))?,
            lora_alpha: keys.number("lora_alpha")?.ok_or_else(|| keys.wrong("lora_alpha", "a number"))?,
            lora_dropout: keys.number("lora_dropout")?.unwrap_or(0.0),
            target_modules: target_modules(&keys)?,
            use_rslora: keys.flag("use_rslora")?.unwrap_or(false),
            use_dora: keys.flag("use_dora")?.unwrap_or(false),
            rank_pattern: pattern(&keys, "rank_pattern", "whole numbers above 0", |value| {
                value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|&r| r > 0)
            })?,
            alpha_pattern: pattern(&keys, "alpha_pattern", "numbers", Value::as_f64)?,
            layers_to_transform: layers_to_transform(&keys)?,
            wrapped: keys.get("target_modules").and_then(Value::as_str).is_some_and(|of| of.starts_with(TEXT_LAYERS)),
            exclude_modules: exclude_modules(&keys)?,
            modules_to_save: saved_modules(&keys)?,
            ensure_weight_tying: keys.flag("ensure_weight_tying")?.unwrap_or(false),
            trainable_token_indices: token_indices::token_indices(&keys)?,
        })
    }
}

/// Beginning of a regular expression for modules of a text model.
const TEXT_LAYERS: &str = r"model\.language_model\.layers\.";

/// The expression for these modules of a text model, of all layers or of some. Their names alone would match modules
/// around the text model too.
fn in_text_model(names: &BTreeSet<String>, layers: Option<&Vec<usize>>) -> String {
    let numbers = layers.map(|layers| layers.iter().map(usize::to_string).collect::<Vec<_>>().join("|"));
    let within = numbers.map_or_else(String::new, |numbers| format!(r"(?:{numbers})\."));
    let one = |name: &String| {
        let name = Wrapper::text_name(name).unwrap_or_else(|| name.clone());
        match name.strip_prefix("model.layers.") {
            Some(path) => path.replace('.', r"\."),
            None => format!(r"{within}.*\.{name}"),
        }
    };
    format!("{TEXT_LAYERS}(?:{})", names.iter().map(one).collect::<Vec<_>>().join("|"))
}

/// Names by whose ends PEFT finds just these modules: the last parts of their paths, or all of these.
fn modules_to_save(arch: &Arch, whole: &BTreeSet<String>) -> Vec<String> {
    let others = arch.other_modules().into_iter().map(|(module, _)| module);
    let all: Vec<String> = others.chain(arch.modules()).collect();
    let is_exact = |name: &str| all.iter().all(|module| !module.ends_with(name) || whole.contains(module));
    let name = |module: &String| match last_part(module) {
        // A class around the text model may have others of the name.
        name if arch.wrapper.is_none() && is_exact(name) => name.to_owned(),
        _ => module.clone(),
    };
    whole.iter().map(name).collect::<BTreeSet<_>>().into_iter().collect()
}

fn saved_modules(keys: &Keys) -> Result<Vec<String>> {
    let wrong = || keys.wrong("modules_to_save", "null or a list of module names such as [\"embed_tokens\"]");
    match keys.get("modules_to_save") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            let name = |name: &Value| name.as_str().map(in_own_model).filter(|name| !name.is_empty()).ok_or_else(wrong);
            list.iter().map(name).collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// The last part of a module's path: "q_proj".
pub(super) fn last_part(module: &str) -> &str {
    module.rsplit_once('.').map_or(module, |(_, name)| name)
}

/// The first of the terms that occur most often.
fn most_common(terms: impl Iterator<Item = LoraTerm> + Clone) -> LoraTerm {
    let count = |term: &LoraTerm| terms.clone().filter(|other| other == term).count();
    let mut best = (0, LoraTerm::lora(1, 1.0));
    let mut seen: Vec<LoraTerm> = Vec::new();
    for term in terms.clone() {
        if !seen.contains(&term) {
            seen.push(term);
            let n = count(&term);
            if n > best.0 {
                best = (n, term);
            }
        }
    }
    best.1
}

/// An integer where it is one: PEFT's `lora_alpha` is an integer, and some readers insist on it.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

fn check_kind(keys: &Keys) -> Result<()> {
    match keys.text("peft_type")? {
        Some("LORA") => {}
        found => {
            let what = found.and_then(kind_of_adapter).map_or(String::new(), |what| format!(" (that is {what})"));
            return Err(keys.wrong("peft_type", &format!("\"LORA\", the only supported kind of adapter{what}")));
        }
    }
    if keys.text("task_type")?.is_some_and(|task| task != "CAUSAL_LM") {
        return Err(keys.wrong("task_type", "\"CAUSAL_LM\""));
    }
    if keys.text("bias")?.is_some_and(|bias| bias != "none") {
        return Err(keys.wrong("bias", "\"none\": trained biases are not supported"));
    }
    for key in REFUSED_UNLESS_EMPTY {
        let empty = match keys.get(key) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if !empty {
            let (_, what) = NAMED.into_iter().find(|(named, _)| *named == key).unwrap_or((key, "it"));
            let advice = "merge it into its base with PEFT (`merge_and_unload`) and use that as the model";
            return Err(keys.wrong(key, &format!("nothing: {what} is not supported; {advice}")));
        }
    }
    // PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base's weights; the adapter alone does not say how.
    let harmless = |value: &Value| match value {
        Value::Bool(_) => true,
        other => ["gaussian", "eva", "orthogonal"].iter().any(|name| other == name),
    };
    if keys.get("init_lora_weights").is_some_and(|value| !harmless(value)) {
        return Err(keys.wrong(
            "init_lora_weights",
            "true: an initialization that changes the base is not supported; convert the adapter to plain LoRA with PEFT",
        ));
    }
    let layers = |value: &Value| value == "layers" || value == &json!(["layers"]) || value == &json!([]);
    if keys.get("layers_pattern").is_some_and(|value| !layers(value)) {
        return Err(keys.wrong("layers_pattern", "null or \"layers\", the name of a model's blocks"));
    }
    Ok(())
}

fn target_modules(keys: &Keys) -> Result<TargetModules> {
    let wrong = || keys.wrong("target_modules", "a list of module names such as [\"q_proj\", \"v_proj\"]");
    match keys.get("target_modules") {
        Some(Value::String(pattern)) => Ok(TargetModules::Pattern(pattern.clone())),
        Some(Value::Array(list)) if !list.is_empty() => {
            let names = list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong));
            Ok(TargetModules::Names(names.collect::<Result<_>>()?))
        }
        _ => Err(wrong()),
    }
}

fn exclude_modules(keys: &Keys) -> Result<Option<TargetModules>> {
    let wrong = || keys.wrong("exclude_modules", "null, a list of module names or a regular expression");
    match keys.get("exclude_modules") {
        None => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) => {
            let names = list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(wrong));
            Ok(Some(TargetModules::Names(names.collect::<Result<_>>()?)))
        }
        Some(Value::String(pattern)) if pattern.is_empty() => Ok(None),
        Some(Value::String(pattern)) => match Regex::new(pattern) {
            Ok(_) => Ok(Some(TargetModules::Pattern(pattern.clone()))),
            Err(_) => Err(wrong()),
        },
        Some(_) => Err(wrong()),
    }
}

fn pattern<T>(
    keys: &Keys,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<IndexMap<String, T>> {
    let Some(entries) = keys.object(key)? else { return Ok(IndexMap::new()) };
    let mut pattern = IndexMap::new();
    for (name, value) in entries.map {
        ModulePattern::new(name).map_err(|error| {
            entries.wrong(name, &format!("a regular expression or the name of a module as key ({error})"))
        })?;
        pattern.insert(in_own_model(name), read(value).ok_or_else(|| entries.wrong(name, expected))?);
    }
    Ok(pattern)
}

/// PEFT takes an empty list for every layer.
fn layers_to_transform(keys: &Keys) -> Result<Option<Vec<usize>>> {
    let layer = |value: &Value| {
        let layer = value.as_u64().and_then(|layer| usize::try_from(layer).ok());
        layer.ok_or_else(|| keys.wrong("layers_to_transform", "null, a layer number or a list of them"))
    };
    match keys.get("layers_to_transform") {
        None => Ok(None),
        Some(Value::Array(list)) if list.is_empty() => Ok(None),
        Some(Value::Array(list)) => list.iter().map(layer).collect::<Result<_>>().map(Some),
        Some(one) => Ok(Some(vec![layer(one)?])),
    }
}

#[cfg(test)]
mod tests;
