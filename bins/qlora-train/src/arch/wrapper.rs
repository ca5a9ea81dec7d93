//! Models around a text model: their files also hold the layers that read images. Only the text model is read.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::json::Keys;

/// A class of transformers around a text model.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrapper {
    /// `model_type` of config.json
    model_type: &'static str,
    /// The entry of `architectures`
    pub architecture: &'static str,
    /// `model_type` of `text_config`, and of the family that it is. A text model without a type is of the first.
    text: &'static [(&'static str, &'static str)],
    /// The output layer is the embedding unless a key says otherwise.
    tied: bool,
    /// The text class's defaults that are not those of the family, as JSON
    defaults: &'static str,
    /// Keys that the family reads and this class does not.
    unread: &'static [&'static str],
}

static WRAPPERS: [Wrapper; 4] = [
    Wrapper {
        model_type: "gemma3",
        architecture: "Gemma3ForConditionalGeneration",
        text: &[("gemma3_text", "gemma3_text")],
        tied: true,
        defaults: "{}",
        unread: &["final_logit_softcapping"],
    },
    Wrapper {
        model_type: "mistral3",
        architecture: "Mistral3ForConditionalGeneration",
        text: &[("mistral", "mistral"), ("ministral3", "ministral3")],
        tied: false,
        defaults: "{}",
        unread: &[],
    },
    Wrapper {
        model_type: "qwen2_5_vl",
        architecture: "Qwen2_5_VLForConditionalGeneration",
        text: &[("qwen2_5_vl_text", "qwen2"), ("qwen2_5_vl", "qwen2")],
        tied: false,
        defaults: r#"{"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_window_layers": 80,
            "rope_theta": 1e6, "bos_token_id": 151643, "eos_token_id": 151645}"#,
        unread: &[],
    },
    Wrapper {
        model_type: "qwen3_vl",
        architecture: "Qwen3VLForConditionalGeneration",
        text: &[("qwen3_vl_text", "qwen3")],
        tied: false,
        defaults: r#"{"max_position_embeddings": 128000, "rope_theta": 5e5}"#,
        unread: &["use_sliding_window"],
    },
];

/// Keys of the whole that are those of its text model too.
const SHARED: [&str; 8] = [
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "_name_or_path",
];
/// Keys of the whole that its text model has not, where the two are one object.
const OF_THE_WHOLE: [&str; 8] = [
    "vision_config",
    "vision_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "image_token_id",
    "video_token_id",
    "architectures",
    "auto_map",
];
/// Prefixes of a text model's tensors in the files, and what replaces them.
const TEXT: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];
/// Prefixes of tensors outside the text model.
const AROUND: [&str; 8] = [
    "vision_tower.",
    "multi_modal_projector.",
    "visual.",
    "vision_model.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.visual.",
    "model.vision_model.",
];

impl Wrapper {
    /// The name of a tensor in the text model alone; `None`: it is not part of the text model.
    pub(crate) fn text_name(name: &str) -> Option<String> {
        if AROUND.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        let inside = TEXT.iter().find_map(|(prefix, own)| Some(format!("{own}{}", name.strip_prefix(prefix)?)));
        Some(inside.unwrap_or_else(|| name.to_owned()))
    }

    /// The path in the whole of a module, or of a tensor, of the text model.
    pub(crate) fn path(text: &str) -> String {
        match text.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => text.to_owned(),
        }
    }
}

fn has_theta(rope: &Value) -> bool {
    rope.get("rope_theta").is_some()
}

/// The config.json of the text model alone, where `map` is one of a [`Wrapper`]. Refused: one of another text model.
pub(crate) fn text_config(
    path: &Path,
    map: &Map<String, Value>,
) -> Result<Option<(&'static Wrapper, Map<String, Value>)>> {
    let keys = Keys::new(path, map);
    let Some(model_type) = map.get("model_type").and_then(Value::as_str) else { return Ok(None) };
    let Some(wrapper) = WRAPPERS.iter().find(|wrapper| wrapper.model_type == model_type) else { return Ok(None) };
    let named = |list: &Vec<Value>| list.iter().all(|name| name == wrapper.architecture) && !list.is_empty();
    if keys.get("architectures").is_some_and(|value| !value.as_array().is_some_and(named)) {
        let expected = format!("[{:?}], the one of model_type {model_type:?}", wrapper.architecture);
        return Err(keys.wrong("architectures", &expected));
    }
    let mut text = match (keys.object("text_config")?, map.get("hidden_size")) {
        (Some(nested), _) => {
            let mut text = nested.map.clone();
            text.shift_remove("architectures");
            for key in SHARED {
                // The outer config decides about the output layer.
                if let Some(value) = map.get(key).filter(|_| key == "tie_word_embeddings" || !text.contains_key(key)) {
                    text.insert(key.to_owned(), value.clone());
                }
            }
            text
        }
        // Qwen2.5-VL's layout as it was published.
        (None, Some(_)) => map
            .iter()
            .filter(|(key, _)| !OF_THE_WHOLE.contains(&key.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        (None, None) => return Err(keys.wrong("text_config", "the config of the text model inside")),
    };
    let inner = Keys::of(format!("{}: `text_config`", keys.source), &text);
    let found = inner.text("model_type")?;
    let family = match found {
        None => Some(wrapper.text[0].1),
        Some(found) => wrapper.text.iter().find_map(|(name, family)| (*name == found).then_some(*family)),
    };
    let Some(family) = family else {
        let known: Vec<String> = wrapper.text.iter().map(|(name, _)| format!("{name:?}")).collect();
        return Err(inner.wrong(
            "model_type",
            &format!("{}: other text models inside a {model_type:?} are not supported", known.join(" or ")),
        ));
    };
    for key in wrapper.unread {
        if text.get(*key).is_some_and(|value| !value.is_null() && *value != false) {
            return Err(inner.wrong(key, &format!("null: a {} is computed without it", wrapper.architecture)));
        }
    }
    let nested_theta = ["rope_parameters", "rope_scaling"].iter().any(|key| text.get(*key).is_some_and(has_theta));
    let defaults: Map<String, Value> = serde_json::from_str(wrapper.defaults).expect("an object");
    for (key, value) in defaults {
        if !(key == "rope_theta" && nested_theta) {
            text.entry(key).or_insert(value);
        }
    }
    text.insert("model_type".to_owned(), family.into());
    text.entry("tie_word_embeddings").or_insert(wrapper.tied.into());
    for key in ["rope_scaling", "rope_parameters"] {
        // Text has one position where an image has three, and three that are equal turn like one.
        if let Some(Value::Object(rope)) = text.get_mut(key)
            && rope.shift_remove("mrope_section").is_some()
        {
            rope.shift_remove("mrope_interleaved");
            for kind in ["rope_type", "type"] {
                if rope.get(kind).is_some_and(|kind| kind == "mrope") {
                    rope.insert(kind.to_owned(), "default".into());
                }
            }
        }
    }
    Ok(Some((wrapper, text)))
}

#[cfg(test)]
mod tests;
