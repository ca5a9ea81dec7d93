//! LoRA adapters in the format of PEFT: `adapter_model.safetensors`, `adapter_config.json` and a model card.
//!
//! What is saved loads in PEFT, vLLM, SGLang and llama.cpp's converter: rsLoRA is folded into alpha or B, because some
//! of them ignore `use_rslora`. The metadata of the safetensors file also keeps what the adapter was trained on, above
//! all the base's fingerprint, so that it cannot be put on another model unnoticed.

mod base_check;
mod card;
mod config;
pub(crate) mod engines;
mod files;
mod fold;
mod kind;
mod locate;
mod lora_settings;
mod module_pattern;
mod pairs;
mod publish;
mod recipe;
mod token_rows;
mod uniform;
mod weighted_sum;

use std::collections::BTreeMap;

use crate::base::{BaseFingerprint, BaseName};
use crate::error::Result;
use crate::lora::ParamId;

pub(crate) use card::{CURVE, TrainedFile, Training};
pub use config::{AdapterConfig, TargetModules};
pub(crate) use files::{CARD, TOKENIZER_FILES, add_tokenizer_files, check_unchanged, served_key};
pub use files::{copy_tokenizer_files, tokenizer_bytes};
pub use kind::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
pub use locate::{is_adapter, recorded_base, recorded_setting, recorded_settings};
pub use lora_settings::lora_settings;
pub(crate) use module_pattern::Patterns;
pub use pairs::{LoraPair, WholeModule};
pub use publish::{Publication, publication};
pub use recipe::Recipe;
pub use token_rows::{TokenRows, read_tokens, tokens_of_adapter};

/// An adapter in memory. The fields are open; [`Adapter::lora_pairs`] checks that they fit together, and so do `save`
/// and `load`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub config: AdapterConfig,
    /// Full PEFT key → (shape, row-major values): A is `[r, k_in]`, B is `[n_out, r]`.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Metadata of the safetensors file, less `format`, which is always "pt".
    pub metadata: BTreeMap<String, String>,
}

impl Adapter {
    /// An adapter without tensors; add them with [`insert`](Self::insert).
    pub fn new(config: AdapterConfig, provenance: &Provenance) -> Self {
        Self { config, tensors: BTreeMap::new(), metadata: provenance.to_metadata() }
    }

    /// Adds a tensor: A is `[r, k_in]`, B is `[n_out, r]`.
    pub fn insert(&mut self, id: &ParamId, shape: impl Into<Vec<usize>>, values: Vec<f32>) {
        self.tensors.insert(id.peft_key(), (shape.into(), values));
    }

    /// Shape and values of a tensor.
    pub fn tensor(&self, id: &ParamId) -> Option<&(Vec<usize>, Vec<f32>)> {
        self.tensors.get(&id.peft_key())
    }

    /// The fingerprint of the base that the adapter was trained on; `None` for an adapter of another program.
    pub fn base_fingerprint(&self) -> Option<&str> {
        self.metadata.get(metadata::BASE_FINGERPRINT).map(String::as_str)
    }

    /// How the base was held when the adapter was trained; `None` for an adapter of another program. `source` is what
    /// errors call the adapter.
    pub fn recipe(&self, source: &str) -> Result<Option<Recipe>> {
        let text = self.metadata.get(metadata::QUANTIZATION);
        text.map(|text| Recipe::from_metadata(source, text)).transpose()
    }
}

/// Keys of the safetensors metadata.
pub mod metadata {
    /// [`Checkpoint::fingerprint`](crate::base::Checkpoint::fingerprint) of the base as it was before quantizing.
    pub const BASE_FINGERPRINT: &str = "qlora.base_fingerprint";
    /// [`BaseFingerprint::unquantized`](crate::base::BaseFingerprint::unquantized) of the base.
    pub const UNQUANTIZED_FINGERPRINT: &str = "qlora.base_unquantized_fingerprint";
    pub const BASE_NAME: &str = "qlora.base_name";
    pub const BASE_REVISION: &str = "qlora.base_revision";
    /// The JSON of a [`Recipe`](super::Recipe).
    pub const QUANTIZATION: &str = "qlora.quantization";
    /// SHA-256 (hex) of the chat template's text.
    pub const CHAT_TEMPLATE_SHA256: &str = "qlora.chat_template_sha256";
}

/// What an adapter was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    pub base: BaseName,
    pub base_fingerprint: BaseFingerprint,
    pub quantization: Recipe,
    /// SHA-256 (hex) of the chat template's text, where one was used.
    pub chat_template_sha256: Option<String>,
}

impl Provenance {
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let quantization = self.quantization.to_json();
        let entries = [
            (metadata::BASE_FINGERPRINT, Some(&self.base_fingerprint.whole)),
            (metadata::UNQUANTIZED_FINGERPRINT, Some(&self.base_fingerprint.unquantized)),
            (metadata::BASE_NAME, Some(&self.base.name)),
            (metadata::BASE_REVISION, self.base.revision.as_ref()),
            (metadata::QUANTIZATION, Some(&quantization)),
            (metadata::CHAT_TEMPLATE_SHA256, self.chat_template_sha256.as_ref()),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.clone()))).collect()
    }
}
