//! LoRA adapters in the format of PEFT: `adapter_model.safetensors`, `adapter_config.json` and a model card.
//!
//! A saved adapter loads in PEFT, vLLM, SGLang and llama.cpp's converter: rsLoRA is folded into alpha or B, because
//! some of them ignore `use_rslora`. The metadata of the safetensors file also records the training base, above all its
//! fingerprint, so that it cannot be put on another model unnoticed.

mod base_check;
mod base_quantization;
mod card;
mod config;
pub(crate) mod engines;
mod files;
mod fold;
mod in_memory;
mod kind;
mod locate;
mod lora_settings;
pub mod metadata;
mod module_pattern;
mod pairs;
mod publish;
mod token_indices;
mod token_rows;
mod uniform;
mod weighted_sum;

pub use base_quantization::BaseQuantization;
pub(crate) use card::{CURVE, TrainedFile, Training};
pub use config::{AdapterConfig, TargetModules};
pub(crate) use files::{CARD, TOKENIZER_FILES, add_tokenizer_files, check_unchanged, served_key};
pub use files::{copy_tokenizer_files, tokenizer_bytes};
pub use in_memory::{Adapter, Provenance};
pub use kind::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
pub use locate::{is_adapter, recorded_base, recorded_setting, recorded_settings};
pub use lora_settings::lora_settings;
pub(crate) use module_pattern::Patterns;
pub use pairs::{LoraPair, WholeModule};
pub use publish::{Publication, publication};
pub use token_indices::{read_tokens, tokens_of_adapter};
pub use token_rows::TokenRows;
