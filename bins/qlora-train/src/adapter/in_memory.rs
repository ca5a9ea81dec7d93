//! An adapter in memory, and what is recorded of the base that it was trained on.

use std::collections::BTreeMap;

use super::base_quantization::BaseQuantization;
use super::config::AdapterConfig;
use super::metadata;
use crate::base::{BaseFingerprint, BaseName};
use crate::error::Result;
use crate::lora::ParamId;

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

    /// The quantization of the base that the adapter was trained on; `None` for an adapter of another program. `source`
    /// is what errors call the adapter.
    pub fn base_quantization(&self, source: &str) -> Result<Option<BaseQuantization>> {
        let text = self.metadata.get(metadata::QUANTIZATION);
        text.map(|text| BaseQuantization::from_metadata(source, text)).transpose()
    }
}

/// The base and the chat template that an adapter was trained with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    pub base: BaseName,
    pub base_fingerprint: BaseFingerprint,
    pub quantization: BaseQuantization,
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
