//! Settings with a few named values, or a subset of them.

use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_auto, is_off, is_unset};
use super::yaml::Value;

/// `Name: "canonical" | "other spelling"…`; the first name is the one written back. After `not yet`: values the
/// format knows and this version refuses.
macro_rules! choices {
    ($( $(#[$doc:meta])* $ty:ident { $( $(#[$vdoc:meta])* $variant:ident: $name:literal $(| $other:literal)* ),+ }
        not yet { $($later:literal),* } )+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $ty { $( $(#[$vdoc])* $variant ),+ }

        impl $ty {
            pub fn name(self) -> &'static str {
                match self { $( $ty::$variant => $name ),+ }
            }
        }

        impl SettingValue for $ty {
            fn read(value: &Value) -> Result<Self, Reject> {
                let Value::Str(text) = value else { return Err(Reject::Wrong) };
                let text = text.trim().to_ascii_lowercase();
                match text.as_str() {
                    $( $name $(| $other)* => Ok($ty::$variant), )+
                    other => {
                        let later: &[&'static str] = &[$($later),*];
                        Err(later.iter().find(|l| **l == other).map_or(Reject::Wrong, |l| Reject::NotYet(l)))
                    }
                }
            }
            fn json(&self) -> Json {
                Json::from(self.name())
            }
        }
    )+ };
}

choices! {
    /// Quantization of the frozen base weights.
    Quantization {
        Nf4: "nf4",
        /// 16-bit weights: plain LoRA
        None: "none"
    } not yet { "fp4", "int8", "8bit" }

    /// Place of the frozen base weights while they are not used.
    WeightResidency {
        /// The fastest predicted place that fits
        Auto: "auto",
        /// In the memory of the device
        Resident: "resident",
        /// In pinned host memory, beside a GPU
        Host: "host" | "pinned",
        /// In the files of an NF4 checkpoint
        Disk: "disk"
    } not yet {}

    /// Place of the output layer while it is not used.
    HeadResidency {
        /// The fastest predicted place that fits
        Auto: "auto",
        /// In the memory of the device
        Resident: "resident",
        /// In pinned host memory, beside a GPU
        Host: "host" | "pinned",
        /// In the files of the base, beside the CPU
        Disk: "disk"
    } not yet {}

    /// Place of the optimizer's states and master copies between two updates.
    StateResidency {
        /// The fastest predicted place that fits
        Auto: "auto",
        /// In the memory of the device
        Resident: "resident" | "device",
        /// In pinned host memory, beside a GPU
        Host: "host" | "pinned" | "paged",
        /// In pinned host memory, with the master copies of the trained parameters
        HostWithMasters: "host_with_masters"
    } not yet {}

    /// Code that computes the linear layers on a GPU.
    LinearKernels {
        /// By the GPU and the tokens of a batch
        Auto: "auto",
        /// Kernels that read the weights in NF4
        Fused: "fused",
        /// Weights in bf16 first, then products of cuBLASLt
        Dequantize: "dequantize"
    } not yet {}

    /// Arithmetic of the CPU.
    Compute {
        F32: "f32" | "float32" | "fp32",
        Bf16: "bf16" | "bfloat16"
    } not yet { "fp16", "float16" }

    /// Shape of the learning rate over the run.
    Scheduler {
        /// No warm-up, as in transformers.
        Constant: "constant",
        ConstantWithWarmup: "constant_with_warmup",
        Linear: "linear",
        Cosine: "cosine"
    } not yet {
        "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial", "inverse_sqrt",
        "reduce_lr_on_plateau", "warmup_stable_decay", "greedy", "rex", "one_cycle"
    }

    /// Treatment of rows of more than `max_length` tokens.
    TooLong {
        Drop: "drop",
        Truncate: "truncate",
        /// Prompt and answer of each turn, as LLaMA-Factory does
        Proportional: "proportional",
        Error: "error" | "raise",
        /// Texts in pieces; other rows are dropped
        Chunk: "chunk" | "split"
    } not yet {}

    /// Treatment of rows that cannot be trained on.
    BadRow { Error: "error" | "raise", Skip: "skip" } not yet {}

    /// Mixing of the rows of several files in an epoch.
    MixStrategy {
        /// All rows of all files, each as often as its weight says
        Concat: "concat",
        /// In given shares, until the first file has no rows left
        InterleaveUnder: "interleave_under",
        /// In given shares, until every row was used
        InterleaveOver: "interleave_over"
    } not yet {}

    /// Form in which a prompt and its completion become text.
    PromptCompletion {
        /// `chat` where the model has a chat template, otherwise `text`; `generate` uses the same form
        Auto: "auto",
        /// Plain text, as it stands
        Text: "text",
        /// A user turn and an answer, by the chat template
        Chat: "chat"
    } not yet {}

    /// AdamW. The paged and fused variants of other stacks differ in speed and place, not in arithmetic: a paged one
    /// moves its states out of a full GPU, as `optimizer_states: auto` does.
    Optim {
        /// Blockwise 8-bit states; f32 ones for tensors under 4,096 elements.
        Adamw8bit: "adamw_8bit" | "adamw_bnb_8bit" | "paged_adamw_8bit",
        /// f32 states
        Adamw: "adamw_torch" | "adamw" | "adam" | "adamw_hf" | "adamw_torch_fused" | "paged_adamw_32bit" | "paged_adamw" | "adamw_apex_fused" | "adamw_torch_xla"
    } not yet {
        // transformers' OptimizerNames, Axolotl's and mlx-lm's beside them
        "adafactor", "adagrad", "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "adamw_torch_npu_fused",
        "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion", "lion_8bit", "lion_32bit",
        "paged_lion_32bit", "paged_lion_8bit", "sgd", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
        "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
        "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo", "grokadamw",
        "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw", "apollo_adamw_layerwise",
        "stable_adamw", "optimi_adamw", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8", "adopt_adamw", "adamc",
        "came_pytorch", "muon", "dion", "sinkgd", "polora", "flash_adamw", "flash_adam", "flash_sgd", "flash_sgdw",
        "flash_lion", "q_galore_adamw8bit"
    }

    /// A named bundle of defaults.
    Preset {
        /// `loraplus_lr_ratio` 16 and half the default learning rate
        Loraplus: "loraplus"
    } not yet {}
}

/// Launch of the passes of a step as CUDA graphs on a GPU. Never changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CudaGraphs {
    /// On where launches are predicted to limit a step
    #[default]
    Auto,
    On,
    Off,
}

impl SettingValue for CudaGraphs {
    fn read(value: &Value) -> Result<Self, Reject> {
        if matches!(value, Value::Null) || is_auto(value) {
            return Ok(CudaGraphs::Auto);
        }
        Ok(if bool::read(value)? { CudaGraphs::On } else { CudaGraphs::Off })
    }
    fn json(&self) -> Json {
        Json::from(match self {
            CudaGraphs::Auto => "auto",
            CudaGraphs::On => "on",
            CudaGraphs::Off => "off",
        })
    }
}

/// Recomputation of activations in the backward pass. Never changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checkpointing {
    /// The planner decides.
    #[default]
    Auto,
    On,
    Off,
    /// On, with the layers' inputs in host memory.
    Offload,
    /// On, with the layers' inputs in a scratch file.
    Disk,
}

impl SettingValue for Checkpointing {
    const SWITCH: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        if matches!(value, Value::Null) || matches!(value, Value::Str(s) if s.trim().eq_ignore_ascii_case("auto")) {
            return Ok(Checkpointing::Auto);
        }
        if matches!(value, Value::Str(s) if s.trim().eq_ignore_ascii_case("offload")) {
            return Ok(Checkpointing::Offload);
        }
        if matches!(value, Value::Str(s) if s.trim().eq_ignore_ascii_case("disk")) {
            return Ok(Checkpointing::Disk);
        }
        Ok(if bool::read(value)? { Checkpointing::On } else { Checkpointing::Off })
    }
    fn json(&self) -> Json {
        match self {
            Checkpointing::Auto => Json::from("auto"),
            Checkpointing::On => Json::from(true),
            Checkpointing::Off => Json::from(false),
            Checkpointing::Offload => Json::from("offload"),
            Checkpointing::Disk => Json::from("disk"),
        }
    }
}

/// Tokens that linear layers and MLP process at a time. Never changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TokenTile {
    /// The planner decides.
    #[default]
    Auto,
    /// All tokens of a micro-batch.
    Off,
    Tokens(usize),
}

impl TokenTile {
    /// Tiles end at multiples of it: sums over tokens take this many at a time.
    pub const STEP: usize = 256;
    /// The shortest, so that none is left with so few tokens that kernels take another path.
    pub const SHORTEST: usize = 2 * Self::STEP;
}

impl SettingValue for TokenTile {
    fn read(value: &Value) -> Result<Self, Reject> {
        if matches!(value, Value::Null) || is_auto(value) {
            return Ok(TokenTile::Auto);
        }
        if is_off(value) {
            return Ok(TokenTile::Off);
        }
        let tokens = usize::read(value)?;
        if tokens < Self::SHORTEST || !tokens.is_multiple_of(Self::STEP) {
            let (step, shortest) = (Self::STEP, Self::SHORTEST);
            return Err(Reject::Because(format!(
                "found {tokens}, expected auto, off or a multiple of {step} from {shortest} on, such as 2048"
            )));
        }
        Ok(TokenTile::Tokens(tokens))
    }
    fn json(&self) -> Json {
        match self {
            TokenTile::Auto => Json::from("auto"),
            TokenTile::Off => Json::from("off"),
            TokenTile::Tokens(tokens) => Json::from(*tokens),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// CUDA ordinal
    Cuda(usize),
}

impl SettingValue for Device {
    fn read(value: &Value) -> Result<Self, Reject> {
        let Value::Str(text) = value else { return Err(Reject::Wrong) };
        match text.trim() {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse::<u8>) {
                Some(Ok(n)) => Ok(Device::Cuda(n.into())),
                _ => Err(Reject::Wrong),
            },
        }
    }
    fn json(&self) -> Json {
        match self {
            Device::Cpu => Json::from("cpu"),
            Device::Cuda(n) => Json::from(format!("cuda:{n}")),
        }
    }
}

/// A subset of a block's linear layers, in the order of the forward pass.
#[derive(Clone, Debug)]
pub struct TargetModules {
    names: Vec<&'static str>,
    /// The setting was `all-linear`, not these names.
    all: bool,
    /// Regular expression for the whole path of a module, as PEFT takes one text; then `names` are all.
    pattern: Option<String>,
}

/// By names: all seven are `all-linear`, however they were asked for.
impl PartialEq for TargetModules {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names && self.pattern == other.pattern
    }
}

impl TargetModules {
    pub const ALL: [&'static str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    /// Names in families that have several projections in one tensor.
    pub const FUSED: [&'static str; 4] = ["qkv_proj", "gate_up_proj", "input_linear", "output_linear"];
    pub fn all_linear() -> Self {
        Self { names: Self::ALL.to_vec(), all: true, pattern: None }
    }
    /// The names that were asked for; `None`: all that a model has.
    pub fn listed(&self) -> Option<&[&'static str]> {
        (!self.all).then_some(&self.names)
    }
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }
    /// The regular expression that was asked for: for whole paths of modules.
    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_deref()
    }
    fn known() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().chain(Self::FUSED)
    }
}

impl SettingValue for TargetModules {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let items = match value {
            Value::List(items) => items.iter().map(String::read).collect::<Result<Vec<_>, _>>()?,
            one => vec![String::read(one)?],
        };
        // A comma in a regular expression does not separate names.
        let is_pattern = |item: &str| item.contains(['*', '+', '?', '(', '[', '{', '|', '\\', '^', '$']);
        let parts = |item: &String| match is_pattern(item) {
            true => vec![item.trim().to_owned()],
            false => item.split(',').map(|name| name.trim().to_owned()).collect(),
        };
        let given: Vec<String> = items.iter().flat_map(parts).collect();
        // PEFT compares the entries of a list with names, also where there is one.
        if matches!(value, Value::List(_))
            && let Some(pattern) = given.iter().find(|item| is_pattern(item))
        {
            let shown = pattern.escape_debug().to_string().replace(r"\\", r"\");
            return Err(Reject::Because(format!(
                "found `{shown}` in a list, whose entries are names of modules: give a regular expression as one \
                 string that is no list, such as `.*\\.(q|v)_proj`"
            )));
        }
        if let [one] = &given[..]
            && is_pattern(one)
        {
            // The expression must also be valid alone: `a)|(b` is valid only between brackets.
            let fault =
                [one.clone(), format!(r"\A(?:{one})\z")].iter().find_map(|text| fancy_regex::Regex::new(text).err());
            return match fault {
                None => Ok(Self { pattern: Some(one.clone()), ..Self::all_linear() }),
                Some(error) => {
                    let shown = one.escape_debug().to_string().replace(r"\\", r"\");
                    Err(Reject::Because(format!("found `{shown}`, which is no regular expression: {error}")))
                }
            };
        }
        // mlx-lm writes `self_attn.q_proj`. A longer path may be of some layers only.
        let blocks = ["self_attn", "mlp", "shared_mlp"];
        let name_of = |item: &'_ str| match item.rsplit_once('.') {
            Some((block, name)) if blocks.contains(&block) => name.to_owned(),
            _ => item.to_owned(),
        };
        let names: Vec<String> = given.iter().map(|item| name_of(item)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if ["all-linear", "all_linear", "all"].iter().any(|all| names == [*all]) {
            return Ok(Self::all_linear());
        }
        if let Some(at) = names.iter().position(|name| !Self::known().any(|known| known == *name)) {
            let shown = given[at].escape_debug();
            return Err(Reject::Because(format!(
                "found `{shown}`, expected all-linear or some of {}",
                Self::known().collect::<Vec<_>>().join(", ")
            )));
        }
        if names.is_empty() {
            return Err(Reject::Wrong);
        }
        let names = Self::known().filter(|name| names.contains(name)).collect();
        Ok(Self { names, all: false, pattern: None })
    }
    fn json(&self) -> Json {
        match &self.pattern {
            Some(pattern) => Json::from(pattern.as_str()),
            None if self.names == Self::ALL => Json::from("all-linear"),
            None => Json::from(self.names.clone()),
        }
    }
}

/// Initial values of the low-rank terms (PEFT's `init_lora_weights`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLora {
    /// A is random, B zero.
    #[default]
    Random,
    /// The largest singular directions of the weight
    Pissa,
    /// An approximation of those, by this number of iterations
    PissaIterations(usize),
    /// The beginning of the weight's QR decomposition
    Olora,
}

impl InitLora {
    /// The text that the setting takes.
    pub fn name(self) -> String {
        match self {
            Self::Random => "true".to_owned(),
            Self::Pissa => "pissa".to_owned(),
            Self::PissaIterations(sweeps) => format!("pissa_niter_{sweeps}"),
            Self::Olora => "olora".to_owned(),
        }
    }

    /// True if training subtracts the initial terms from the base.
    pub fn changes_base(self) -> bool {
        self != Self::Random
    }
}

impl SettingValue for InitLora {
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_unset(value) || bool::read(value) == Ok(true) {
            return Ok(Self::Random);
        }
        let text = String::read(value).map_err(|_| Reject::Wrong)?.trim().to_ascii_lowercase();
        let later = ["gaussian", "eva", "loftq", "orthogonal", "corda", "lora_ga"];
        match (text.as_str(), text.strip_prefix("pissa_niter_")) {
            ("pissa", _) => Ok(Self::Pissa),
            ("olora", _) => Ok(Self::Olora),
            (_, Some(sweeps)) => match sweeps.parse() {
                Ok(sweeps @ 1..=1000) => Ok(Self::PissaIterations(sweeps)),
                _ => Err(Reject::Wrong),
            },
            (other, None) => Err(later.into_iter().find(|later| *later == other).map_or(Reject::Wrong, Reject::NotYet)),
        }
    }
    fn json(&self) -> Json {
        match self {
            Self::Random => Json::Bool(true),
            other => Json::from(other.name()),
        }
    }
}
