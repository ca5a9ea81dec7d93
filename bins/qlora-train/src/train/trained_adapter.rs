//! The adapter of a model in training.

use crate::adapter::{Adapter, AdapterConfig, Provenance};
use crate::backend::Backend;
use crate::base::BaseFingerprint;
use crate::config::Settings;
use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::atomic::AtomicFiles;
use crate::lora::adalora;
use crate::lora::start::Factors;
use crate::lora::{AdaLora, ParamId, ParamKind};
use crate::model::Llama;
use crate::session::Loaded;
use crate::session::model_spec::base_quantization;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Adds the adapter as it is trained so far, one tensor in memory at a time.
pub(super) fn add_trained_adapter<B: Backend>(
    files: &mut AtomicFiles,
    settings: &Settings,
    loaded: &Loaded,
    base_fingerprint: &BaseFingerprint,
    model: &Llama<B>,
    starts: &BTreeMap<String, Factors>,
    backend: &B,
) -> Result<()> {
    let spec = model.spec();
    let mut params: BTreeMap<String, (Vec<usize>, ParamId, &B::Param)> = model
        .params()
        .into_iter()
        // It is part of A there.
        .filter(|(id, ..)| id.kind() != ParamKind::LoraE)
        .map(|(id, shape, param)| (id.peft_key(), (exported_shape(&id, shape, starts), id, param)))
        .collect();
    // One tensor of the model is two of PEFT's.
    let embedding = ParamId::whole(spec.arch.names.embedding_module()).peft_key();
    if let Some((shape, id, param)) = params.get(&embedding)
        && spec.lora.whole.iter().any(|module| spec.lora.shares_embedding(&spec.arch, module))
    {
        let head = ParamId::whole(spec.arch.names.head_module()).peft_key();
        let both = (shape.clone(), id.clone(), *param);
        params.insert(head, both);
    }
    let shapes = params.iter().map(|(key, (shape, ..))| (key.as_str(), &shape[..])).collect();
    let mut values = |key: &str| {
        let (_, id, param) = &params[key];
        exported_values(model, backend, starts, id, param).map(Cow::Owned)
    };
    described(settings, loaded, base_fingerprint, model).add_streamed(files, &shapes, &mut values)
}

/// The adapter without its tensors.
pub(super) fn described<B: Backend>(
    settings: &Settings,
    loaded: &Loaded,
    base_fingerprint: &BaseFingerprint,
    model: &Llama<B>,
) -> Adapter {
    let checkpoint = &loaded.checkpoint;
    let base = checkpoint.base_name();
    let spec = model.spec();
    let mut config = AdapterConfig::new(base, &spec.arch, &spec.lora.exported());
    if settings.adapter_architecture.as_deref() == Some(spec.arch.family.architecture) {
        config.wrapped = false;
    }
    // A hub id that is certain, by the cache or by the record of our own NF4 copy; otherwise the user's name, which
    // loads again: by the name of a directory nothing is found, and `_name_or_path` may be that of another model.
    let certain = base.is_hub && (base.revision.is_some() || checkpoint.original().is_some());
    if !certain {
        config.base_model_name_or_path = settings.model.clone();
    }
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: base_fingerprint.clone(),
        quantization: base_quantization(settings, checkpoint),
        chat_template_sha256: loaded.tokenizer().and_then(ChatTokenizer::template_hash),
    };
    Adapter::new(config, &provenance)
}

/// The shape of a trainable tensor in the adapter, where terms begin with `starts`.
fn exported_shape(id: &ParamId, mut shape: Vec<usize>, starts: &BTreeMap<String, Factors>) -> Vec<usize> {
    match (id.kind(), starts.contains_key(id.module())) {
        (ParamKind::LoraA, true) => shape[0] *= 2,
        (ParamKind::LoraB, true) => shape[1] *= 2,
        _ => {}
    }
    shape
}

/// The values of a trainable tensor in the adapter, which is one for the base as it is: beside what is trained of a
/// term stands what it began with, A as it was and B with the other sign. With AdaLoRA they are those of plain LoRA,
/// E ∘ A, in which ranks that are cut are rows of zeros, and B by the difference of the scales.
pub(super) fn exported_values<B: Backend>(
    model: &Llama<B>,
    backend: &B,
    starts: &BTreeMap<String, Factors>,
    id: &ParamId,
    param: &B::Param,
) -> Result<Vec<f32>> {
    let mut values = model.stored_values(backend, id, param)?;
    if let Some(e) = model.rank_factors(id.module()) {
        match id.kind() {
            ParamKind::LoraA => adalora::scale_rows(&mut values, &backend.param_values(e)?),
            ParamKind::LoraB => {
                let r = model.spec().lora.of(id.module()).map_or(1, |(r, _)| r);
                let factor = AdaLora::scale_over_lora(r);
                values.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
            }
            ParamKind::LoraE | ParamKind::Magnitude | ParamKind::Whole | ParamKind::Tokens => {}
        }
    }
    let (Some(start), Some((r, _))) = (starts.get(id.module()), model.spec().lora.of(id.module())) else {
        return Ok(values);
    };
    match id.kind() {
        ParamKind::LoraA => values.extend(&start.a),
        ParamKind::LoraB => {
            let rows = values.chunks_exact(r).zip(start.b.chunks_exact(r));
            values = rows.flat_map(|(now, then)| now.iter().copied().chain(then.iter().map(|x| -x))).collect();
        }
        ParamKind::LoraE | ParamKind::Magnitude | ParamKind::Whole | ParamKind::Tokens => {}
    }
    Ok(values)
}
