//! Settings by which a run has terms such as those of an adapter.

use super::config::{AdapterConfig, TargetModules};
use super::kind::{ADAPTER_CONFIG, check_adapter};
use super::locate::recorded;
use crate::files::json::read_object;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Settings, by their names, that make terms such as those of an adapter. None: there is no adapter that can be read,
/// which is told by whoever needs its weights.
///
/// They are those of its run, where that left a record and its terms are written as they were trained, else those of
/// adapter_config.json, into which rsLoRA is folded.
pub fn lora_settings(adapter: &Path) -> Option<Vec<(&'static str, Value)>> {
    check_adapter(adapter).ok()?;
    let path = adapter.join(ADAPTER_CONFIG);
    let config = AdapterConfig::read(&path, &read_object(&path).ok()?).ok()?;
    let mut settings = vec![
        ("lora_r", json!(config.r)),
        ("lora_alpha", json!(config.lora_alpha)),
        ("use_rslora", json!(config.use_rslora)),
        ("use_dora", json!(config.use_dora)),
        ("lora_target_modules", targets(&config)),
        ("layers_to_transform", json!(config.layers_to_transform.clone().unwrap_or_default())),
        ("rank_pattern", json!(config.rank_pattern)),
        ("alpha_pattern", json!(config.alpha_pattern)),
        ("modules_to_save", json!(config.modules_to_save)),
        ("trainable_token_indices", json!(config.trainable_token_indices)),
    ];
    // Magnitudes are not computed with it.
    if !config.use_dora {
        settings.push(("lora_dropout", json!(config.lora_dropout)));
    }
    let run = recorded(adapter, "/settings").filter(|run| {
        let begins_with_weights = run["init_lora_weights"].as_str().is_some_and(|init| init != "true");
        !begins_with_weights && run["use_adalora"] != true
    });
    for (name, value) in &mut settings {
        if let Some(of_run) = run.as_ref().and_then(|run| run.get(*name)) {
            *value = of_run.clone();
        }
    }
    Some(settings)
}

/// The modules of an adapter: their names, or a regular expression for whole paths.
fn targets(config: &AdapterConfig) -> Value {
    let excluded = config.exclude_modules.as_ref().map(expression);
    match (&config.target_modules, excluded) {
        (TargetModules::Names(names), None) if !names.iter().any(|name| name.contains('.')) => json!(names),
        (TargetModules::Pattern(pattern), None) => json!(pattern),
        (targets, excluded) => {
            let but = excluded.map_or(String::new(), |excluded| format!("(?!{excluded}$)"));
            json!(format!("{but}{}", expression(targets)))
        }
    }
}

/// A regular expression for the whole paths of these modules. PEFT finds names by the ends of paths.
fn expression(modules: &TargetModules) -> String {
    let any = |names: &BTreeSet<String>| names.iter().map(|name| regex::escape(name)).collect::<Vec<_>>().join("|");
    match modules {
        TargetModules::Names(names) => format!(r"(?:.*\.)?(?:{})", any(names)),
        TargetModules::Pattern(pattern) if pattern == "all-linear" => r".*\.layers\..*".to_owned(),
        TargetModules::Pattern(pattern) => format!("(?:{pattern})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dir: &Path, config: Value) -> Vec<(&'static str, Value)> {
        let mut whole = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        std::fs::write(dir.join(ADAPTER_CONFIG), whole.to_string()).unwrap();
        lora_settings(dir).unwrap()
    }

    fn value(settings: &[(&'static str, Value)], name: &str) -> Value {
        settings.iter().find(|(other, _)| *other == name).map_or(Value::Null, |(_, value)| value.clone())
    }

    #[test]
    fn settings_are_those_of_the_run_or_of_the_config() {
        let dir = tempfile::tempdir().unwrap();
        assert!(lora_settings(dir.path()).is_none());
        let found = of(dir.path(), json!({"use_rslora": true, "lora_dropout": 0.25, "rank_pattern": {"q_proj": 4}}));
        for (name, expected) in [
            ("lora_r", json!(8)),
            ("lora_alpha", json!(16.0)),
            ("use_rslora", json!(true)),
            ("use_dora", json!(false)),
            ("lora_target_modules", json!(["q_proj"])),
            ("layers_to_transform", json!([])),
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({})),
            ("lora_dropout", json!(0.25)),
        ] {
            assert_eq!(value(&found, name), expected, "{name}");
        }
        assert_eq!(value(&of(dir.path(), json!({"use_dora": true})), "lora_dropout"), Value::Null);
        for (init, scale) in [("true", [json!(3), json!(true)]), ("pissa", [json!(16.0), json!(false)])] {
            let run = json!({"settings": {"use_rslora": true, "lora_alpha": 3, "init_lora_weights": init}});
            std::fs::write(dir.path().join("run.json"), run.to_string()).unwrap();
            let found = of(dir.path(), json!({}));
            assert_eq!(["lora_alpha", "use_rslora"].map(|name| value(&found, name)), scale);
        }
    }

    #[test]
    fn targets_are_names_or_an_expression_for_whole_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = |layer: usize, name: &str| format!("model.layers.{layer}.self_attn.{name}");
        for (config, expected) in [
            (json!({"target_modules": ["model.layers.1.self_attn.q_proj", "k_proj"]}), [false, true, true, false]),
            (json!({"target_modules": "all-linear", "exclude_modules": ["v_proj"]}), [true, true, true, false]),
            (
                json!({"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"}),
                [false, true, false, true],
            ),
        ] {
            let found = value(&of(dir.path(), config.clone()), "lora_target_modules");
            let regex = fancy_regex::Regex::new(&format!(r"\A(?:{})\z", found.as_str().unwrap())).unwrap();
            let modules = [path(0, "q_proj"), path(1, "q_proj"), path(1, "k_proj"), path(1, "v_proj")];
            assert_eq!(modules.map(|module| regex.is_match(&module).unwrap()), expected, "{config}");
        }
    }
}
