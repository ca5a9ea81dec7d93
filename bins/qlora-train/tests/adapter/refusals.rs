//! Adapters that are not what they say, or that are something that is not supported.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use qlora_train::adapter::{ADAPTER_CONFIG, ADAPTER_MODEL, Adapter, TargetModules};
use qlora_train::arch::Projection;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::adapter;
use trainer_lab::assert_refused::assert_refused;

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

/// A regular expression whose repetitions stand inside of one another.
const COSTLY: &str = r"(?:(?:(?!x)[a-z_.0-9])+)+y";

fn saved() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    adapter(4, 8.0, &[Projection::Q, Projection::Down], 1).save(dir.path()).unwrap();
    dir
}

fn change_config(dir: &Path, changes: &Value) {
    let path = dir.join(ADAPTER_CONFIG);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fs::write(path, config.to_string()).unwrap();
}

/// Writes the tensors as they are, without the checks of `save`.
fn write_tensors(dir: &Path, adapter: &Adapter) {
    let views = adapter.tensors.iter().map(|(name, (shape, values))| {
        let bytes = bytemuck::cast_slice(values);
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join(ADAPTER_MODEL), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn files_that_are_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(Adapter::load(dir.path()), &[ADAPTER_CONFIG, "no such file"]);
    fs::copy(saved().path().join(ADAPTER_CONFIG), dir.path().join(ADAPTER_CONFIG)).unwrap();
    assert_refused(Adapter::load(dir.path()), &[ADAPTER_MODEL, "no such file"]);
    fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    assert_refused(Adapter::load(dir.path()), &[ADAPTER_MODEL, "pickle"]);
    let bytes = fs::read(saved().path().join(ADAPTER_MODEL)).unwrap();
    fs::write(dir.path().join(ADAPTER_MODEL), &bytes[..bytes.len() - 1]).unwrap();
    assert_refused(Adapter::load(dir.path()), &[ADAPTER_MODEL, "truncated"]);
    fs::write(dir.path().join(ADAPTER_CONFIG), "[]").unwrap();
    assert_refused(Adapter::load(dir.path()), &[ADAPTER_CONFIG, "JSON object"]);
}

#[test]
fn configs_of_something_else_are_refused_by_key() {
    let cases: Vec<(Value, &[&str])> = vec![
        (json!({ "peft_type": "IA3" }), &["`peft_type`", "\"IA3\"", "\"LORA\"", "learned factors"]),
        (json!({ "peft_type": "PREFIX_TUNING" }), &["`peft_type`", "prefix tuning"]),
        (json!({ "peft_type": "ADALORA" }), &["`peft_type`", "AdaLoRA"]),
        (json!({ "peft_type": "TOMORROW" }), &["`peft_type`", "\"TOMORROW\"", "\"LORA\""]),
        (json!({ "task_type": "SEQ_CLS" }), &["`task_type`", "\"SEQ_CLS\""]),
        (json!({ "bias": "all" }), &["`bias`", "\"all\"", "\"none\""]),
        (json!({ "use_dora": true }), &["use_dora", "lora_magnitude_vector"]),
        (json!({ "use_qalora": true }), &["`use_qalora`", "QALoRA is not supported", "merge_and_unload"]),
        (json!({ "modules_to_save": ["lm_head"] }), &["`modules_to_save`", "lm_head"]),
        (json!({ "fan_in_fan_out": true }), &["`fan_in_fan_out`"]),
        (json!({ "lora_bias": true }), &["`lora_bias`"]),
        (json!({ "target_parameters": ["x"] }), &["`target_parameters`"]),
        (json!({ "alora_invocation_tokens": [1] }), &["`alora_invocation_tokens`"]),
        (json!({ "init_lora_weights": "pissa" }), &["`init_lora_weights`", "pissa"]),
        (json!({ "layers_pattern": "blocks" }), &["`layers_pattern`", "blocks"]),
        (json!({ "layers_to_transform": "x" }), &["`layers_to_transform`"]),
        (json!({ "layers_to_transform": [0] }), &["layers.1.", "layers_to_transform"]),
        (json!({ "r": 0 }), &["`r`", "found 0"]),
        (json!({ "r": null }), &["`r`"]),
        (json!({ "r": 8 }), &[ADAPTER_MODEL, "down_proj.lora_A", "rank 4", "expected 8"]),
        (json!({ "lora_alpha": "x" }), &["`lora_alpha`"]),
        (json!({ "lora_alpha": 1e300 }), &["lora_alpha", "inf"]),
        (json!({ "lora_dropout": 1.0 }), &["lora_dropout", "found 1"]),
        (json!({ "target_modules": ["q_proj"] }), &["down_proj", "target_modules"]),
        (json!({ "target_modules": ["proj"] }), &["target_modules"]),
        (json!({ "target_modules": [] }), &["`target_modules`"]),
        (json!({ "target_modules": [1] }), &["`target_modules`"]),
        (json!({ "rank_pattern": { "q_proj": 2 } }), &["q_proj.lora_A", "rank 4", "expected 2"]),
        (json!({ "rank_pattern": { "q_proj": 0 } }), &["`rank_pattern`", "`q_proj`"]),
        (json!({ "rank_pattern": { "[q": 4 } }), &["`rank_pattern`", "[q", "regular expression"]),
        (json!({ "rank_pattern": { COSTLY: 4 } }), &["`rank_pattern`", COSTLY, "takes too many steps"]),
        (json!({ "exclude_modules": COSTLY }), &["`exclude_modules`", COSTLY, "takes too many steps"]),
        (json!({ "rank_pattern": { ".*_proj": 2 } }), &["proj.lora_A", "rank 4", "expected 2"]),
    ];
    for (change, words) in cases {
        let dir = saved();
        change_config(dir.path(), &change);
        assert_refused(Adapter::load(dir.path()), words);
    }
}

#[test]
fn what_peft_also_accepts_is_accepted() {
    // The keys that PEFT 0.21 writes beside ours, with their defaults; one key of a later release; a regular
    // expression.
    let changes = json!({
        "alora_invocation_tokens": null, "arrow_config": null, "auto_mapping": null, "corda_config": null,
        "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "kasa_config": null,
        "layer_replication": null, "loftq_config": {}, "lora_bias": false, "lora_ga_config": null,
        "megatron_config": null, "megatron_core": "megatron.core", "monteclora_config": null, "peft_version": "0.99",
        "qalora_group_size": 16, "target_parameters": null, "trainable_token_indices": null, "use_bdlora": null,
        "use_qalora": false, "velora_config": null, "a_key_of_tomorrow": 3, "init_lora_weights": "gaussian",
        "task_type": null, "revision": null, "base_model_name_or_path": null, "layers_pattern": []
    });
    let dir = saved();
    change_config(dir.path(), &changes);
    let loaded = Adapter::load(dir.path()).unwrap();
    assert_eq!(loaded.lora_pairs().unwrap().len(), 4);
    assert_eq!(loaded.config.base_model_name_or_path, None);
    for pattern in ["all-linear", "model\\..*proj"] {
        change_config(dir.path(), &json!({ "target_modules": pattern }));
        assert_eq!(Adapter::load(dir.path()).unwrap().config.target_modules, TargetModules::Pattern(pattern.into()));
    }
    change_config(dir.path(), &json!({ "target_modules": ["self_attn.q_proj", "model.layers.0.mlp.down_proj"] }));
    assert_refused(Adapter::load(dir.path()), &["layers.1.mlp.down_proj"]);
    let pattern = json!({ "mlp.down_proj": 2, "^q_proj": 64 });
    change_config(dir.path(), &json!({ "target_modules": "all-linear", "alpha_pattern": pattern }));
    let scales: Vec<f32> =
        Adapter::load(dir.path()).unwrap().lora_pairs().unwrap().values().map(|pair| pair.scale).collect();
    assert_eq!(scales, [0.5, 2.0, 0.5, 2.0], "\"^q_proj\" matches no whole path");
    // Regular expressions, of which the first that matches counts, in the order of the file.
    for (text, expected) in [
        (r#"{"[qk]_proj": 4, ".*": 16}"#, [4.0, 1.0, 4.0, 1.0]),
        (r#"{".*": 16, "[qk]_proj": 4}"#, [4.0; 4]),
        (r#"{"self_attn.q_proj": 4, "q_proj": 16}"#, [2.0, 1.0, 2.0, 1.0]),
        (r#"{"layers\\.1\\..*": 4}"#, [2.0, 2.0, 1.0, 1.0]),
        (r#"{"^model\\.layers\\.0\\.(mlp|x)\\..*": 4}"#, [1.0, 2.0, 2.0, 2.0]),
    ] {
        change_config(dir.path(), &json!({ "alpha_pattern": serde_json::from_str::<Value>(text).unwrap() }));
        let loaded = Adapter::load(dir.path()).unwrap();
        let scales: Vec<f32> = loaded.lora_pairs().unwrap().values().map(|pair| pair.scale).collect();
        assert_eq!(scales, expected, "{text}");
    }
}

/// Excluded modules carry no adapter, by name or by a regular expression for the whole path, as PEFT reads it.
#[test]
fn modules_that_are_excluded_carry_no_adapter() {
    let dir = saved();
    change_config(dir.path(), &json!({ "target_modules": ["q_proj", "down_proj"] }));
    let load = |exclude: Value| {
        change_config(dir.path(), &json!({ "exclude_modules": exclude }));
        Adapter::load(dir.path())
    };
    for none in [json!(null), json!([]), json!(["proj"]), json!("q_proj"), json!("layers.0.*")] {
        assert_eq!(load(none.clone()).unwrap().lora_pairs().unwrap().len(), 4, "{none}");
    }
    for excluded in [json!(["q_proj"]), json!(["layers.0.self_attn.q_proj"]), json!(r".*\.0\.self_attn\..*")] {
        assert_refused(load(excluded), &["layers.0.self_attn.q_proj", "`exclude_modules`"]);
    }
    assert_refused(load(json!(7)), &["`exclude_modules`", "regular expression"]);
    // Modules without tensors have none missing.
    let mut adapter = load(json!(null)).unwrap();
    adapter.tensors.retain(|name, _| !name.contains("layers.0.self_attn"));
    write_tensors(dir.path(), &adapter);
    assert_eq!(load(json!(["layers.0.self_attn.q_proj"])).unwrap().lora_pairs().unwrap().len(), 3);
}

#[test]
fn tensors_of_mlx_are_told() {
    let dir = saved();
    let mut adapter = Adapter::load(dir.path()).unwrap();
    let one = adapter.tensors.pop_first().unwrap().1;
    adapter.tensors = [("model.layers.0.self_attn.q_proj.lora_a".to_owned(), one)].into();
    write_tensors(dir.path(), &adapter);
    assert_refused(Adapter::load(dir.path()), &["q_proj.lora_a", "mlx-lm", "transposed"]);
}

#[test]
fn tensors_that_are_unknown_unpaired_or_of_the_wrong_shape() {
    let one = |shape: &[usize]| (shape.to_vec(), vec![0.5f32; shape.iter().product()]);
    let unknown = [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.lm_head.lora_A.weight", "lm_head"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.norm.weight", "not LoRA"),
        ("base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight", "expected both"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "expected both"),
        ("base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight", "another module"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_E", "AdaLoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.ia3_l", "IA3"),
        ("prompt_embeddings", "soft prompt"),
        ("base_model.model.model.layers.0.self_attn.q_proj.hada_w1_a", "LoHa"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "single tokens"),
    ];
    let dir = saved();
    let good = Adapter::load(dir.path()).unwrap();
    let refused = |change: &dyn Fn(&mut Adapter), words: &[&str]| {
        let mut bad = good.clone();
        change(&mut bad);
        assert_refused(bad.lora_pairs(), words);
        write_tensors(dir.path(), &bad);
        assert_refused(Adapter::load(dir.path()), &[&[ADAPTER_MODEL], words].concat());
    };
    for (key, word) in unknown {
        refused(&|bad| drop(bad.tensors.insert(key.into(), one(&[4, 64]))), &[key, word]);
    }
    refused(&|bad| drop(bad.tensors.remove(B)), &[A, B, "expected both"]);
    refused(&|bad| drop(bad.tensors.remove(A)), &[A, B, "expected both"]);
    refused(&|bad| drop(bad.tensors.insert(B.into(), one(&[64, 3]))), &[B, "[64, 3]", "[n_out, 4]"]);
    refused(&|bad| drop(bad.tensors.insert(A.into(), one(&[256]))), &[A, "[256]", "two dimensions"]);
    refused(&|bad| drop(bad.tensors.insert(A.into(), one(&[4, 0]))), &[A, "0 values"]);
    refused(&|bad| bad.tensors.get_mut(A).unwrap().1[70] = f32::INFINITY, &[A, "inf at row 1, column 6"]);
    refused(&|bad| bad.tensors.clear(), &["found no tensors"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_at_random_places_never_panics(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), in_config: bool,
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let dir = saved();
        let path = dir.path().join(if in_config { ADAPTER_CONFIG } else { ADAPTER_MODEL });
        let mut bytes = fs::read(&path).unwrap();
        let limit = if in_config { bytes.len() } else { 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize };
        places.iter().for_each(|(at, byte)| bytes[at.index(limit)] = *byte);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(limit));
        }
        fs::write(path, bytes).unwrap();
        match Adapter::load(dir.path()) {
            Ok(adapter) => prop_assert!(!adapter.lora_pairs().unwrap().is_empty()),
            Err(error) => prop_assert!(error.is_usage(), "{}", error),
        }
    }
}
