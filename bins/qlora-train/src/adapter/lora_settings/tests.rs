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
        (json!({"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\..*"}), [false, true, false, true]),
    ] {
        let found = value(&of(dir.path(), config.clone()), "lora_target_modules");
        let regex = fancy_regex::Regex::new(&format!(r"\A(?:{})\z", found.as_str().unwrap())).unwrap();
        let modules = [path(0, "q_proj"), path(1, "q_proj"), path(1, "k_proj"), path(1, "v_proj")];
        assert_eq!(modules.map(|module| regex.is_match(&module).unwrap()), expected, "{config}");
    }
}
