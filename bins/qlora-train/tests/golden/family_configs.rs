//! Configurations of families: what their config.json may say, and what is refused by its key.

use super::json;
use qlora_train::arch::{Activation, Arch, Multipliers, NormWeight, Projection, QkNorm, Rope, RopeScaling};
use serde_json::Value;
use std::path::Path;

/// Each of these values of a key of the family's config.json is refused, and the error names the key.
#[track_caller]
fn refused_by_key(config: &serde_json::Map<String, Value>, cases: &[(&str, Value)]) {
    for (key, value) in cases {
        let mut config = config.clone();
        config.insert((*key).into(), value.clone());
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
}

#[test]
fn a_qwen2_that_would_be_computed_otherwise_is_refused_by_key() {
    let Value::Object(config) = json("qwen2/config.json") else { panic!("config.json is no object") };
    let mut windowed = config.clone();
    windowed.insert("sliding_window".into(), Value::from(4096));
    let arch = Arch::from_json(Path::new("config.json"), &windowed).unwrap();
    assert_eq!(arch.biases, [Projection::Q, Projection::K, Projection::V].into());
    assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
    let cases = [
        ("use_sliding_window", Value::from(1)),
        ("use_mrope", Value::from(true)),
        // A window that no key turns on, and lists that are not of this model's layers.
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("layer_types", Value::from(vec!["full_attention"])),
        ("layer_types", Value::from(vec!["full_attention", "linear_attention"])),
        ("layer_types", Value::from("full_attention")),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_qwen3_that_would_be_computed_otherwise_is_refused_by_key() {
    let Value::Object(config) = json("qwen3/config.json") else { panic!("config.json is no object") };
    let read = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config.clone();
        change(&mut config);
        Arch::from_json(Path::new("config.json"), &config).unwrap()
    };
    let arch = read(|_| ());
    assert!(arch.qk_norm == QkNorm::Head && arch.biases.is_empty() && arch.head_dim == 12);
    let biased = read(|config| _ = config.insert("attention_bias".into(), true.into()));
    assert_eq!(biased.biases, Projection::ATTENTION.into());
    assert_eq!(read(|config| _ = config.remove("head_dim")).head_dim, 128);
    for arch in [arch, biased] {
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
    }
    let cases = [
        ("use_sliding_window", Value::from("yes")),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["Qwen2ForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
}

/// The windows that transformers' Qwen2Config and Qwen3Config derive from their keys.
#[test]
fn layers_of_a_qwen_have_the_windows_that_its_keys_say() {
    let Value::Object(config) = json("qwen3-window/config.json") else { panic!("config.json is no object") };
    for model_type in ["qwen2", "qwen3"] {
        let read = |changes: &[(&str, Value)]| {
            let mut config = config.clone();
            config.insert("model_type".into(), model_type.into());
            config.insert("architectures".into(), Value::Null);
            config.insert("num_hidden_layers".into(), 4.into());
            config.remove("layer_types");
            config.extend(changes.iter().map(|(key, value)| ((*key).into(), value.clone())));
            let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
            assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
            assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json_v4("bfloat16")).unwrap(), arch);
            (0..4).map(|layer| arch.layer(layer).window).collect::<Vec<_>>()
        };
        let some = Some(5);
        assert_eq!(read(&[]), [None, some, some, some]);
        assert_eq!(read(&[("max_window_layers", 0.into())]), [some; 4]);
        assert_eq!(read(&[("max_window_layers", Value::Null)]), [None; 4]);
        assert_eq!(read(&[("sliding_window", Value::Null)]), [None; 4]);
        assert_eq!(read(&[("use_sliding_window", false.into())]), [None; 4]);
        let listed = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
        assert_eq!(read(&[("layer_types", listed.to_vec().into())]), [some, None, some, None]);
    }
    let cases = [
        ("sliding_window", Value::from(0)),
        ("sliding_window", Value::from(-4)),
        ("sliding_window", Value::from(2.5)),
        ("sliding_window", Value::from("4096")),
        ("sliding_window", Value::from(1u64 << 40)),
        ("max_window_layers", Value::from(-1)),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_mistral_has_the_window_that_its_config_says() {
    let Value::Object(config) = json("mistral/config.json") else { panic!("config.json is no object") };
    let read = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config.clone();
        change(&mut config);
        let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json("bfloat16")).unwrap(), arch);
        assert_eq!(Arch::from_json(Path::new("config.json"), &arch.to_json_v4("bfloat16")).unwrap(), arch);
        [0, 1].map(|layer| arch.layer(layer).window)
    };
    assert_eq!(read(|_| ()), [Some(6); 2]);
    assert_eq!(read(|config| _ = config.remove("sliding_window")), [Some(4096); 2]);
    assert_eq!(read(|config| _ = config.insert("sliding_window".into(), Value::Null)), [None; 2]);
    assert_eq!(
        read(|config| _ = config.insert("layer_types".into(), vec!["sliding_attention"; 2].into())),
        [Some(6); 2]
    );
    let cases = [
        ("sliding_window", Value::from(0)),
        ("sliding_window", Value::from(true)),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("layer_types", Value::from(vec!["sliding_attention"])),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["MistralForSequenceClassification"])),
        ("head_dim", Value::from(7)),
    ];
    refused_by_key(&config, &cases);
    // Without any key it is MistralConfig(), the first Mistral 7B.
    let Value::Object(bare) = serde_json::json!({ "model_type": "mistral" }) else { unreachable!() };
    let arch = Arch::from_json(Path::new("config.json"), &bare).unwrap();
    assert_eq!((arch.num_parameters(), arch.layer(31).window), (Some(7_241_732_096), Some(4096)));
}

/// The architecture of a family's golden config.json after `change`, which its config.json written anew gives again.
#[track_caller]
fn read_changed(config: &serde_json::Map<String, Value>, change: &[(&str, Option<Value>)]) -> Arch {
    let mut config = config.clone();
    for (key, value) in change {
        match value {
            Some(value) => config.insert((*key).into(), value.clone()),
            None => config.remove(*key),
        };
    }
    let arch = Arch::from_json(Path::new("config.json"), &config).unwrap();
    for again in [arch.to_json("bfloat16"), arch.to_json_v4("bfloat16")] {
        assert_eq!(Arch::from_json(Path::new("config.json"), &again).unwrap(), arch);
    }
    arch
}

#[test]
fn a_smollm3_reads_which_layers_are_rotated_and_refuses_by_key() {
    let Value::Object(config) = json("smollm3/config.json") else { panic!("config.json is no object") };
    let rotated = |change: &[(&str, Option<Value>)]| {
        let arch = read_changed(&config, change);
        (0..arch.num_layers).map(|layer| usize::from(arch.layer(layer).rope.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(rotated(&[]), [1, 0]);
    let flags = |flags: &[u8]| Some(Value::from(flags.to_vec()));
    assert_eq!(rotated(&[("no_rope_layers", flags(&[0, 1, 1, 0]))]), [0, 1]);
    let layers = |n: usize| ("num_hidden_layers", Some(Value::from(n)));
    let without = [("no_rope_layers", None), ("layer_types", None), ("no_rope_layer_interval", None), layers(6)];
    assert_eq!(rotated(&without), [1, 1, 1, 0, 1, 1]);
    assert_eq!(rotated(&[("no_rope_layer_interval", Some(Value::from(u64::MAX))), ("no_rope_layers", None)]), [1, 1]);
    let defaults = [("rope_parameters", None), ("tie_word_embeddings", None), ("attention_bias", Some(true.into()))];
    let arch = read_changed(&config, &defaults);
    assert!(arch.rope().theta == 2e6 && arch.tie_word_embeddings && arch.biases == Projection::ATTENTION.into());
    let windows = |change: &[(&str, Option<Value>)]| {
        let used = [("use_sliding_window", Some(true.into())), ("sliding_window", Some(9.into()))];
        let arch = read_changed(&config, &[&used, change].concat());
        [0, 1].map(|layer| arch.layer(layer).window)
    };
    let kinds = |kinds: [&str; 2]| ("layer_types", Some(Value::from(kinds.to_vec())));
    assert_eq!(windows(&[("layer_types", None)]), [None, Some(9)]);
    assert_eq!(windows(&[kinds(["sliding_attention", "full_attention"])]), [Some(9), None]);
    assert_eq!(windows(&[("layer_types", None), ("sliding_window", Some(Value::Null))]), [None; 2]);
    let cases = [
        ("no_rope_layers", Value::from(vec![1])),
        ("no_rope_layers", Value::from(vec![1, 2])),
        ("no_rope_layers", Value::from("1")),
        ("layer_types", Value::from(vec!["full_attention", "sliding_attention"])),
        ("use_sliding_window", Value::from(1)),
        ("num_hidden_layers", Value::from(i32::MAX)),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
    let mut zero = config.clone();
    zero.remove("no_rope_layers");
    refused_by_key(&zero, &[("no_rope_layer_interval", Value::from(0))]);
    let mut none = config.clone();
    none.insert("no_rope_layers".into(), Value::from(vec![0, 0]));
    let error = Arch::from_json(Path::new("config.json"), &none).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("no layer with rotary positions"), "{error}");
}

#[test]
fn a_granite_reads_its_multipliers_and_refuses_by_key() {
    let Value::Object(config) = json("granite/config.json") else { panic!("config.json is no object") };
    let multipliers = |embedding, attention, residual, logits_scaling| Multipliers {
        embedding,
        attention: Some(attention),
        residual,
        logits_scaling,
        ..Multipliers::NONE
    };
    assert_eq!(read_changed(&config, &[]).multipliers, multipliers(12.0, 0.2, 0.22, 6.0));
    let keys = ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"];
    let arch = read_changed(&config, &keys.map(|key| (key, None)));
    // Not 1 / sqrt(head_dim): a config without the key has scores that are not scaled.
    assert_eq!(arch.multipliers, multipliers(1.0, 1.0, 1.0, 1.0));
    for key in keys {
        let values = [0.0, -1.0, 1e-50, 1e300].map(Value::from).into_iter().chain([Value::from("12")]);
        refused_by_key(&config, &values.map(|value| (key, value)).collect::<Vec<_>>());
    }
    // Each alone is a number of f32; what the model divides is none.
    refused_by_key(
        &config,
        &[("embedding_multiplier", Value::from(3e38)), ("residual_multiplier", Value::from(1e-30))],
    );
    let biased = read_changed(&config, &[("mlp_bias", Some(true.into()))]);
    assert_eq!(biased.biases, Projection::MLP.into());
}

/// Kinds of layers as IBM publishes them and as transformers 5 writes them; what is not dense is refused by its key.
#[test]
fn a_granite_4_is_read_where_it_is_dense() {
    let Value::Object(config) = json("granitemoehybrid/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!((arch.intermediate_size, arch.multipliers.residual), (56, 0.22));
    assert_eq!(arch.names.short_names(), "q_proj, k_proj, v_proj, o_proj, input_linear, output_linear");
    let published = Some(vec!["attention"; 2].into());
    assert_eq!(read_changed(&config, &[("layer_types", published), ("intermediate_size", Some(8192.into()))]), arch);
    let biased = read_changed(&config, &[("attention_bias", Some(true.into()))]);
    assert_eq!(biased.biases, Projection::ATTENTION.into());
    let cases = [
        ("num_local_experts", Value::from(8)),
        ("num_local_experts", Value::Null),
        ("layer_types", Value::from(vec!["mamba", "attention"])),
        ("layer_types", Value::from(vec!["attention"])),
        ("layer_types", Value::Null),
        ("position_embedding_type", Value::from("nope")),
        ("position_embedding_type", Value::Null),
        ("shared_intermediate_size", Value::from(0)),
        ("shared_intermediate_size", Value::from(u64::MAX >> 1)),
        ("hidden_act", Value::from("gelu")),
        ("attention_multiplier", Value::from(0)),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_ministral_3_has_rows_up_to_its_trained_context() {
    let Value::Object(config) = json("ministral3/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!(arch.max_position_embeddings, 16);
    arch.check_positions(16).unwrap();
    let error = arch.check_positions(17).unwrap_err().to_string();
    assert!(error.contains("17 tokens") && error.contains("at most 16") && error.contains("too_long"), "{error}");
    // If all positions are trained ones, queries beyond them grow too.
    let all = read_changed(&config, &[("max_position_embeddings", Some(16.into()))]);
    assert!(all.check_positions(16).is_ok() && all.check_positions(17).is_err());
    let bare = read_changed(&serde_json::Map::from_iter([("model_type".into(), "ministral3".into())]), &[]);
    assert_eq!((bare.max_position_embeddings, bare.head_dim, bare.rope().theta), (16_384, 128, 1e6));
    let mut still = config["rope_parameters"].clone();
    still["llama_4_scaling_beta"] = 0.into();
    let arch = read_changed(&config, &[("rope_parameters", Some(still.clone())), ("sliding_window", Some(4.into()))]);
    assert_eq!((arch.max_position_embeddings, arch.layer(1).window), (64, Some(4)));
    refused_by_key(&config, &[("rope_parameters", serde_json::json!({"rope_type": "default"}))]);
    // No other family's queries grow.
    let Value::Object(mut mistral) = json("mistral/config.json") else { panic!("config.json is no object") };
    mistral.insert("rope_parameters".into(), config["rope_parameters"].clone());
    let error = Arch::from_json(Path::new("config.json"), &mistral).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("`llama_4_scaling_beta`"), "{error}");
}

/// In transformers null is another value than no key: as many heads as queries have.
#[test]
fn key_heads_that_are_null_are_as_many_as_query_heads() {
    for (model_type, default) in [("llama", 32), ("qwen2", 32), ("qwen3", 32), ("smollm3", 4), ("seed_oss", 8)] {
        let config = serde_json::json!({"model_type": model_type, "num_attention_heads": 12, "hidden_size": 768});
        let Value::Object(config) = config else { unreachable!("an object") };
        let null = read_changed(&config, &[("num_key_value_heads", Some(Value::Null))]);
        assert_eq!((null.num_heads, null.num_kv_heads), (12, 12), "{model_type}");
        let mut absent = config.clone();
        absent.insert("num_attention_heads".into(), 32.into());
        assert_eq!(read_changed(&absent, &[("hidden_size", Some(1024.into()))]).num_kv_heads, default, "{model_type}");
    }
}

#[test]
fn a_seed_oss_reads_where_it_has_biases() {
    let Value::Object(config) = json("seed_oss/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[("attention_bias", None), ("head_dim", None)]);
    assert!(arch.biases == [Projection::Q, Projection::K, Projection::V].into() && arch.head_dim == 128);
    assert_eq!(read_changed(&config, &[("head_dim", Some(Value::Null))]).head_dim, 8);
    let change = ["attention_out_bias", "mlp_bias"].map(|key| (key, Some(true.into())));
    assert_eq!(read_changed(&config, &change).biases, Projection::ALL.into());
    refused_by_key(&config, &[("hidden_act", Value::from("gelu")), ("mlp_bias", Value::from(1))]);
}

#[test]
fn an_olmo_reads_its_norms_windows_and_rotations() {
    let Value::Object(config) = json("olmo2/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[("attention_bias", Some(true.into())), ("rope_parameters", None)]);
    assert!(arch.qk_norm == QkNorm::Width && arch.biases == Projection::ATTENTION.into() && arch.rope().theta == 1e4);
    let cases = [("layer_types", Value::from(vec!["sliding_attention"; 2])), ("sliding_window", Value::from(8))];
    refused_by_key(&config, &cases);

    let Value::Object(config) = json("olmo3/config.json") else { panic!("config.json is no object") };
    let windows = |change: &[(&str, Option<Value>)]| {
        let arch = read_changed(&config, change);
        (0..arch.num_layers).map(|layer| arch.layer(layer).window).collect::<Vec<_>>()
    };
    let some = Some(6);
    assert_eq!(windows(&[]), [some, None]);
    assert_eq!(
        windows(&[("layer_types", None), ("num_hidden_layers", Some(5.into()))]),
        [some, some, some, None, some]
    );
    assert_eq!(windows(&[("layer_types", None), ("sliding_window", None)]), [Some(4096); 2]);
    let arch = read_changed(&config, &[]);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(500.0, RopeScaling::Default)));
    assert!(matches!(
        arch.layer(1).rope.as_ref().unwrap().scaling,
        RopeScaling::Yarn { factor: 4.0, attention_factor: 1.2, .. }
    ));
    // The published file has one theta, and a scaling for layers that see everything.
    let published = [
        ("rope_parameters", None),
        ("rope_theta", Some(7e5.into())),
        ("rope_scaling", Some(serde_json::json!({"rope_type": "linear", "factor": 8.0}))),
    ];
    let arch = read_changed(&config, &published);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(7e5, RopeScaling::Default)));
    assert_eq!(arch.layer(1).rope, Some(Rope::new(7e5, RopeScaling::Linear { factor: 8.0 })));
    assert_eq!(read_changed(&config, &published[..1]).rope().theta, 5e5);
    let cases = [
        ("sliding_window", Value::Null),
        ("layer_types", Value::from(vec!["sliding_attention"])),
        ("rope_scaling", serde_json::json!({"rope_type": "linear", "factor": 8.0})),
    ];
    refused_by_key(&config, &cases);
    for (key, parameters) in [
        ("factor", serde_json::json!({"full_attention": {"rope_type": "yarn", "factor": -1.0}})),
        ("rope_type", serde_json::json!({"sliding_attention": {}, "rope_type": "default"})),
        ("rope_theta", serde_json::json!({"sliding_attention": {"rope_theta": 0.0}})),
    ] {
        let mut config = config.clone();
        config.insert("rope_parameters".into(), parameters);
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
}

#[test]
fn a_phi3_reads_its_rotation_and_refuses_by_key() {
    let Value::Object(config) = json("phi3/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!((arch.rope().partial, arch.rope().rotary_dim(8), arch.layer(0).window), (0.75, 6, None));
    assert_eq!(arch.names.short_names(), "qkv_proj, o_proj, gate_up_proj, down_proj");
    let window = read_changed(&config, &[("sliding_window", Some(2047.into()))]);
    assert_eq!(window.layer(1).window, Some(2047));
    // Phi-3 mini 128k as it is published.
    let long = |factors: usize| serde_json::json!({"type": "su", "short_factor": vec![1.05; 4], "long_factor": vec![2.5; factors]});
    let published = |factors: usize| {
        [
            ("rope_parameters", None),
            ("rope_scaling", Some(long(factors))),
            ("max_position_embeddings", Some(131_072.into())),
            ("original_max_position_embeddings", Some(4096.into())),
            ("partial_rotary_factor", None),
        ]
    };
    let RopeScaling::LongRope { attention_factor, .. } = read_changed(&config, &published(4)).rope().scaling else {
        panic!("no LongRoPE")
    };
    assert_eq!(attention_factor, (1.0 + 32f64.ln() / 4096f64.ln()).sqrt());
    let mut wrong = config.clone();
    for (key, value) in published(3) {
        wrong.insert(key.into(), value.unwrap_or_default());
    }
    let error = Arch::from_json(Path::new("config.json"), &wrong).unwrap_err().to_string();
    assert!(error.contains("`long_factor`") && error.contains("found 3 numbers, expected 4"), "{error}");
    let cases = [
        ("sliding_window", Value::from(0)),
        ("attention_bias", Value::from(true)),
        ("hidden_act", Value::from("gelu")),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
    for (key, value) in [
        ("partial_rotary_factor", serde_json::json!({"partial_rotary_factor": 1.5})),
        ("partial_rotary_factor", serde_json::json!({"partial_rotary_factor": 0.4})),
        ("short_factor", serde_json::json!({"rope_type": "longrope", "long_factor": [1, 1, 1]})),
        (
            "long_factor",
            serde_json::json!({"rope_type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 0, 1]}),
        ),
    ] {
        let mut config = config.clone();
        config.insert("rope_parameters".into(), value);
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
    // Other families rotate whole heads.
    let Value::Object(llama) = serde_json::json!({"model_type": "llama"}) else { unreachable!() };
    refused_by_key(&llama, &[("partial_rotary_factor", Value::from(0.75))]);
}

#[test]
fn a_gemma3_reads_its_layers_and_scales_and_refuses_by_key() {
    let Value::Object(config) = json("gemma3/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert_eq!(arch.multipliers.attention, Some(24f64.powf(-0.5) as f32));
    assert!(arch.multipliers.embedding == 32f32.sqrt() && arch.multipliers.embedding_is_rounded);
    assert!(arch.norm.weight == NormWeight::OnePlus && arch.activation == Activation::GeluTanh);
    assert_eq!(arch.layer(0).rope, Some(Rope::new(500.0, RopeScaling::Default)));
    assert_eq!(arch.layer(1).rope, Some(Rope::new(10_000.0, RopeScaling::Linear { factor: 2.0 })));
    // The published file has the keys of transformers v4: five layers of six with a window.
    let published = [
        ("rope_parameters", None),
        ("layer_types", None),
        ("query_pre_attn_scalar", Some(12.into())),
        ("rope_theta", Some(1e6.into())),
        ("rope_local_base_freq", Some(1e4.into())),
        ("sliding_window_pattern", Some(6.into())),
        ("num_hidden_layers", Some(7.into())),
    ];
    let arch = read_changed(&config, &published);
    let windows: Vec<bool> = (0..7).map(|layer| arch.layer(layer).window.is_some()).collect();
    assert_eq!(windows, [true, true, true, true, true, false, true]);
    assert_eq!(arch.multipliers.attention, None);
    assert_eq!([5, 6].map(|layer| arch.layer(layer).rope.as_ref().unwrap().theta), [1e6, 1e4]);
    let Value::Object(bare) = serde_json::json!({ "model_type": "gemma3_text" }) else { unreachable!() };
    let arch = read_changed(&bare, &[]);
    assert_eq!((arch.head_dim, arch.layer(0).window, arch.rope().theta), (256, Some(4096), 1e4));
    let cases = [
        ("hidden_activation", Value::from("gelu")),
        ("use_bidirectional_attention", Value::from(true)),
        ("query_pre_attn_scalar", Value::from(0)),
        // A key of its config that its attention does not read.
        ("attn_logit_softcapping", Value::from(50)),
        ("final_logit_softcapping", Value::from(-1)),
        ("sliding_window", Value::Null),
    ];
    refused_by_key(&config, &cases);
    refused_by_key(&bare, &[("sliding_window_pattern", Value::from(0)), ("rope_local_base_freq", Value::from(-1))]);
    let capped = [("attn_logit_softcapping", Some(Value::Null)), ("final_logit_softcapping", Some(30.into()))];
    let caps = |arch: &Arch| [arch.attention_soft_cap, arch.logits_soft_cap];
    assert_eq!(caps(&read_changed(&config, &capped)), [None, Some(30.0)]);
    assert_eq!(caps(&read_changed(&bare, &[])), [None; 2]);
}

#[test]
fn a_gemma2_reads_its_caps_and_windows_and_refuses_by_key() {
    let Value::Object(config) = json("gemma2/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    assert!(arch.attention_soft_cap == Some(0.6) && arch.logits_soft_cap == Some(1.5) && arch.qk_norm == QkNorm::None);
    let windows =
        |arch: &Arch| (0..arch.num_layers).map(|layer| arch.layer(layer).window.is_some()).collect::<Vec<_>>();
    assert_eq!(windows(&arch), [true, false]);
    // Published as transformers v4 has it: without a list, and with keys that mean nothing.
    let published = [
        ("layer_types", None),
        ("num_hidden_layers", Some(5.into())),
        ("rope_parameters", None),
        ("rope_theta", Some(1e4.into())),
        ("hidden_act", Some("gelu_pytorch_tanh".into())),
        ("cache_implementation", Some("hybrid".into())),
    ];
    assert_eq!(windows(&read_changed(&config, &published)), [true, false, true, false, true]);
    // Gemma2Config has caps where there is no key, and none where it is null.
    let caps = |value: Option<Value>| {
        let keys = ["attn_logit_softcapping", "final_logit_softcapping"];
        let arch = read_changed(&config, &keys.map(|key| (key, value.clone())));
        [arch.attention_soft_cap, arch.logits_soft_cap]
    };
    assert_eq!((caps(None), caps(Some(Value::Null))), ([Some(50.0), Some(30.0)], [None; 2]));
    let Value::Object(bare) = serde_json::json!({ "model_type": "gemma2" }) else { unreachable!() };
    let arch = read_changed(&bare, &[]);
    assert_eq!((arch.head_dim, arch.layer(0).window, arch.rope().theta), (256, Some(4096), 1e4));
    let cases = [
        ("attn_logit_softcapping", Value::from(0)),
        ("attn_logit_softcapping", Value::from(1e-60)),
        ("final_logit_softcapping", Value::from(-30)),
        ("final_logit_softcapping", Value::from("30")),
        ("hidden_activation", Value::from("gelu")),
        ("sliding_window", Value::Null),
        ("layer_types", Value::from(vec!["full_attention"])),
    ];
    refused_by_key(&config, &cases);
}

#[test]
fn a_hunyuan_reads_its_stretched_base_and_refuses_by_key() {
    let Value::Object(config) = json("hunyuan_v1_dense/config.json") else { panic!("config.json is no object") };
    let arch = read_changed(&config, &[]);
    // transformers multiplies the base by alpha to the power of D / (D - 2), 12 / 10 here.
    assert_eq!(arch.rope(), Rope::new(100.0 * 20f64.powf(1.2), RopeScaling::Default));
    assert!(arch.qk_norm == QkNorm::HeadRotated && arch.biases.is_empty());
    let published = |alpha: Value| {
        serde_json::json!({
            "alpha": alpha, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "type": "dynamic",
        })
    };
    let older = [
        ("rope_parameters", None),
        ("rope_scaling", Some(published(1000.into()))),
        ("rope_theta", Some(10_000.into())),
        ("use_qk_norm", Some(true.into())),
        ("attention_bias", Some(true.into())),
    ];
    let arch = read_changed(&config, &older);
    assert_eq!(arch.rope(), Rope::new(1e4 * 1000f64.powf(1.2), RopeScaling::Default));
    assert_eq!(arch.biases, Projection::ATTENTION.into());
    assert_eq!(read_changed(&config, &[("rope_parameters", None)]).rope(), Rope::new(1e4, RopeScaling::Default));
    let cases = [
        ("hidden_act", Value::from("gelu")),
        ("sliding_window", Value::from(8)),
        ("num_experts", Value::from(4)),
        ("head_dim", Value::Null),
        ("architectures", Value::from(vec!["LlamaForCausalLM"])),
    ];
    refused_by_key(&config, &cases);
    let mut other = published(1000.into());
    other["long_factor"] = serde_json::json!([1]);
    for (key, parameters) in [("alpha", published(Value::Null)), ("alpha", published(0.into())), ("long_factor", other)]
    {
        let mut config = config.clone();
        config.insert("rope_parameters".into(), parameters);
        let error = Arch::from_json(Path::new("config.json"), &config).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(&format!("`{key}`")), "{key}: {error}");
    }
}
