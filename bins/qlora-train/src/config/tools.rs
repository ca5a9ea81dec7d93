//! Other trainers that settings files are written for, recognized by their keys, and their defaults.

use super::yaml::{Entry, Value};

/// Another trainer that a settings file was written for.
pub struct Tool {
    pub name: &'static str,
    /// Keys that identify the tool: three of them are enough.
    keys: &'static [&'static str],
    /// Those of them that count twice
    sure: &'static [&'static str],
    /// Its own defaults that change what is trained and are not ours, by our names.
    pub defaults: &'static [(&'static str, &'static str)],
    /// lora_alpha over lora_r, where neither it nor a scale is given. None: ours.
    pub alpha_over_r: Option<f64>,
    /// Keys without which the tool does something that is not done here, each with the note for the user.
    pub told_without: &'static [(&'static str, &'static str)],
}

pub static LLAMA_FACTORY: Tool = Tool {
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
    sure: &[],
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
        ("too_long", "proportional"),
    ],
    alpha_over_r: Some(2.0),
    told_without: &[],
};

static AXOLOTL: Tool = Tool {
    name: "Axolotl",
    keys: &["base_model", "datasets", "sequence_len", "micro_batch_size", "sample_packing", "dataset_prepared_path"],
    sure: &[],
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
    sure: &[],
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
    sure: &["use_peft"],
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

/// Settings for the length of a run: if one is given, the tool's own default does not count.
pub const LENGTHS: [&str; 2] = ["num_train_epochs", "max_steps"];
/// Settings for the warm-up.
pub const WARM_UPS: [&str; 2] = ["warmup_ratio", "warmup_steps"];

impl Tool {
    /// The tool that a file was written for: the file has three of its keys, or two including one that only this tool
    /// has.
    pub fn of(entries: &[Entry]) -> Option<&'static Self> {
        let weight = |tool: &Self, key: &str| match () {
            _ if tool.sure.contains(&key) => 2,
            _ if tool.keys.contains(&key) => 1,
            _ => 0,
        };
        let count = |tool: &Self| entries.iter().map(|entry| weight(tool, &entry.key)).sum::<usize>();
        [&LLAMA_FACTORY, &MLX_LM, &AXOLOTL, &TRL].into_iter().find(|tool| count(tool) >= 3)
    }
}

/// The line of the first component of a file of torchtune, whose sections are calls of classes.
pub fn torchtune_component(entries: &[Entry]) -> Option<u64> {
    let inner = entries.iter().filter_map(|entry| match &entry.value {
        Value::Map(inner) => Some(inner),
        _ => None,
    });
    inner.flatten().find(|entry| entry.key == "_component_").map(|entry| entry.line)
}
