//! Names that are no settings here but that other trainers' files hold: they are read, checked and either agreed with
//! or refused by name, never skipped in silence.

use super::table::{SETTINGS, SettingInfo};
use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::Value;

/// A key with one possible value here.
pub struct Fixed {
    pub names: &'static [&'static str],
    /// Lower case; empty: any value, because it cannot matter here.
    pub accepted: &'static [&'static str],
}

const fn fixed(names: &'static [&'static str], accepted: &'static [&'static str]) -> Fixed {
    Fixed { names, accepted }
}

pub const FIXED: &[Fixed] = &[
    fixed(&["task_type", "lora.task_type"], &["causal_lm"]),
    fixed(&["bias", "lora_bias", "lora.bias"], &["none"]),
    fixed(&["peft_type", "finetuning_type", "fine_tune_type", "lora.type"], &["lora"]),
    fixed(&["use_peft", "use_lora", "lora.enabled"], &["true"]),
    fixed(&["stage"], &["sft"]),
    fixed(&["do_train"], &["true"]),
    fixed(&["init_lora_weights"], &["true"]),
    fixed(&["fan_in_fan_out", "lora_fan_in_fan_out"], &["false"]),
    fixed(&["bf16"], &["true", "auto"]),
    fixed(&["fp16"], &["false"]),
    fixed(&["torch_dtype", "dtype"], &["bfloat16", "bf16", "auto", "torch.bfloat16"]),
    fixed(&["bnb_4bit_quant_type", "quant_type"], &["nf4"]),
    fixed(&["bnb_4bit_compute_dtype", "compute_dtype"], &["bfloat16", "bf16", "torch.bfloat16"]),
    fixed(&["bnb_4bit_quant_storage"], &["uint8", "torch.uint8"]),
    fixed(&["model_type"], &["llamaforcausallm", "automodelforcausallm", "mistralforcausallm", "llama"]),
    fixed(&["tokenizer_type"], &["autotokenizer", "llamatokenizer", "pretrainedtokenizerfast"]),
    fixed(&["metric_for_best_model"], &["eval_loss", "loss", "none", ""]),
    fixed(&["greater_is_better"], &["false", "none", ""]),
    // How other trainers compute the same values, pad, cache or check.
    fixed(
        &["attn_implementation", "flash_attention", "xformers_attention", "sdp_attention", "use_flash_attention_2"],
        &[],
    ),
    fixed(&["tf32", "strict", "debug", "local_rank", "trust_remote_code", "use_fast_tokenizer"], &[]),
    fixed(&["pad_to_sequence_len", "gradient_checkpointing_kwargs", "remove_unused_columns"], &[]),
    fixed(&["dataset_prepared_path", "dataset_processes", "dataset_num_proc", "dataloader_num_workers"], &[]),
    fixed(&["dataloader_pin_memory", "ddp_find_unused_parameters", "use_cache"], &[]),
    fixed(&["per_device_eval_batch_size", "eval_batch_size", "eval_sample_packing", "loraplus_lr_embedding"], &[]),
    fixed(&["logging_strategy", "log_level", "disable_tqdm", "overwrite_output_dir"], &[]),
];

/// Features of the format that this version does not have; a value that turns them off is accepted.
pub const NOT_YET: &[&str] = &[
    "saves_per_epoch",
    "evals_per_epoch",
    "do_eval",
    "report_to",
    "wandb_project",
    "wandb_entity",
    "wandb_watch",
    "wandb_name",
    "wandb_run_id",
    "wandb_log_model",
    "run_name",
    "push_to_hub",
    "hub_model_id",
    "use_dora",
    "peft_use_dora",
    "modules_to_save",
    "lora_modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "peft_layers_to_transform",
    "lora_model_dir",
    "load_in_8bit",
    "train_on_inputs",
    "train_on_input",
    "group_by_length",
    "neftune_noise_alpha",
    "label_smoothing_factor",
    "special_tokens",
    "rope_scaling",
    "deepspeed",
    "fsdp",
    "fsdp_config",
];

/// A key of another trainer that says something about one of our settings.
pub struct Derived {
    pub names: &'static [&'static str],
    pub switch: bool,
    pub values: &'static str,
    /// None: it says nothing.
    pub read: fn(&Value) -> Result<Option<Implied>, Reject>,
}

pub struct Implied {
    pub setting: &'static str,
    pub value: Value,
    /// Holds only where nothing else speaks of the setting.
    pub weak: bool,
}

fn quantization(value: &'static str, weak: bool) -> Result<Option<Implied>, Reject> {
    Ok(Some(Implied { setting: "quantization", value: Value::text(value), weak }))
}

fn strategy(setting: &'static str, value: &Value) -> Result<Option<Implied>, Reject> {
    let text = if is_off(value) { "no".to_owned() } else { String::read(value)?.trim().to_ascii_lowercase() };
    match text.as_str() {
        "steps" => Ok(None),
        "no" => Ok(Some(Implied { setting, value: Value::text("0"), weak: false })),
        "epoch" => Ok(Some(Implied { setting, value: Value::text("epoch"), weak: false })),
        "best" => Err(Reject::NotYet("best")),
        _ => Err(Reject::Wrong),
    }
}

pub const DERIVED: &[Derived] = &[
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
        names: &["quantization_bit", "quantization.bits"],
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
        names: &["lora_target_linear"],
        switch: true,
        values: "true or false",
        read: |value| {
            let all = !is_off(value) && bool::read(value)?;
            Ok(all.then(|| Implied { setting: "lora_target_modules", value: Value::text("all-linear"), weak: false }))
        },
    },
];

#[derive(Clone, Copy)]
pub enum Known {
    Setting(&'static SettingInfo),
    Derived(&'static Derived),
    Fixed(&'static Fixed),
    NotYet,
}

/// Section names in use, and the one that dotted aliases are written with.
const SECTIONS: &[(&str, &str)] = &[
    ("model", "model"),
    ("lora", "lora"),
    ("lora_config", "lora"),
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
    ("logging", "logging"),
];

pub fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

/// `--lora-r`, `lora-r` and `lora_r` are one name.
pub fn normal(name: &str) -> String {
    name.trim_start_matches('-').replace('-', "_")
}

fn exact(name: &str) -> Option<Known> {
    let setting = SETTINGS.iter().find(|s| s.name == name || s.aliases.contains(&name)).map(Known::Setting);
    setting
        .or_else(|| DERIVED.iter().find(|d| d.names.contains(&name)).map(Known::Derived))
        .or_else(|| FIXED.iter().find(|f| f.names.contains(&name)).map(Known::Fixed))
        .or_else(|| NOT_YET.contains(&name).then_some(Known::NotYet))
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
    let settings = SETTINGS.iter().flat_map(|s| std::iter::once(s.name).chain(s.aliases.iter().copied()));
    let derived = DERIVED.iter().flat_map(|d| d.names.iter().copied());
    let fixed = FIXED.iter().flat_map(|f| f.names.iter().copied());
    settings.chain(derived).chain(fixed).chain(NOT_YET.iter().copied())
}

/// The known name with the most letters in common.
pub fn nearest(name: &str) -> &'static str {
    // Names are short; what is not would only cost time.
    let name: String = normal(name).to_lowercase().chars().take(80).collect();
    let closeness = |known: &str| strsim::normalized_damerau_levenshtein(known, &name);
    all_names().max_by(|a, b| closeness(a).total_cmp(&closeness(b))).unwrap_or("model")
}
