use std::path::Path;

use proptest::prelude::*;
use qlora_train::arch::{Arch, LayerArch, Norm, NormWeight, Projection, Rope, RopeScaling};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::error::Result;
use serde_json::{Value, json};

use super::configs;
use trainer_lab::assert_refused::assert_refused;

fn read(value: &Value) -> Result<Arch> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, value.to_string()).unwrap();
    Arch::from_file(&path)
}

/// `base` with some keys replaced; a null removes nothing, it is written as null.
fn with(base: &Value, changes: Value) -> Value {
    let mut value = base.clone();
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    value
}

/// config.json as published for Llama-3.1-8B, in the v4 spelling.
fn llama_31_8b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        },
        "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128256
    })
}

#[test]
fn a_published_v4_config_reads_as_its_authors_meant_it() {
    let config = read(&llama_31_8b()).unwrap();
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope(), Rope::new(500_000.0, llama3));
    assert_eq!((config.head_dim, config.q_dim(), config.kv_dim()), (128, 4096, 1024));
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(128000), &[128001, 128008, 128009][..]));
    assert_eq!(config.norm.eps, 1e-5);
    assert_eq!(config.num_parameters(), Some(8_030_261_248));
    assert_eq!(Projection::Down.shape(&config), (4096, 14336));
    assert_eq!(Projection::V.shape(&config), (1024, 4096));
}

#[test]
fn the_same_model_in_v4_and_in_v5_spelling_is_the_same_config() {
    let v4 = llama_31_8b();
    let mut v5 = with(&v4, json!({ "dtype": "bfloat16" }));
    let map = v5.as_object_mut().unwrap();
    let theta = map.remove("rope_theta").unwrap();
    let mut rope = map.remove("rope_scaling").unwrap();
    map.remove("torch_dtype");
    rope.as_object_mut().unwrap().insert("rope_theta".into(), theta);
    map.insert("rope_parameters".into(), rope);
    assert_eq!(read(&v4).unwrap(), read(&v5).unwrap());
    // The older key inside rope_scaling.
    let old = json!({ "rope_scaling": { "type": "linear", "factor": 2 }, "rope_parameters": null });
    assert_eq!(read(&with(&v4, old)).unwrap().rope().scaling, RopeScaling::Linear { factor: 2.0 });
}

proptest! {
    #[test]
    fn configs_survive_both_spellings(config in configs()) {
        let v5 = Value::Object(config.to_json("bfloat16"));
        let v4 = Value::Object(config.to_json_v4("bfloat16"));
        prop_assert!(v5.get("rope_theta").is_none() && v4.get("rope_parameters").is_none());
        prop_assert_eq!(&read(&v5).unwrap(), &config);
        prop_assert_eq!(&read(&v4).unwrap(), &config);
        let elements: u64 = config.tensors().iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
        prop_assert_eq!(config.num_parameters(), Some(elements));
    }
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let config = read(&json!({ "model_type": "llama" })).unwrap();
    let expected = Arch {
        vocab_size: 32000,
        hidden_size: 4096,
        intermediate_size: 11008,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 32,
        head_dim: 128,
        norm: Norm { eps: 1e-6, weight: NormWeight::Plain },
        layers: LayerArch::uniform(Rope::new(10_000.0, RopeScaling::Default)),
        tie_word_embeddings: false,
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..tiny_arch()
    };
    assert_eq!(config, expected);
    // These are Llama-2-7B's own sizes.
    assert_eq!(config.num_parameters(), Some(6_738_415_616));
    let nulls = json!({
        "head_dim": null, "num_key_value_heads": null, "rope_scaling": null, "rope_parameters": null,
        "pretraining_tp": null, "quantization_config": null, "sliding_window": null, "architectures": null
    });
    assert_eq!(read(&with(&json!({ "model_type": "llama" }), nulls)).unwrap(), expected);
    let no_tokens = json!({ "model_type": "llama", "bos_token_id": null, "eos_token_id": null });
    assert_eq!(read(&no_tokens).unwrap(), Arch { bos_token_id: None, eos_token_ids: vec![], ..expected });
}

#[test]
fn llama3_rope_falls_back_on_the_longest_position_as_transformers_does() {
    let rope = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 });
    let config = read(&with(&llama_31_8b(), json!({ "rope_scaling": rope }))).unwrap();
    assert!(
        matches!(config.rope().scaling, RopeScaling::Llama3 { original_max_position_embeddings: 131072, .. }),
        "{:?}",
        config.rope()
    );
}

#[test]
fn yarn_settings_default_to_those_of_transformers() {
    let yarn = |changes: Value| {
        let rope =
            with(&json!({ "rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 8192 }), changes);
        read(&with(&llama_31_8b(), json!({ "rope_scaling": rope }))).unwrap().rope().scaling
    };
    let growth = |m: f64| 0.1 * m * 16f64.ln() + 1.0;
    let of = |attention_factor| RopeScaling::Yarn {
        factor: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 8192,
        attention_factor,
        truncate: true,
    };
    assert_eq!(yarn(json!({})), of(growth(1.0)));
    assert_eq!(yarn(json!({ "mscale": 1.0 })), of(growth(1.0)));
    assert_eq!(yarn(json!({ "mscale": 1.0, "mscale_all_dim": 0.5 })), of(growth(1.0) / growth(0.5)));
    assert_eq!(yarn(json!({ "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.5 })), of(1.5));
    // Without a factor it is the ratio of both contexts: 131072 / 8192.
    assert_eq!(yarn(json!({ "factor": null })), of(growth(1.0)));
}

#[test]
fn parameter_counts_of_published_models() {
    let of = |changes: Value| read(&with(&llama_31_8b(), changes)).unwrap().num_parameters().unwrap();
    let b70 =
        json!({ "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64 });
    assert_eq!(of(b70), 70_553_706_496);
    let b1 = json!({
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "tie_word_embeddings": true
    });
    assert_eq!(of(b1), 1_235_814_400);
}

#[test]
fn keys_that_change_nothing_load() {
    let with = |extra: Value| {
        let mut config = json!({ "model_type": "llama" });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        read(&config).unwrap()
    };
    let plain = with(json!({}));
    for extra in [json!({ "pretraining_tp": 2 }), json!({ "attention_dropout": 0.1 })] {
        assert_eq!(with(extra.clone()), plain, "{extra}");
    }
    // Ids of another vocabulary can be neither given nor drawn.
    let foreign = with(json!({ "bos_token_id": 128_000, "eos_token_id": [2, 128_009, -1] }));
    assert_eq!((foreign.bos_token_id, &foreign.eos_token_ids[..]), (None, &[2][..]));
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128 });
    let rope = |extra: Value| {
        let mut rope = yarn.clone();
        rope.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        with(json!({ "rope_scaling": rope }))
    };
    for extra in [json!({ "finetuned": true }), json!({ "attn_factor": 1.0 })] {
        assert_eq!(rope(extra.clone()), rope(json!({})), "{extra}");
    }
}

#[test]
fn what_is_not_supported_or_makes_no_sense_is_refused_by_key() {
    let rope = |rope: Value| json!({ "rope_scaling": rope });
    let cases: Vec<(Value, &[&str])> = vec![
        (json!({ "model_type": "gpt2" }), &["`model_type`", "\"gpt2\"", "LlamaForCausalLM"]),
        (json!({ "model_type": null }), &["`model_type`", "LlamaForCausalLM"]),
        (json!({ "architectures": ["LlamaForSequenceClassification"] }), &["`architectures`", "LlamaForCausalLM"]),
        (json!({ "architectures": [] }), &["`architectures`"]),
        (json!({ "hidden_act": "gelu" }), &["`hidden_act`", "\"gelu\"", "\"silu\""]),
        (json!({ "partial_rotary_factor": 0.5 }), &["`partial_rotary_factor`", "0.5"]),
        (json!({ "sliding_window": 4096 }), &["`sliding_window`", "4096"]),
        (json!({ "rope_interleaved": true }), &["`rope_interleaved`"]),
        (json!({ "layer_types": ["full_attention", "sliding_attention"] }), &["`layer_types`"]),
        (
            rope(json!({ "rope_type": "dynamic", "factor": 4 })),
            &["rope_scaling", "`rope_type`", "\"dynamic\"", "yarn", "longrope"],
        ),
        (rope(json!({ "rope_type": "yarn", "factor": -4 })), &["rope_scaling", "`factor`", "above 0"]),
        (
            rope(json!({ "rope_type": "yarn", "factor": 4, "attn_factor": 0.88 })),
            &["rope_scaling", "`attn_factor`", "0.88", "vLLM", "`attention_factor`"],
        ),
        (
            rope(json!({ "rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2 })),
            &["`beta_fast`", "beta_slow (2)"],
        ),
        (
            rope(json!({ "rope_type": "yarn", "factor": 4, "mscale": -100, "mscale_all_dim": 1 })),
            &["`mscale`", "above 0"],
        ),
        (rope(json!({ "rope_type": "yarn", "factor": 4, "truncate": 1 })), &["`truncate`"]),
        (
            json!({ "rope_theta": 1, "rope_scaling": { "rope_type": "yarn", "factor": 4 } }),
            &["`rope_theta`", "found 1", "above 1"],
        ),
        (rope(json!({ "type": "dynamic", "factor": 4 })), &["`type`", "\"dynamic\""]),
        (rope(json!({ "type": "linear", "rope_type": "llama3" })), &["`type`", "linear", "llama3"]),
        (rope(json!({ "rope_type": "linear" })), &["`factor`", "nothing", "above 0"]),
        (rope(json!({ "rope_type": "linear", "factor": -1 })), &["`factor`", "-1"]),
        (rope(json!({ "rope_type": "linear", "factor": 2, "warp": 3 })), &["`warp`"]),
        (rope(json!({ "rope_type": "default", "partial_rotary_factor": 0.25 })), &["`partial_rotary_factor`"]),
        (rope(json!({ "rope_type": "default", "rope_theta": 7 })), &["`rope_theta`", "found 7", "500000"]),
        (
            rope(json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 })),
            &["`high_freq_factor`", "low_freq_factor (4)"],
        ),
        (rope(json!("linear")), &["`rope_scaling`", "an object"]),
        (
            json!({ "rope_parameters": { "rope_type": "default" } }),
            &["`rope_scaling`", "`rope_parameters`", "contradict"],
        ),
        (json!({ "rope_theta": 0, "rope_scaling": null }), &["`rope_theta`", "above 0"]),
        (json!({ "hidden_size": 0 }), &["`hidden_size`", "found 0", "from 1"]),
        (json!({ "hidden_size": -8 }), &["`hidden_size`", "-8", "whole number"]),
        (json!({ "hidden_size": "big" }), &["`hidden_size`", "\"big\"", "whole number"]),
        (json!({ "hidden_size": 4097 }), &["`hidden_size`", "4097", "num_attention_heads (32)"]),
        (json!({ "num_attention_heads": 0 }), &["`num_attention_heads`"]),
        (json!({ "num_key_value_heads": 5 }), &["`num_key_value_heads`", "found 5", "divisor"]),
        (json!({ "num_key_value_heads": 64 }), &["`num_key_value_heads`", "divisor"]),
        (json!({ "head_dim": 127 }), &["`head_dim`", "127", "even"]),
        (json!({ "head_dim": 2147483646u32 }), &["`head_dim`", "product"]),
        (json!({ "vocab_size": u64::MAX }), &["`vocab_size`"]),
        (json!({ "num_hidden_layers": 1_000_000_000 }), &["`num_hidden_layers`", "at most"]),
        (
            json!({ "vocab_size": 2147483647, "hidden_size": 2147483647, "head_dim": 128, "intermediate_size": 2147483647 }),
            &["more parameters than can be addressed"],
        ),
        (json!({ "rms_norm_eps": 0 }), &["`rms_norm_eps`", "above 0"]),
        (json!({ "rms_norm_eps": 1e-300 }), &["`rms_norm_eps`"]),
        (json!({ "attention_bias": 1 }), &["`attention_bias`", "true or false"]),
        (json!({ "eos_token_id": "x" }), &["`eos_token_id`"]),
        (json!({ "bos_token_id": 1.5 }), &["`bos_token_id`"]),
    ];
    for (change, words) in cases {
        let words: Vec<&str> = words.iter().copied().chain(["config.json"]).collect();
        assert_refused(read(&with(&llama_31_8b(), change)), &words);
    }
}

#[test]
fn swish_is_silu_by_another_name() {
    let swish = read(&with(&llama_31_8b(), json!({ "hidden_act": "swish" }))).unwrap();
    assert_eq!(swish.to_json(""), read(&llama_31_8b()).unwrap().to_json(""));
    assert_refused(read(&with(&llama_31_8b(), json!({ "hidden_act": "gelu" }))), &["`hidden_act`", "silu"]);
}

#[test]
fn files_that_are_no_config_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    assert_refused(Arch::from_file(&path), &["config.json", "cannot be read"]);
    assert_refused(Arch::from_file(Path::new("/dev/null")), &["/dev/null", "not a regular file"]);
    for (text, word) in [("", "not valid JSON"), ("{", "not valid JSON"), ("[1]", "expected a JSON object")] {
        std::fs::write(&path, text).unwrap();
        assert_refused(Arch::from_file(&path), &["config.json", word]);
    }
    std::fs::write(&path, vec![b' '; (16 << 20) + 1]).unwrap();
    assert_refused(Arch::from_file(&path), &["config.json", "more than 16777216 bytes"]);
}
