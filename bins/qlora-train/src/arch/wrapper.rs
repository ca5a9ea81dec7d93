//! Models around a text model: in the files, what reads images stands beside it. The text model is read alone.

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
    /// Whether the output layer is the embedding where no key says so.
    tied: bool,
}

static WRAPPERS: [Wrapper; 4] = [
    Wrapper {
        model_type: "gemma3",
        architecture: "Gemma3ForConditionalGeneration",
        text: &[("gemma3_text", "gemma3_text")],
        tied: true,
    },
    Wrapper {
        model_type: "mistral3",
        architecture: "Mistral3ForConditionalGeneration",
        text: &[("mistral", "mistral"), ("ministral3", "ministral3")],
        tied: false,
    },
    Wrapper {
        model_type: "qwen2_5_vl",
        architecture: "Qwen2_5_VLForConditionalGeneration",
        text: &[("qwen2_5_vl_text", "qwen2"), ("qwen2_5_vl", "qwen2")],
        tied: false,
    },
    Wrapper {
        model_type: "qwen3_vl",
        architecture: "Qwen3VLForConditionalGeneration",
        text: &[("qwen3_vl_text", "qwen3")],
        tied: false,
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
/// Where the tensors of a text model stand, and what comes in the place of that.
const TEXT: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];
/// Tensors of what is around it.
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
    /// The name of a tensor in the text model alone; `None`: it is none of its.
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
                // What the whole says of its output layer counts.
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
            &format!("{}: of other text models inside a {model_type:?} none is trained", known.join(" or ")),
        ));
    };
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
mod tests {
    use super::*;
    use crate::arch::Arch;
    use serde_json::json;

    fn arch(config: Value) -> Result<Arch> {
        Arch::from_json(Path::new("config.json"), config.as_object().unwrap())
    }

    #[test]
    fn a_text_model_is_read_out_of_what_is_around_it() {
        let gemma = arch(json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106],
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
                "model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
        }))
        .unwrap();
        assert_eq!(
            (gemma.family.model_type, gemma.hidden_size, &gemma.eos_token_ids[..]),
            ("gemma3_text", 2560, &[1, 106][..])
        );
        assert!(gemma.tie_word_embeddings && gemma.wrapper.unwrap().architecture == "Gemma3ForConditionalGeneration");
        let alone = |arch: &Arch| Arch::from_json(Path::new("x"), &arch.to_json("bfloat16")).unwrap();
        assert_eq!(alone(&gemma), Arch { wrapper: None, ..gemma.clone() });
        let flat = json!({
            "model_type": "qwen2_5_vl", "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6,
            "vision_config": {}, "vision_token_id": 151654,
        });
        let flat = arch(flat).unwrap();
        assert_eq!((flat.family.model_type, flat.rope().theta, flat.hidden_size), ("qwen2", 1e6, 2048));
        let nested =
            arch(json!({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "head_dim": 64,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": true}}}));
        assert_eq!(nested.unwrap().family.model_type, "qwen3");
        for (config, words) in [
            (json!({"model_type": "gemma3"}), "`text_config`"),
            (json!({"model_type": "mistral3", "text_config": {"model_type": "llama"}}), "`text_config`"),
            (json!({"model_type": "mistral3", "text_config": {"num_attention_heads": "x"}}), "`num_attention_heads`"),
            (
                json!({"model_type": "gemma3", "text_config": {}, "architectures": ["Gemma3ForCausalLM"]}),
                "`architectures`",
            ),
        ] {
            let error = arch(config).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn tensors_of_the_text_model_are_told_by_where_they_stand() {
        for (name, own) in [
            ("model.language_model.layers.0.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("language_model.model.norm.weight", Some("model.norm.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("model.layers.1.self_attn.q_proj.weight.absmax", Some("model.layers.1.self_attn.q_proj.weight.absmax")),
            ("lm_head.weight", Some("lm_head.weight")),
            ("vision_tower.vision_model.embeddings.patch_embedding.weight", None),
            ("model.visual.blocks.0.attn.qkv.weight", None),
            ("audio.x", Some("audio.x")),
        ] {
            assert_eq!(Wrapper::text_name(name).as_deref(), own, "{name}");
        }
        assert_eq!(Wrapper::path("model.layers.0.mlp.up_proj"), "model.language_model.layers.0.mlp.up_proj");
        assert_eq!(Wrapper::path("lm_head"), "lm_head");
    }
}
