use super::*;
use crate::arch::{Arch, FAMILIES};
use serde_json::{Map, json};
use std::collections::BTreeSet;
use std::path::Path;

fn with(model_type: &str, key: &str, value: Value) -> Result<Arch> {
    let map = Map::from_iter([("model_type".to_owned(), model_type.into()), (key.to_owned(), value)]);
    Arch::from_json(Path::new("config.json"), &map)
}

/// The families that accept a config.json with only one key. Granite 4 without any keys is a mixture of experts.
fn of_any_key() -> impl Iterator<Item = &'static Family> {
    FAMILIES.into_iter().filter(|family| family.model_type != "granitemoehybrid")
}

#[test]
fn no_key_is_listed_twice() {
    let all: Vec<&str> = listed("neutral").chain(listed("arithmetic")).chain(listed("on")).collect();
    assert!(listed("neutral").count() > 80 && listed("arithmetic").count() > 40);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn arithmetic_that_a_family_does_not_have_is_refused_by_its_key() {
    for family in of_any_key() {
        let has_norms = family.model_type.starts_with("hunyuan");
        let keys = ["qk_layernorm", "use_qk_norm", "parallel_attn", "alibi", "rope_interleaved"];
        for key in keys.into_iter().filter(|key| !has_norms || *key != "use_qk_norm") {
            let error = with(family.model_type, key, true.into()).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(key), "{}: {error}", family.model_type);
            with(family.model_type, key, false.into()).unwrap();
        }
        let has_caps = family.model_type.starts_with("gemma");
        let keys = ["clip_qkv", "attn_logit_softcapping", "num_local_experts", "scale_emb", "logit_scale"];
        for key in keys.into_iter().filter(|key| !has_caps || *key != "attn_logit_softcapping") {
            let error = with(family.model_type, key, json!(8)).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(key), "{}: {error}", family.model_type);
            for neutral in [json!(null), json!(1)] {
                with(family.model_type, key, neutral).unwrap();
            }
        }
    }
}

/// Refuses a switch that turns off something that every family does.
#[test]
fn what_every_family_does_cannot_be_turned_off() {
    for family in of_any_key() {
        for key in listed("on") {
            let error = with(family.model_type, key, false.into()).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(key), "{}: {error}", family.model_type);
            for neutral in [json!(null), json!(true)] {
                with(family.model_type, key, neutral).unwrap();
            }
        }
    }
}

/// A key that one family reads is not silently ignored by another.
#[test]
fn keys_of_another_family_are_refused() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "smollm3", "seed_oss"] {
        let error = with(family, "residual_multiplier", json!(0.2)).unwrap_err();
        assert!(error.to_string().contains("residual_multiplier"), "{family}: {error}");
    }
    for family in ["llama", "granite", "qwen2"] {
        let error = with(family, "no_rope_layers", json!([0, 1])).unwrap_err();
        assert!(error.to_string().contains("no_rope_layers"), "{family}: {error}");
        with(family, "no_rope_layers", json!([1, 1])).unwrap();
    }
    with("granite", "residual_multiplier", json!(0.2)).unwrap();
    with("granite", "layer_types", json!(["full_attention", "full_attention"])).unwrap();
    with("smollm3", "sliding_window", json!(4096)).unwrap();
}
