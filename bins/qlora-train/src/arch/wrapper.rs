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

    /// Those of `Qwen2_5_VLTextConfig` and `Qwen3VLTextConfig` of transformers 5.23.0, where they are not the family's.
    #[test]
    fn keys_that_are_absent_have_the_defaults_of_the_text_class() {
        let read =
            |model_type: &str, text: Value| arch(json!({"model_type": model_type, "text_config": text})).unwrap();
        let vl = read("qwen2_5_vl", json!({}));
        assert_eq!((vl.hidden_size, vl.num_layers, vl.num_heads, vl.num_kv_heads), (8192, 80, 64, 8));
        assert_eq!((vl.intermediate_size, vl.vocab_size, vl.norm.eps, vl.rope().theta), (29568, 152_064, 1e-5, 1e6));
        assert_eq!((vl.bos_token_id, &vl.eos_token_ids[..]), (Some(151_643), &[151_645][..]));
        let windows = json!({"num_hidden_layers": 4, "use_sliding_window": true, "sliding_window": 8});
        assert!(
            (0..4).all(|layer| read("qwen2_5_vl", windows.clone()).layer(layer).window.is_none()),
            "80 layers have none"
        );
        let vl = read("qwen3_vl", json!({"num_key_value_heads": null, "num_attention_heads": 16}));
        assert_eq!((vl.num_kv_heads, vl.max_position_embeddings, vl.rope().theta), (16, 128_000, 5e5));
        // What is said counts, wherever it is said.
        let rope = json!({"rope_type": "default", "rope_theta": 7e5, "mrope_section": [24, 20, 20]});
        for key in ["rope_parameters", "rope_scaling"] {
            let text = json!({key: rope, "rms_norm_eps": 1e-4});
            let vl = read("qwen2_5_vl", text);
            assert_eq!((vl.rope().theta, vl.norm.eps), (7e5, 1e-4), "{key}");
        }
        assert_eq!(read("qwen3_vl", json!({"rope_theta": 9e5})).rope().theta, 9e5);
    }

    #[test]
    fn keys_that_the_class_does_not_read_are_refused_by_name() {
        for (model_type, key, value, neutral) in [
            ("gemma3", "final_logit_softcapping", json!(30.0), Value::Null),
            ("qwen3_vl", "use_sliding_window", json!(true), json!(false)),
        ] {
            let read = |value: &Value| arch(json!({"model_type": model_type, "text_config": {key: value}}));
            let error = read(&value).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{error}");
            read(&neutral).unwrap();
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
