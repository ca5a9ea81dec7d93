//! The adapter of a model in training.

use crate::adapter::{Adapter, AdapterConfig, Provenance};
use crate::backend::Backend;
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
    base_fingerprint: &str,
    model: &Llama<B>,
    backend: &B,
) -> Result<Adapter> {
    let checkpoint = &loaded.checkpoint;
    let base = checkpoint.base_name();
    let spec = model.spec();
    let config = AdapterConfig::new(base, &spec.arch, &spec.lora);
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: base_fingerprint.to_owned(),
        quantization: recipe(settings, checkpoint),
        chat_template_sha256: loaded.tokenizer().and_then(ChatTokenizer::template_hash),
    };
    let mut adapter = Adapter::new(config, &provenance);
    for (id, shape, values) in model.param_values(backend)? {
        adapter.insert(&id, shape, values);
    }
    Ok(adapter)
}
