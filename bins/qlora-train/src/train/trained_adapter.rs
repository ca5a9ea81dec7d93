//! The adapter of a model in training.

use crate::adapter::{Adapter, AdapterConfig, Provenance};
use crate::backend::Backend;
use crate::base::BaseFingerprint;
use crate::config::Settings;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::model::Llama;
use crate::session::Loaded;
use crate::session::model_spec::recipe;

/// The adapter as it is trained so far.
pub fn trained_adapter<B: Backend>(
    settings: &Settings,
    loaded: &Loaded,
    base_fingerprint: &BaseFingerprint,
    model: &Llama<B>,
    backend: &B,
) -> Result<Adapter> {
    let checkpoint = &loaded.checkpoint;
    let base = checkpoint.base_name();
    let spec = model.spec();
    let mut config = AdapterConfig::new(base, &spec.arch, &spec.lora);
    // A hub id that is certain, by the cache or by the record of our own NF4 copy; else what the user gave, which loads
    // again: by the name of a directory nothing is found, and `_name_or_path` may be that of another model.
    let certain = base.is_hub && (base.revision.is_some() || checkpoint.original().is_some());
    if !certain {
        config.base_model_name_or_path = settings.model.clone();
    }
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: base_fingerprint.clone(),
        quantization: recipe(settings, checkpoint),
        chat_template_sha256: loaded.tokenizer().and_then(ChatTokenizer::template_hash),
    };
    let mut adapter = Adapter::new(config, &provenance);
    for (id, shape, values) in model.param_values(backend)? {
        adapter.insert(&id, shape, values);
    }
    Ok(adapter)
}
