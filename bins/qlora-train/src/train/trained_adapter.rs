//! The adapter of a model in training.

use crate::adapter::{Adapter, AdapterConfig, Provenance};
use crate::backend::Backend;
use crate::config::Settings;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::model::Llama;
use crate::session::Loaded;
use crate::session::model_spec::{quantization_record, target_modules};

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
    let mut config = AdapterConfig::new(
        base,
        settings.lora_r,
        settings.lora_alpha,
        settings.lora_dropout,
        &target_modules(settings),
    );
    config.use_rslora = settings.use_rslora;
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: base_fingerprint.to_owned(),
        quantization: quantization_record(settings, checkpoint).to_json(),
        chat_template_sha256: loaded.tokenizer().and_then(ChatTokenizer::template_hash),
    };
    let mut adapter = Adapter::new(config, &provenance);
    let mut values = model.param_values(backend)?.into_iter();
    // A before B, linear by linear.
    while let (Some((name, a_shape, a)), Some((_, b_shape, b))) = (values.next(), values.next()) {
        adapter.insert(name.layer, name.module, (a_shape.to_vec(), a), (b_shape.to_vec(), b));
    }
    Ok(adapter)
}
