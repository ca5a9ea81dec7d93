//! The one list of settings: field, type, default, accepted values, other names, help. Parsing, `--help`, the
//! table in docs/settings.md, the record of a run and the search for the nearest name all come from it.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::answers::{BestMetric, SamplePrompts, is_pattern};
use super::enums::{
    BadRow, Checkpointing, Compute, CudaGraphs, Device, HeadResidency, InitLora, LinearKernels, MixStrategy, Optim,
    Preset, PromptCompletion, Quantization, Scheduler, StateResidency, TargetModules, TokenTile, TooLong,
    WeightResidency,
};
use super::given::GivenNames;
use super::intervals::{Every, Resume};
use super::lints::AllowedLints;
use super::mixing::{OfEach, RowsOfEach};
use super::patterns::{LayerNumbers, ModuleNames, Pattern, TokenIndices};
use super::role_names::RoleNames;
use super::trackers::ReportTo;
use super::types::{Bytes, Limit, Reject, SettingValue, ValSet, is_auto};
use super::yaml::Value;

/// The effect of a setting on a run's result: whether another value may give another adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Part of [`Settings::result_hash`].
    Results,
    /// Part of the hash only where it is not the default: runs from before the setting keep their hash.
    ResultsIfSet,
    /// Only where, how fast or how talkatively the run works.
    RunOnly,
}

pub struct SettingInfo {
    /// In YAML and [`Settings`]; the flag is `--` and this with hyphens.
    pub name: &'static str,
    /// Other names in use; `lora.rank` stands for `rank` in the section `lora`.
    pub aliases: &'static [&'static str],
    /// Default as written in YAML; a setting that is off by default says so in words.
    pub default: &'static str,
    /// Accepted values in words, as they follow "expected" in errors.
    pub values: &'static str,
    pub help: &'static str,
    pub effect: Effect,
    /// The flag may be repeated.
    pub list: bool,
    /// The flag needs no value.
    pub switch: bool,
    pub(super) set: fn(&mut Settings, &Value) -> Result<(), Reject>,
    pub(super) get: fn(&Settings) -> Json,
}

impl SettingInfo {
    /// The setting's value as [`Settings::to_json`] writes it.
    pub fn value_in(&self, settings: &Settings) -> Json {
        (self.get)(settings)
    }
}

/// True if the accepted values, in words, begin with `auto`.
fn offers_auto(values: &str) -> bool {
    values.split([',', ' ']).next() == Some("auto")
}

macro_rules! settings {
    ($( $help:literal $name:ident: $ty:ty = $init:expr, $shown:literal, $values:literal, $effect:ident,
        [$($alias:literal),*] $(, $check:expr)?; )+) => {
        /// Every setting of a run, resolved: defaults, preset, file and flags are already applied.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $( #[doc = $help] #[doc = concat!("\n\nExpected: ", $values, ". Default: ", $shown, ".")] pub $name: $ty, )+
            /// Names of the settings that were given, by a file or by flags
            pub given: GivenNames,
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings { $( $name: $init, )+ given: GivenNames::default() }
            }
        }

        /// In the order of the table in docs/settings.md.
        pub const SETTINGS: &[SettingInfo] = &[ $( SettingInfo {
            name: stringify!($name),
            aliases: &[$($alias),*],
            default: $shown,
            values: $values,
            help: $help,
            effect: Effect::$effect,
            list: <$ty as SettingValue>::LIST,
            switch: <$ty as SettingValue>::SWITCH,
            set: |settings, value| {
                // `auto` means "not set" where it is among the values.
                let unset = <$ty as SettingValue>::OPTIONAL && is_auto(value) && offers_auto($values);
                let value = <$ty>::read(if unset { &Value::Null } else { value })?;
                $( let in_range: fn(&$ty) -> bool = $check;
                   if !in_range(&value) { return Err(Reject::Wrong); } )?
                settings.$name = value;
                Ok(())
            },
            get: |settings| settings.$name.json(),
        } ),+ ];
    };
}

settings! {
    "Base model: a Hugging Face directory, or a model id on the hub, `org/name` or `org/name@revision`, which is downloaded if it is not in the local cache."
    model: Option<String> = None, "none: must be given", "the path of a model", Results,
        ["base_model", "model_name_or_path", "base_model_name_or_path", "model_name", "model.name", "model.path", "model.name_or_path"];
    "Revision of a base model on the hub; the adapter records its commit."
    revision: Option<String> = None, "none", "a branch, tag or commit", Results,
        ["model_revision", "revision_of_model"];
    "Training rows: JSONL, JSON, Parquet or CSV files, patterns of their names, a folder of them, or the id of a data set on the hub: `org/name`, `org/name:split` or `org/name@revision:subset/split[:1000]`. The keys of a row determine its format."
    data: Vec<PathBuf> = Vec::new(), "none: must be given", "one path or a list of paths", Results,
        ["datasets", "dataset", "dataset_name", "data_path", "train_data", "train_file", "data.path", "data.train", "data.train_path",
         "data.file", "data.files", "data.train_data", "data.dataset_path", "training.data"];
    "Validation rows, in files of their own."
    val_data: Vec<PathBuf> = Vec::new(), "none", "one path or a list of paths", Results,
        ["test_datasets", "val_dataset", "eval_dataset", "validation_file", "eval_data", "data.validation", "data.val", "data.val_path",
         "data.eval_path", "data.eval", "data.val_file", "data.test"];
    "Rows held back from `data` for validation: a share if below 1, otherwise a count."
    val_set_size: ValSet = ValSet::Off, "0", "0, a share below 1, or a count of rows", Results,
        ["val_size", "split_dataset_ratio", "data.val_split", "data.validation_split", "data.test_size"],
        |v| !matches!(v, ValSet::Count(n) if *n > 1_000_000_000);
    "Maximum number of rows from each data file; the first ones are taken."
    max_samples: Limit = Limit(None), "none", "a count of rows; 0 or -1 for all", ResultsIfSet, ["data.max_samples"],
        |v| v.0.is_none_or(|v| v <= 1_000_000_000);
    "Maximum number of rows from each file of each entry of `data`; the first ones are taken, and 0 takes all. In YAML also `max_samples` beside the `path` of an entry."
    data_max_samples: OfEach<usize> = OfEach::NONE, "none", "a count of rows for each entry of `data`", ResultsIfSet, [],
        |v| v.0.iter().all(|v| *v <= 1_000_000_000);
    "Range of rows from each entry of `data`, `FROM:TO` counted from 0, or in percent with a %. The files of a folder or pattern count as one. A hub id takes its range in brackets: `org/name:train[:1000]`."
    data_rows: RowsOfEach = RowsOfEach::ALL, "none", "rows such as :1000, 1000:2000 or 10%: for each entry of `data`", ResultsIfSet, [];
    "Range of rows from each entry of `val_data`, in the form of `data_rows`."
    val_data_rows: RowsOfEach = RowsOfEach::ALL, "none", "rows such as :1000, 1000:2000 or 10%: for each entry of `val_data`", ResultsIfSet, [];
    "Weight of each entry of `data` in an epoch: 2 trains on its rows twice, 0.5 on half of them, drawn by `seed` and the same in every epoch. In YAML also `weight` beside the `path` of an entry."
    data_weights: OfEach<f64> = OfEach::NONE, "1 for each", "a number above 0, at most 1000, for each entry of `data`", ResultsIfSet,
        ["dataset_weights", "mixing_weights"], |v| v.0.iter().all(|v| *v > 0.0 && *v <= 1000.0);
    "Mixing of several files in an epoch: `concat` takes all rows; `interleave_under` and `interleave_over` mix by the shares of `interleave_probs`, until the first file is used up, or until all are."
    mix_strategy: MixStrategy = MixStrategy::Concat, "concat", "concat, interleave_under or interleave_over", ResultsIfSet, [];
    "Share of each entry of `data` in an epoch; the numbers are divided by their sum."
    interleave_probs: OfEach<f64> = OfEach::NONE, "none", "a number above 0, at most 1000, for each entry of `data`", ResultsIfSet, [],
        |v| v.0.iter().all(|v| *v > 0.0 && *v <= 1000.0);
    "Column of the prompts, if it is not `prompt`, `instruction` or another known name."
    prompt_column: Option<String> = None, "none", "the name of a column", ResultsIfSet,
        ["prompt_feature", "data.prompt_column"];
    "Column of the answers, if it is not `completion`, `output` or another known name."
    completion_column: Option<String> = None, "none", "the name of a column", ResultsIfSet,
        ["completion_feature", "response_column", "data.completion_column"];
    "Column of the text that an instruction refers to, if it is not `input`."
    input_column: Option<String> = None, "none", "the name of a column", ResultsIfSet, ["data.input_column"];
    "Column of the system messages, if it is not `system`."
    system_column: Option<String> = None, "none", "the name of a column", ResultsIfSet,
        ["system_feature", "data.system_column"];
    "Column of the turns, if it is not `messages` or `conversations`."
    messages_column: Option<String> = None, "none", "the name of a column", ResultsIfSet,
        ["chat_feature", "field_messages", "data.messages_column"];
    "Key of a turn's role, if it is not `role` or `from`. Turns are then read only by this key and `content_key`; a turn without them is refused."
    role_key: Option<String> = None, "none", "the name of a key", ResultsIfSet, ["message_field_role", "data.role_key"];
    "Key of a turn's content, if it is not `content` or `value`; works like `role_key`."
    content_key: Option<String> = None, "none", "the name of a key", ResultsIfSet, ["message_field_content", "data.content_key"];
    "More names for the roles in turns (user, assistant, system, tool or function_call), in addition to the known ones; in YAML also `roles` beside the `path` of an entry of `data`."
    roles: RoleNames = RoleNames::default(), "none", "names for roles, such as user=customer,assistant=agent", ResultsIfSet, ["data.roles"];
    "Column of plain text, if it is not `text`."
    text_column: Option<String> = None, "none", "the name of a column", ResultsIfSet,
        ["text_feature", "dataset_text_field", "data.text_column"];
    "Directory for the adapter, the metrics and the run's record."
    output_dir: Option<PathBuf> = None, "none: must be given", "the path of a directory", RunOnly,
        ["output", "adapter_path", "output.dir", "output.path", "output.directory"];
    "Whether a different earlier run in `output_dir` is removed. A directory that holds no run is never removed; the run is then refused."
    overwrite_output_dir: bool = false, "false", "true or false", RunOnly, [];
    "Adapter whose weights a new run begins with. Ranks, modules, scale, dropout and similar settings are taken from it unless they are given. Other ranks or modules are refused; for another scale, B is rescaled so that the adapter computes the same."
    init_adapter: Option<PathBuf> = None, "none", "the path of an adapter directory", ResultsIfSet,
        ["lora_model_dir", "adapter_name_or_path", "resume_adapter_file", "lora.init_adapter"];
    "Whether an adapter may be used on a base with other weights than it was trained on, such as the 16-bit original of an NF4 copy; its results then differ from training."
    allow_other_base: bool = false, "false", "true or false", RunOnly, [];
    "Lints to turn off. Lints warn of likely mistakes before the first step and during training; docs/lints.md lists them."
    allow: AllowedLints = AllowedLints::default(), "none", "names of lints, or all", RunOnly, ["allow_lints", "lints"];
    "Settings chosen together; `loraplus` sets `loraplus_lr_ratio` 16 and halves the default learning rate."
    preset: Option<Preset> = None, "none", "loraplus or none", RunOnly, [];

    "Quantization of the frozen base weights: 4 bits, or none (plain LoRA)."
    quantization: Quantization = Quantization::Nf4, "nf4", "nf4 or none", Results, ["quantization.type"];
    "Number of weights that share one absmax."
    nf4_block_size: usize = 64, "64", "a power of two from 32 to 4096", Results,
        ["quantization.block_size", "quantization.blocksize"],
        |v| (32..=4096).contains(v) && v.is_power_of_two();
    "Whether absmax is itself quantized to 8 bits."
    double_quant: bool = true, "true", "true or false", Results,
        ["bnb_4bit_use_double_quant", "use_bnb_nested_quant", "use_double_quant", "double_quantization"];
    "Directory for an NF4 copy of a 16-bit base, as `quantize` writes it. The base is then quantized only once: later runs read the copy, a quarter of its size, and may leave it on disk (`weights: disk`). The result is the same."
    quantized_cache: Option<PathBuf> = None, "none", "the path of a directory", RunOnly, [];

    "Rank of the adapters."
    lora_r: usize = 16, "16", "an integer from 1 to 256", Results,
        ["lora_rank", "r", "lora.r", "lora.rank", "init_r", "lora.init_r"],
        |v| (1..=256).contains(v);
    "Numerator of the adapters' scale alpha / r."
    lora_alpha: f64 = 32.0, "32", "a number above 0, at most 65536", Results, ["lora.alpha"],
        |v| *v > 0.0 && *v <= 65536.0;
    "Probability of dropout on the adapters' inputs."
    lora_dropout: f64 = 0.0, "0", "a number from 0 to below 1", Results, ["lora.dropout"],
        |v| *v >= 0.0 && (*v as f32) < 1.0;
    "Linear layers that get an adapter; `all-linear` means all in each block, never lm_head. A single regular expression must match the whole path of a module, as in PEFT."
    lora_target_modules: TargetModules = TargetModules::all_linear(), "all-linear",
        "all-linear, a regular expression or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, qkv_proj, gate_up_proj, input_linear, output_linear", Results,
        ["target_modules", "lora_target", "target_regex", "lora.target_modules", "lora.modules", "lora.keys"];
    "Layers that get adapters, by their numbers from 0."
    layers_to_transform: LayerNumbers = LayerNumbers::default(), "all layers", "the numbers of layers", ResultsIfSet,
        ["peft_layers_to_transform", "lora.layers_to_transform"];
    "Ranks of single modules: PEFT's regular expressions for the end of a module's path; the first match counts. vLLM and SGLang serve only one rank, which `export uniform` writes."
    rank_pattern: Pattern<usize> = Pattern::default(), "{}",
        "names of modules or regular expressions, each with an integer from 1 to 256", ResultsIfSet,
        ["lora_rank_pattern", "lora.rank_pattern"], |v| v.0.values().all(|r| (1..=256).contains(r));
    "Alphas of single modules, in the form of `rank_pattern`."
    alpha_pattern: Pattern<f64> = Pattern::default(), "{}",
        "names of modules or regular expressions, each with a number above 0, at most 65536", ResultsIfSet,
        ["lora_alpha_pattern", "lora.alpha_pattern"], |v| v.0.values().all(|a| *a > 0.0 && *a <= 65536.0);
    "DoRA: a trained magnitude for each output, beside the low-rank terms. A step computes every linear layer once more. vLLM, SGLang and llama.cpp serve it only merged into the base."
    use_dora: bool = false, "false", "true or false", ResultsIfSet, ["peft_use_dora", "lora.use_dora"];
    "AdaLoRA: training prunes ranks by their importance. Every linear layer begins with rank `lora_r`; at the end the average rank is `target_r`. The adapter is written as plain LoRA."
    use_adalora: bool = false, "false", "true or false", ResultsIfSet, ["lora.use_adalora"];
    "Average rank of the linear layers after pruning, with `use_adalora`."
    target_r: usize = 8, "8", "an integer from 1 to 255", ResultsIfSet, ["adalora_target_r", "lora.target_r"],
        |v| (1..=255).contains(v);
    "Optimizer steps before ranks are first pruned, with `use_adalora`."
    tinit: usize = 0, "0", "a count of steps", ResultsIfSet, ["adalora_tinit", "lora.tinit"], |v| *v <= 1_000_000_000;
    "Optimizer steps after ranks are last pruned, with `use_adalora`."
    tfinal: usize = 0, "0", "a count of steps", ResultsIfSet, ["adalora_tfinal", "lora.tfinal"], |v| *v <= 1_000_000_000;
    "Optimizer steps from one pruning of ranks to the next, with `use_adalora`."
    delta_t: usize = 1, "1", "a count of steps of at least 1", ResultsIfSet, ["deltaT", "adalora_delta_t", "adalora_deltaT", "lora.deltaT"],
        |v| (1..=1_000_000_000).contains(v);
    "Decay of the moving average of importance, with `use_adalora`: PEFT's beta1."
    adalora_beta1: f64 = 0.85, "0.85", "a number above 0 and below 1", ResultsIfSet, ["lora.beta1"], |v| *v > 0.0 && *v < 1.0;
    "Decay of the moving average of importance's deviation (its uncertainty), with `use_adalora`: PEFT's beta2."
    adalora_beta2: f64 = 0.85, "0.85", "a number above 0 and below 1", ResultsIfSet, ["lora.beta2"], |v| *v > 0.0 && *v < 1.0;
    "Weight of the penalty that keeps A and B orthogonal, with `use_adalora`: the factor in the loss of the mean of ‖A·Aᵀ − I‖ and ‖Bᵀ·B − I‖."
    orth_reg_weight: f64 = 0.5, "0.5", "a number from 0 to 1000", ResultsIfSet, ["adalora_orth_reg_weight", "lora.orth_reg_weight"],
        |v| (0.0..=1000.0).contains(v);
    "Initial values of the adapters: `true` is a random A and a B of zero; `pissa` the largest singular directions of the weights; `pissa_niter_N` an approximation of those by N iterations; `olora` the first columns of the weights' QR decomposition. The last three subtract the initial values from the base while training; the written adapter has twice the rank and fits the unchanged base."
    init_lora_weights: InitLora = InitLora::Random, "true", "true, pissa, pissa_niter_N or olora", ResultsIfSet,
        ["peft_init_lora_weights", "lora.init_lora_weights"];
    "Modules that are trained in full beside the adapters: `embed_tokens`, `lm_head` or norms, by the end of their paths as in PEFT. If the output layer is tied to the embedding, both are trained as one tensor."
    modules_to_save: ModuleNames = ModuleNames::default(), "none", "names of modules", ResultsIfSet,
        ["lora_modules_to_save", "additional_target", "lora.modules_to_save"];
    "Ids of tokens whose embedding rows are trained beside the adapters: for special tokens and words that the base never learned. An object has separate lists for `embed_tokens` and `lm_head`; if the output layer is tied to the embedding, they share their rows. vLLM, SGLang and llama.cpp serve the adapter only merged into the base."
    trainable_token_indices: TokenIndices = TokenIndices::default(), "none", "ids of tokens, or an object of modules with ids", ResultsIfSet,
        ["peft_trainable_token_indices", "lora.trainable_token_indices"];
    "Class of transformers that will load the adapter, if the base is the text model of a larger model: the larger model's class, such as Gemma3ForConditionalGeneration, or the text model's own, such as Gemma3ForCausalLM."
    adapter_architecture: Option<String> = None, "the class that config.json names", "the name of a class of transformers", ResultsIfSet, [];
    "Scale alpha / √r instead of alpha / r."
    use_rslora: bool = false, "false", "true or false", Results, ["peft_use_rslora", "rslora", "lora.rslora"];
    "Learning rate of the B matrices divided by that of the A matrices (LoRA+)."
    loraplus_lr_ratio: f64 = 1.0, "1", "a number above 0, at most 10000", Results,
        ["loraplus_ratio", "lora.loraplus_lr_ratio", "lora.lr_ratio"], |v| *v > 0.0 && *v <= 10_000.0;

    "Peak learning rate of the A matrices."
    learning_rate: Option<f64> = None, "2e-4; 1e-4 from 60B parameters up", "auto or a number above 0, at most 10", Results,
        ["lr", "training.lr"], |v| v.is_none_or(|v| v > 0.0 && v <= 10.0);
    "Shape of the learning rate over the run; `constant` has no warm-up."
    lr_scheduler_type: Scheduler = Scheduler::Cosine, "cosine",
        "constant, constant_with_warmup, linear or cosine", Results,
        ["lr_scheduler", "scheduler", "training.scheduler"];
    "Warm-up as a share of all steps, rounded up; it always ends before the last step."
    warmup_ratio: f64 = 0.03, "0.03", "a number from 0 to 1", Results, [], |v| (0.0..=1.0).contains(v);
    "Warm-up in optimizer steps, instead of `warmup_ratio`; below 1 it is a ratio. It always ends before the last step."
    warmup_steps: Option<f64> = None, "none", "a ratio below 1 or a whole number of steps", Results, [],
        |v| v.is_none_or(|v| (0.0..1.0).contains(&v) || (v.fract() == 0.0 && (1.0..=1e9).contains(&v)));
    "Passes over the data; with a fraction the last pass stops early."
    num_train_epochs: f64 = 1.0, "1", "a number above 0, at most 1000000", Results,
        ["num_epochs", "epochs", "training.epochs"], |v| *v > 0.0 && *v <= 1e6;
    "Number of optimizer steps, instead of `num_train_epochs`."
    max_steps: Limit = Limit(None), "none", "a count of steps; 0 or -1 for no limit", Results, ["iters"],
        |v| v.0.is_none_or(|v| v <= 1_000_000_000);
    "Rows, or packs of rows, in one micro-batch."
    per_device_train_batch_size: usize = 1, "1", "an integer from 1 to 65536", Results,
        ["micro_batch_size", "batch_size", "per_gpu_train_batch_size", "training.batch_size"], |v| (1..=65536).contains(v);
    "Micro-batches summed into one optimizer step, weighted by their supervised tokens. With several processes each computes this many, so a step has this number times the number of processes. A run that resumes with another number of processes keeps the micro-batches of a step."
    gradient_accumulation_steps: usize = 1, "1", "an integer from 1 to 1000000", Results,
        ["grad_accumulation_steps", "training.grad_accum", "training.accumulation_steps"],
        |v| (1..=1_000_000).contains(v);
    "Maximum number of tokens in a row, or in a pack of rows."
    max_length: usize = 2048, "2048", "an integer from 2 to 16777216", Results,
        ["sequence_len", "max_seq_length", "max_seq_len", "cutoff_len", "model_max_length"],
        |v| (2..=1 << 24).contains(v);
    "Treatment of rows of more than `max_length` tokens: `truncate` keeps the beginning; `proportional` shortens the prompt and the answer of each turn, as LLaMA-Factory does; `chunk` splits plain text into rows of `max_length` and drops other long rows. The counts are printed."
    too_long: TooLong = TooLong::Drop, "drop", "drop, truncate, proportional, error or chunk", Results,
        ["overlong", "excess_length_strategy"];
    "Treatment of rows that cannot be trained on: `skip` counts them, and refuses the data if they are more than a tenth."
    on_bad_row: BadRow = BadRow::Error, "error", "error or skip", ResultsIfSet, [];
    "Form of texts under prompt and completion: plain text, or turns of the chat template; `auto` uses turns if the model has a template, as `generate` does."
    prompt_completion: PromptCompletion = PromptCompletion::Auto, "auto", "auto, text or chat", ResultsIfSet, [];
    "Whether repeated rows (the same tokens, labels and weights) are left out; the counts are printed."
    deduplicate: bool = false, "false", "true or false", ResultsIfSet, ["dataset_exact_deduplication"];
    "Whether rows are shuffled anew in each epoch, by `seed`; `false` keeps the order of the files, in packs too."
    shuffle: bool = true, "true", "true or false", ResultsIfSet, ["data.shuffle"];
    "Whether several short rows share one pack of `max_length` tokens; they never attend to each other."
    packing: bool = true, "true", "true or false", Results, ["sample_packing"];
    "Directory for tokenized rows: later runs with the same data, tokenizer, template and settings read them from there, and no run holds them in memory."
    tokenized_cache: Option<PathBuf> = None, "none", "the path of a directory", RunOnly, [];
    "Chat template, instead of the model's own."
    chat_template: Option<String> = None, "none: the model's own", "chatml, alpaca, llama3, llama2, mistral, zephyr, vicuna, gemma, phi3, qwen3_training, deepseek_r1_training or the path of a template file",
        Results, ["chat_template_path", "chat_template_jinja"];
    "EOS of the tokenizer; a different one is refused."
    eos_token: Option<String> = None, "none: the tokenizer's", "the text of a token", ResultsIfSet,
        ["special_tokens.eos_token"];
    "BOS of the tokenizer; a different one is refused."
    bos_token: Option<String> = None, "none: the tokenizer's", "the text of a token", ResultsIfSet,
        ["special_tokens.bos_token"];

    "Optimizer: AdamW with blockwise 8-bit states (f32 for tensors under 4,096 elements), or with f32 states."
    optim: Optim = Optim::Adamw8bit, "adamw_8bit", "adamw_8bit or adamw_torch", Results, ["optimizer"];
    "Decay of the first moment."
    adam_beta1: f64 = 0.9, "0.9", "a number from 0 to below 1", Results, ["beta1"], |v| (0.0..1.0).contains(v);
    "Decay of the second moment."
    adam_beta2: f64 = 0.999, "0.999", "a number from 0 to below 1", Results, ["beta2"], |v| (0.0..1.0).contains(v);
    "Number added to the root of the second moment, against division by zero."
    adam_epsilon: f64 = 1e-8, "1e-8", "a number above 0, at most 1", Results, ["adam_eps"],
        |v| (*v as f32) > 0.0 && *v <= 1.0;
    "Decoupled weight decay of A and B."
    weight_decay: f64 = 0.0, "0", "a number from 0 to 100", Results, [], |v| (0.0..=100.0).contains(v);
    "L2 norm to which gradients are clipped; 0 turns clipping off."
    max_grad_norm: f64 = 1.0, "1", "a number of at least 0", Results, ["gradient_clipping"], |v| *v >= 0.0;
    "Seed of the initial A, the order of rows and dropout."
    seed: u64 = 42, "42", "an integer from 0 to 18446744073709551615", Results, ["random_state", "random_seed"];

    "Optimizer steps between two lines of metrics; below 1, a share of all steps."
    logging_steps: Every = Every::Steps(1), "1", "a count of steps from 1 to 1000000000, or a share of all steps below 1", RunOnly,
        ["log_interval", "steps_per_report"], |v| matches!(v, Every::Steps(1..=1_000_000_000) | Every::Share(_));
    "Whether the first step is logged too, if `logging_steps` would skip it."
    logging_first_step: bool = false, "false", "true or false", RunOnly, [];
    "Whether the run writes `report.html`, one page with its curves, rows, memory, time and changes to the modules, during training and at the end."
    report: bool = true, "true", "true or false", RunOnly, ["write_report"];
    "Trackers that receive the metrics: `tensorboard` writes event files. Other trackers are not supported; a note says so."
    report_to: ReportTo = ReportTo::default(), "none", "none, tensorboard or all", RunOnly, [];
    "Directory for TensorBoard's event files."
    logging_dir: Option<PathBuf> = None, "`runs` in output_dir", "the path of a directory", RunOnly, ["logging.dir", "tensorboard_dir"];
    "Optimizer steps between two checkpoints; below 1, a share of all steps."
    save_steps: Every = Every::Steps(500), "500", "a count of steps, a share below 1, epoch, `N per epoch`, or 0 for never", RunOnly,
        ["save_every"], |v| !matches!(v, Every::Steps(n) if *n > 1_000_000_000);
    "Number of checkpoints to keep; the best one is kept in addition."
    save_total_limit: Limit = Limit(Some(2)), "2", "a count of checkpoints; 0 or -1 for all", RunOnly, [],
        |v| v.0.is_none_or(|v| v <= 1_000_000_000);
    "Checkpoint to resume from: the newest in `output_dir` (`true`; without one, the run starts from the beginning) or the one given."
    resume_from_checkpoint: Resume = Resume::No, "false", "true, false, latest, auto (the same as latest) or the path of a checkpoint", RunOnly,
        ["auto_resume_from_checkpoints"];
    "Optimizer steps between two evaluations of the validation rows, and answers to `sample_prompts`, beside those at the end."
    eval_steps: Every = Every::Never, "0", "a count of steps, a share below 1, epoch, `N per epoch`, or 0 for never", RunOnly, [],
        |v| !matches!(v, Every::Steps(n) if *n > 1_000_000_000);
    "Whether the validation rows are also evaluated before the first step, as a baseline."
    eval_on_start: bool = false, "false", "true or false", RunOnly, [];
    "Prompts that the model answers, greedily, before the first step, at each evaluation and at the end: a file with one prompt per line, or of rows, whose last answers are shown beside the model's; in YAML also a list of prompts. Answering does not change the training."
    sample_prompts: SamplePrompts = SamplePrompts::None, "none", "the path of a file, or a list of prompts", RunOnly,
        ["eval_prompts", "sample_prompts_file"];
    "Number of validation rows, the first ones, that the model also answers at each evaluation; its answers are compared with the rows' own."
    eval_answers: usize = 0, "0", "a count of rows", RunOnly, ["eval_table_size", "num_eval_samples"], |v| *v <= 1_000_000_000;
    "Maximum number of tokens in an answer to `sample_prompts` or `eval_answers`."
    eval_max_new_tokens: usize = 128, "128", "an integer from 1 to 1048576", RunOnly, ["sample_max_new_tokens"],
        |v| (1..=1 << 20).contains(v);
    "Regular expression whose last match (its first group, if it has one) must be the same in an answer and its reference, such as `#### (-?[0-9.,]+)`."
    answer_match: Option<String> = None, "none", "a regular expression", RunOnly, ["eval_answer_match"], is_pattern;
    "Metric that selects the best checkpoint and decides early stopping: the validation loss, or a score of answers to rows with references."
    metric_for_best_model: BestMetric = BestMetric::Loss, "eval_loss", "eval_loss, exact_match, contains, match or rouge_l", ResultsIfSet, [];
    "Whether a higher `metric_for_best_model` is better. The metric decides this, and a value that contradicts it is refused."
    greater_is_better: Option<bool> = None, "by the metric", "auto, true or false", RunOnly, [];
    "Number of evaluations without improvement of `metric_for_best_model` after which the run stops."
    early_stopping_patience: Limit = Limit(None), "none", "a count of evaluations; 0 for no end before the last step",
        Results, ["early_stopping_steps"], |v| v.0.is_none_or(|v| v <= 1_000_000_000);
    "Whether the adapter that is written at the end is the one with the best `metric_for_best_model`."
    load_best_model_at_end: bool = false, "false", "true or false", Results, [];
    "Whether activations are recomputed in the backward pass; with `offload` the layers' inputs also wait in host memory, with `disk` in a file of `scratch_dir`. `auto` writes them to disk only where nothing else fits. Never changes a result."
    gradient_checkpointing: Checkpointing = Checkpointing::Auto, "auto", "auto, true, false, offload or disk", RunOnly, ["grad_checkpoint", "activation_checkpointing", "use_gradient_checkpointing"];
    "Directory of the file for layers' inputs with `gradient_checkpointing: disk`. The file has no name, so nothing is left of it however the run ends."
    scratch_dir: Option<PathBuf> = None, "`output_dir`", "the path of a directory", RunOnly, [];
    "Place of the base weights: `resident` keeps them in device memory; `host` in pinned host memory, from which a GPU holds two layers at a time; `disk` in the files of an NF4 checkpoint (written by `quantize` or kept in `quantized_cache`), from which the CPU holds two layers at a time. `auto` picks the fastest predicted place that fits on a GPU, and uses the disk only for weights that do not fit. Never changes a result."
    weights: WeightResidency = WeightResidency::Auto, "auto", "auto, resident, host or disk", RunOnly, [];
    "Place of the output layer: `resident` keeps it in device memory; `host` in pinned host memory, from which it is copied to a GPU for the loss of each micro-batch and for each token of an answer, into memory that the layers use before and after; `disk` in the files of the model, from which the CPU reads it in parts of 4,096 rows, all of it twice for 256 tokens of a micro-batch and once for each token of an answer, and rows of the embedding as it needs them. `auto` picks the fastest predicted place that fits; its trained parts stay on the device. Never changes a result."
    lm_head: HeadResidency = HeadResidency::Auto, "auto", "auto, resident, host or disk", RunOnly, [];
    "Place of AdamW's states between two updates: `resident` keeps them in device memory; `host` in pinned host memory, from which each update copies them to the GPU and back piece by piece (elsewhere called a paged optimizer); `host_with_masters` also moves the f32 master copies of the trained parameters there, so that the GPU keeps only the bf16 copies that it computes with. `auto` picks the fastest predicted place that fits. Never changes a result."
    optimizer_states: StateResidency = StateResidency::Auto, "auto", "auto, resident, host or host_with_masters", RunOnly, [];
    "Tokens that the linear layers and the MLP process at a time (elsewhere called sequence tiling or tiled MLP): fewer tokens let longer rows fit; `off` processes a whole micro-batch. Never changes a result."
    token_tile: TokenTile = TokenTile::Auto, "auto", "auto, off or a multiple of 256 from 512 on", RunOnly, [];
    "Host memory the run may use; GB is 10⁹ bytes, GiB 2³⁰."
    host_memory: Option<Bytes> = None, "what is free", "auto or a size such as 8GiB or 24GB", RunOnly, [];
    "Host memory that a GPU pins at most, where a system is known to pin less than it has, as WSL2 does. What is more waits in memory that is not pinned: the plan counts with slower copies. Never changes a value."
    pinned_memory: Option<Bytes> = None, "no limit; under WSL2 half of the memory", "auto or a size such as 8GiB or 24GB", RunOnly, [];
    "GPU memory that may be used in total, including the CUDA context and other processes; GB is 10⁹ bytes, GiB 2³⁰."
    device_memory: Option<Bytes> = None, "all of it", "auto or a size such as 44.4GiB or 24GB", RunOnly, [];
    "Number of worker threads, at most 256 for each processor; results do not depend on it."
    threads: Option<usize> = None, "one for each core", "auto or an integer from 1 to 4096", RunOnly, ["num_threads"],
        |v| v.is_none_or(|v| (1..=4096).contains(&v));
    "Number format of the CPU's arithmetic: `bf16` keeps activations in bf16 and sums in f32, and needs a processor with AVX-512-BF16 or AMX; `auto` uses bf16 on such a processor and f32 elsewhere, and a resumed run keeps its format. A GPU always computes in bf16."
    compute: Option<Compute> = None, "auto", "auto, f32 or bf16", ResultsIfSet, [];
    "Kernels for the linear layers on a GPU: `fused` reads the weights in NF4; `dequantize` first converts the weights of one input to bf16 and lets cuBLASLt compute one product, with the low-rank term in the same sum. Batches of up to 16 tokens, and gradients of inputs under `lora_dropout`, always use the fused kernels. `auto` dequantizes for batches of 1,024 tokens and more on an H100 or H200 with cuBLASLt. The two differ in the last bits; with `auto` a resumed run keeps its choice."
    linear: LinearKernels = LinearKernels::Auto, "auto", "auto, fused or dequantize", ResultsIfSet, [];
    "Whether a GPU launches the passes of a micro-batch as CUDA graphs. A graph is recorded when a batch with the same number of tokens comes for the second time; hundreds of short launches then become one, so that a small model no longer waits for the host. `on` is refused where weights, layers' inputs or the output layer wait in host memory or on disk, and with several processes; `auto` uses graphs if launches are predicted to take longer than the launched work, and there is room. Never changes a result."
    cuda_graphs: CudaGraphs = CudaGraphs::Auto, "auto", "auto, on or off", RunOnly, [];
    "Device to compute on; `auto` uses a GPU if there is one and the build has CUDA, and prints its choice."
    device: Option<Device> = None, "auto", "auto, cpu, cuda or cuda:N", RunOnly, [];
}

/// The first setting of each group in `--help` and in the file that `init` writes, with the group's heading.
const GROUPS: [(&str, &str); 7] = [
    ("model", "Model, data and output"),
    ("quantization", "Base weights"),
    ("lora_r", "Adapters"),
    ("learning_rate", "Training"),
    ("optim", "Optimizer"),
    ("logging_steps", "Log, checkpoints and evaluation"),
    ("gradient_checkpointing", "Memory and device"),
];

impl SettingInfo {
    /// Heading of the group that the setting is in.
    pub fn group(&self) -> &'static str {
        let before = SETTINGS.iter().take_while(|info| info.name != self.name).chain([self]);
        let begun = before.filter_map(|info| GROUPS.iter().find(|(first, _)| *first == info.name));
        begun.last().map_or("", |(_, heading)| heading)
    }
}
