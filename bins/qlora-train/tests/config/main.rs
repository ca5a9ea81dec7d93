//! The meaning of a settings file and flags: known answers.

mod foreign;
mod other_tools;

use std::path::PathBuf;

use qlora_train::config::*;

fn yaml(text: &str) -> Settings {
    Settings::from_yaml(text, "cfg.yaml", &[]).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

fn flags(args: &[&str]) -> Settings {
    parse_overrides(args).and_then(|args| args.load()).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

#[test]
fn table_shows_the_real_defaults() {
    for info in SETTINGS {
        let default = info.value_in(&Settings::default());
        let absent = default.is_null() || default == serde_json::json!([]);
        if absent {
            assert!(!info.default.is_empty(), "{}", info.name);
        } else {
            assert_eq!(info.value_in(&yaml(&format!("{}: {}", info.name, info.default))), default, "{}", info.name);
        }
    }
    assert_eq!(yaml(""), Settings::default());
    assert_eq!(yaml("# nothing\n---\n"), Settings::default());
}

#[test]
fn names_are_unique_over_all_lists() {
    let mut names: Vec<&str> = all_names().collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn handbook_file_with_sections() {
    let settings = yaml(
        "model:
  name: models/llama
  torch_dtype: bfloat16
lora:
  rank: 8
  alpha: 16
  dropout: 0.05
  target_modules: [v_proj, q_proj]
  bias: none
  task_type: CAUSAL_LM
training:
  epochs: 3
  batch_size: 4
  gradient_accumulation_steps: 2
  learning_rate: 1e-4
  bf16: true
  gradient_checkpointing: true
  max_seq_length: 512
  warmup_steps: 10
  save_strategy: no
data:
  path: rows.jsonl
  validation: val.jsonl
output:
  dir: out
",
    );
    let expected = Settings {
        model: Some("models/llama".into()),
        lora_r: 8,
        lora_alpha: 16.0,
        lora_dropout: 0.05,
        lora_target_modules: settings.lora_target_modules.clone(),
        num_train_epochs: 3.0,
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 2,
        learning_rate: Some(1e-4),
        gradient_checkpointing: Checkpointing::On,
        max_length: 512,
        warmup_ratio: 0.0,
        warmup_steps: Some(10.0),
        data: vec!["rows.jsonl".into()],
        val_data: vec!["val.jsonl".into()],
        output_dir: Some("out".into()),
        save_steps: Every::Never,
        ..Settings::default()
    };
    assert_eq!(settings, expected);
    assert_eq!(settings.lora_target_modules.names(), ["q_proj", "v_proj"]);
    settings.validate(Purpose::Train).unwrap();
    // Other names of the sections, and the scalar spelling of two of them.
    let other = yaml("peft_config: {r: 8, lora_alpha: 16}\ntraining_args: {lr: 1e-4}\nlora:\noutput: out\nmodel: m");
    assert_eq!((other.lora_r, other.lora_alpha, other.learning_rate), (8, 16.0, Some(1e-4)));
    assert_eq!((other.output_dir, other.model.as_deref()), (Some("out".into()), Some("m")));
}

#[test]
fn axolotl_file() {
    let settings = yaml(
        "base_model: models/llama
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: a.jsonl
    type: chat_template
  - path: b.jsonl
dataset_prepared_path:
val_set_size: 0.05
output_dir: ./out
adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_fan_in_fan_out:
wandb_project:
wandb_log_model:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_steps: 10
weight_decay: 0.0
deepspeed:
fsdp: []
special_tokens: {}
",
    );
    assert_eq!(settings.data, [PathBuf::from("a.jsonl"), PathBuf::from("b.jsonl")]);
    assert_eq!(settings.val_set_size, ValSet::Share(0.05));
    assert_eq!(settings.quantization, Quantization::Nf4);
    assert_eq!((settings.max_length, settings.per_device_train_batch_size, settings.num_train_epochs), (4096, 2, 4.0));
    assert_eq!(settings.lora_target_modules, TargetModules::all_linear());
    settings.validate(Purpose::Train).unwrap();
}

#[test]
fn quantization_is_told_from_the_keys_of_other_trainers() {
    for (text, expected) in [
        ("adapter: qlora", Quantization::Nf4),
        ("adapter: lora", Quantization::None),
        ("adapter: lora\nload_in_4bit: true", Quantization::Nf4),
        ("load_in_4bit: false", Quantization::None),
        ("quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4}", Quantization::Nf4),
        ("quantization_bit: 4", Quantization::Nf4),
        ("quantization: none", Quantization::None),
    ] {
        assert_eq!(yaml(text).quantization, expected, "{text}");
    }
    let over = |text: &str, name: &str, value: &str| {
        Settings::from_yaml(text, "cfg.yaml", &[(name.into(), value.into())]).unwrap().quantization
    };
    assert_eq!(over("load_in_4bit: true", "quantization", "none"), Quantization::None);
    assert_eq!(over("quantization: nf4", "adapter", "lora"), Quantization::Nf4);
}

#[test]
fn flags_in_every_spelling() {
    for args in [
        &["--lora-r", "8"][..],
        &["--lora-r=8"],
        &["--lora_r", "8"],
        &["--lora-rank", "8"],
        &["--lora.rank=8"],
        &["--lora-r", "8", "--lora-rank", "8"],
    ] {
        assert_eq!(flags(args), Settings { lora_r: 8, ..Settings::default() }, "{args:?}");
    }
    let args =
        parse_overrides(&["cfg.yaml", "--data", "a.jsonl", "--packing", "--data=b,c.jsonl", "--seed", "7"]).unwrap();
    assert_eq!(args.file(), Some(std::path::Path::new("cfg.yaml")));
    let settings = Settings::load(None, &args.overrides).unwrap();
    assert_eq!(settings.data, [PathBuf::from("a.jsonl"), PathBuf::from("b,c.jsonl")]);
    assert!(settings.packing && settings.seed == 7);
    assert!(!flags(&["--packing", "false"]).packing);
    assert_eq!(flags(&["--max-steps", "-1"]).max_steps, Limit(None));
    assert_eq!(flags(&["--report-to", "none", "--task-type", "CAUSAL_LM", "--bf16"]), Settings::default());
    let modules = flags(&["--lora-target-modules", "v_proj,q_proj", "--lora-target-modules", "o_proj"]);
    assert_eq!(modules.lora_target_modules.names(), ["q_proj", "v_proj", "o_proj"]);
}

#[test]
fn a_list_from_flags_replaces_the_files() {
    let flags = [("data".to_string(), "b.jsonl".to_string())];
    let settings = Settings::from_yaml("data: [a.jsonl, c.jsonl]", "cfg.yaml", &flags).unwrap();
    assert_eq!(settings.data, [PathBuf::from("b.jsonl")]);
    let flags = [("val-set-size".to_string(), "0.1".to_string())];
    let settings = Settings::from_yaml("val_data: v.jsonl", "cfg.yaml", &flags).unwrap();
    assert_eq!((settings.val_data.len(), settings.val_set_size), (0, ValSet::Share(0.1)));
}

#[test]
fn a_command_flattens_the_settings_and_explains_them() {
    use clap::{Args, Command, FromArgMatches};
    let mut command = SettingsArgs::augment_args(Command::new("train"));
    let help = command.render_long_help().to_string();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let table = settings_markdown();
    for info in SETTINGS {
        assert!(help.contains(&format!("--{} ", info.name.replace('_', "-"))), "{}", info.name);
        assert!(words(&help).contains(&words(info.values)), "{}", info.name);
        assert!(table.contains(&format!("| `{}` |", info.name)));
    }
    assert!(!help.contains("--use-qalora"), "what is not built is not offered");
    let matches = command.try_get_matches_from(["train", "cfg.yaml", "--lora-r", "4"]).unwrap();
    let args = SettingsArgs::from_arg_matches(&matches).unwrap();
    assert_eq!(args.overrides, [("lora_r".to_string(), "4".to_string())]);
}

#[test]
fn preset_halves_only_the_default_rate() {
    const SMALL: u64 = 8_000_000_000;
    const LARGE: u64 = 70_000_000_000;
    let plain = Settings::default();
    assert_eq!((plain.learning_rates_for(SMALL), plain.learning_rates_for(LARGE)), ((2e-4, 2e-4), (1e-4, 1e-4)));
    assert_eq!(plain.learning_rate_for(LARGE_MODEL_PARAMETERS), 1e-4);
    assert_eq!(plain.learning_rate_for(LARGE_MODEL_PARAMETERS - 1), 2e-4);
    let preset = yaml("preset: loraplus");
    assert_eq!(preset.learning_rates_for(SMALL), (1e-4, 16.0 * 1e-4));
    assert_eq!(preset.learning_rates_for(LARGE), (5e-5, 16.0 * 5e-5));
    let own = yaml("preset: loraplus\nlearning_rate: 3e-4\nloraplus_lr_ratio: 4");
    assert_eq!(own.learning_rates_for(SMALL), (3e-4, 4.0 * 3e-4));
}

#[test]
fn warmup_means_one_thing() {
    for (text, total, expected) in [
        ("", 100, 3),
        ("warmup_ratio: 0.1", 7, 1),
        ("warmup_steps: 10", 50, 10),
        // A run shorter than its warm-up still reaches its rate; a run of one step trains.
        ("warmup_steps: 10", 5, 4),
        ("", 1, 0),
        ("warmup_steps: 0.1", 25, 3),
        ("warmup_steps: 0", 50, 0),
        ("warmup_steps: 0\nwarmup_ratio: 0.1", 50, 5),
        ("warmup_steps: 4\nwarmup_ratio: 0", 50, 4),
        ("warmup_steps: 4\nlr_scheduler_type: constant", 50, 0),
        ("warmup_steps: 4\nlr_scheduler_type: constant_with_warmup", 50, 4),
    ] {
        assert_eq!(yaml(text).warmup_steps_of(total), expected, "{text}");
    }
    let over = Settings::from_yaml("warmup_ratio: 0.2", "cfg.yaml", &[("warmup-steps".into(), "2".into())]).unwrap();
    assert_eq!(over.warmup_steps_of(100), 2);
    assert_eq!(over.lr_factor(1, 100), 0.5);
}

#[test]
fn hash_covers_results_and_nothing_else() {
    let base = yaml("model: m\ndata: d.jsonl").result_hash();
    assert!(base.len() == 64 && base.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(yaml("data: [d.jsonl]\nbase_model: m\nlearning_rate: null").result_hash(), base);
    for same in ["output_dir: o", "threads: 3", "logging_steps: 9", "host_memory: 1GiB", "device: cpu"] {
        assert_eq!(yaml(&format!("model: m\ndata: d.jsonl\n{same}")).result_hash(), base, "{same}");
    }
    for other in ["lora_r: 8", "seed: 1", "preset: loraplus", "packing: false", "loraplus_lr_ratio: 16"] {
        assert_ne!(yaml(&format!("model: m\ndata: d.jsonl\n{other}")).result_hash(), base, "{other}");
    }
    // Once resolved, a default rate and the same rate written down are the same run, however it came about.
    let resolved = |text: &str| {
        let mut settings = yaml(text);
        settings.resolve(1_000_000);
        settings.result_hash()
    };
    assert_eq!(resolved(""), resolved("learning_rate: 2e-4"));
    assert_eq!(resolved("preset: loraplus"), resolved("learning_rate: 1e-4\nloraplus_lr_ratio: 16"));
}

/// Old runs are recognized by it: a change of this value orphans them and needs a reason.
#[test]
fn hash_text_is_stable() {
    let expected = "e3efed6b2c9b55db1cb43b74f4c6c413010cb22bf507c2a42c3933ddb9fe53f8";
    assert_eq!(yaml("model: m\ndata: d.jsonl\nlearning_rate: 2e-4").result_hash(), expected);
}

#[test]
fn booleans_numbers_and_text_as_people_write_them() {
    for (text, expected) in [("yes", true), ("off", false), ("True", true), ("0", false), ("'true'", true)] {
        assert_eq!(yaml(&format!("packing: {text}")).packing, expected, "{text}");
    }
    for text in ["2e-4", "'2e-4'", "0.0002", "2.0E-4", ".0002"] {
        assert_eq!(yaml(&format!("learning_rate: {text}")).learning_rate, Some(2e-4), "{text}");
    }
    assert_eq!(yaml("max_steps: 1e3").max_steps, Limit(Some(1000)));
    assert_eq!(yaml("seed: 18446744073709551615").seed, u64::MAX);
    assert_eq!(yaml("revision: '12345'").revision.as_deref(), Some("12345"));
    assert_eq!(yaml("revision: 0012345").revision.as_deref(), Some("0012345"));
    assert_eq!(yaml("host_memory: 24 GB").host_memory, Some(Bytes(24_000_000_000)));
    assert_eq!(yaml("host_memory: 4096").host_memory, Some(Bytes(4096)));
    assert_eq!(yaml("seed: &b 7\nlora_r: *b").lora_r, 7);
}
