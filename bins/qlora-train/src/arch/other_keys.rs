//! Keys of config.json that a family does not read.

use serde_json::Value;

use super::Family;
use crate::error::Result;
use crate::files::json::Keys;

/// Words of `config_keys.txt` below the heading `heading`.
fn listed(heading: &str) -> impl Iterator<Item = &'static str> {
    let mut inside = false;
    let lines = include_str!("config_keys.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(move |line| {
        if !line.starts_with(' ') {
            inside = line == heading;
            return "".split_whitespace();
        }
        if inside { line.split_whitespace() } else { "".split_whitespace() }
    })
}

/// A value by which a key says that what it names is not there, or that it is as everywhere: null, false, nothing, 0 or
/// 1, full attention, silu; of one layer or of all.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64().is_some_and(|x| x == 0.0 || x == 1.0),
        Value::String(text) => ["", "none", "full_attention", "silu"].contains(&text.as_str()),
        Value::Array(all) => {
            all.iter().all(|one| one == 1 || (is_neutral(one) && !one.is_number() && !one.is_boolean()))
        }
        Value::Object(map) => map.is_empty(),
    }
}

/// A sentence that names keys that the family was not asked for and that say something; refuses those that would
/// change what a model computes where they are read. To be called when the family has read its own.
pub(super) fn check(keys: &Keys, family: &Family) -> Result<Option<String>> {
    let is_in = |heading: &str, key: &str| listed(heading).any(|name| name == key);
    // What is off by its value: all else, or what every family does.
    let says_nothing = |key: &str, value: &Value| match is_in("on", key) {
        true => value.is_null() || *value == true,
        false => is_neutral(value) || is_in("neutral", key),
    };
    let mut unknown = Vec::new();
    for (key, _) in keys.never_asked().filter(|(key, value)| !says_nothing(key, value)) {
        if is_in("arithmetic", key) || is_in("on", key) {
            let expected = format!(
                "no such key, or the value by which it does nothing: a model of type {:?} is computed without it; remove \
                 it if this model was trained without it",
                family.model_type
            );
            return Err(keys.wrong(key, &expected));
        }
        unknown.push(format!("`{key}`"));
    }
    let named = || {
        let (source, model_type, unknown) = (&keys.source, family.model_type, unknown.join(", "));
        format!("{source}: not used, as a model of type {model_type:?} has no key of that name: {unknown}")
    };
    Ok((!unknown.is_empty()).then(named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Arch, FAMILIES};
    use serde_json::{Map, json};
    use std::collections::BTreeSet;
    use std::path::Path;

    fn with(model_type: &str, key: &str, value: Value) -> Result<Arch> {
        let map = Map::from_iter([("model_type".to_owned(), model_type.into()), (key.to_owned(), value)]);
        Arch::from_json(Path::new("config.json"), &map)
    }

    /// The families of which a config.json with one key is one. Granite 4 without any is of experts.
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

    /// A switch that is off asks for less than every family does.
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

    /// What one family reads is not passed over by another.
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
}
