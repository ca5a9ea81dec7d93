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
    let nested = arch(json!({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "head_dim": 64,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": true}}}));
    assert_eq!(nested.unwrap().family.model_type, "qwen3");
    for (config, words) in [
        (json!({"model_type": "gemma3"}), "`text_config`"),
        (json!({"model_type": "mistral3", "text_config": {"model_type": "llama"}}), "`text_config`"),
        (json!({"model_type": "mistral3", "text_config": {"num_attention_heads": "x"}}), "`num_attention_heads`"),
        (json!({"model_type": "gemma3", "text_config": {}, "architectures": ["Gemma3ForCausalLM"]}), "`architectures`"),
    ] {
        let error = arch(config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words), "{error}");
    }
}

/// Those of `Qwen2_5_VLTextConfig` and `Qwen3VLTextConfig` of transformers 5.23.0, where they are not the family's.
#[test]
fn keys_that_are_absent_have_the_defaults_of_the_text_class() {
    let read = |model_type: &str, text: Value| arch(json!({"model_type": model_type, "text_config": text})).unwrap();
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
    // A value counts in either place.
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
