//! The settings of a run: one YAML file, `--name value` flags that win over it, and defaults.
//!
//! # How a run reads them
//!
//! ```text
//! CONFIG.yaml ── yaml ──┐
//!                       ├─ layers ── Settings ── resolve(parameters) ── record, hash, rates
//! --name value ─ args ──┘     │
//!                     table, compat (names)
//! ```
//!
//! [`Settings::load`] → [`Settings::validate`] → (once the model is open) [`Settings::resolve`] → [`Settings::to_yaml`]
//! and [`Settings::result_hash`].
//!
//! # Names
//!
//! The names are those of PEFT and transformers; Axolotl's and the handbooks' nested names are aliases, see
//! [`SETTINGS`], the one table that parsing, `--help`, README and records are made from. Hyphens and underscores are
//! the same. A key `section.key` is looked up as such, then as `key` alone, so `training: {warmup_ratio: 0.1}` works.
//!
//! Keys of other trainers that the table does not hold are in `compat` and `foreign_keys.txt`: those that correspond to
//! one of our settings are translated (`load_in_4bit`, `adapter: qlora`, `evals_per_epoch`), those with one possible
//! value are checked (`bias: none`), missing features are refused unless they are turned off, and those that cannot
//! change an adapter pass with a note. Anything else is an error that names the nearest setting: no key is ever
//! skipped. All errors of a file are reported at once, each with its line.
//!
//! # Rules
//!
//! - A setting given twice in one source with different values is refused, whatever the spellings.
//! - Flags win over the file, the file over the preset, the preset over the defaults. A list from flags replaces the
//!   file's list.
//! - `warmup_steps` stands in for `warmup_ratio`, `val_data` for `val_set_size`: both in one source are refused, a flag
//!   for one silences the file's other.
//! - `null` means "as if not written".
//! - Paths are relative to the working directory, in the file as well.
//!
//! # Defaults that differ from other trainers'
//!
//! `num_train_epochs` 1 (Axolotl's; transformers has 3): the epoch not asked for is the one that costs hours. Batch and
//! accumulation 1: with packing a step already holds `max_length` tokens. `logging_steps` 1. `save_total_limit` 2: a
//! checkpoint of a large model takes gigabytes, and only the newest and the best are of use.

mod answers;
mod args;
mod compat;
mod dataset_info;
mod datasets;
mod derived;
mod enums;
mod given;
mod gpus;
mod idle;
mod intervals;
mod layer;
mod layers;
mod lints;
pub mod lr_schedule;
mod mixing;
mod model_files;
mod path_args;
mod patterns;
mod role_names;
mod suggest;
mod table;
mod template_names;
mod tools;
mod trackers;
mod types;
mod yaml;

pub use answers::{BestMetric, SamplePrompt, SamplePrompts};
pub use args::{SettingsArgs, parse_overrides, unknown_flag};
pub use compat::all_names;
pub use derived::{LARGE_MODEL_PARAMETERS, Purpose, commented_yaml, settings_markdown};
pub use enums::{
    BadRow, Checkpointing, Compute, CudaGraphs, Device, HeadResidency, InitLora, LinearKernels, MixStrategy, Optim,
    Preset, PromptCompletion, Quantization, Scheduler, StateResidency, TargetModules, TokenTile, TooLong,
    WeightResidency,
};
pub use given::GivenNames;
pub use gpus::{GPUS, Gpu, gpu_named};
pub use intervals::{Every, Resume};
pub use lints::AllowedLints;
pub use mixing::{OfEach, RowsOfEach};
pub use path_args::{name_or_path_from_home, path_from_home};
pub use patterns::{LayerNumbers, Pattern, TokenIndices};
pub use role_names::RoleNames;
pub use suggest::nearest;
pub use table::{Effect, SETTINGS, SettingInfo, Settings};
pub use template_names::FALLBACK as FALLBACK_TEMPLATE;
pub use trackers::ReportTo;
pub use types::{Bytes, Limit, ValSet};
