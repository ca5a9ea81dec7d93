use super::*;

#[test]
fn the_base_is_that_of_the_run_then_that_of_the_config() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!is_adapter(dir.path()));
    std::fs::write(dir.path().join(ADAPTER_CONFIG), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
    assert!(is_adapter(dir.path()));
    assert_eq!(recorded_base(dir.path(), None).unwrap(), "org/base");
    let at_commit = r#"{"base_model_name_or_path": "org/base", "revision": "0e9e39f"}"#;
    std::fs::write(dir.path().join(ADAPTER_CONFIG), at_commit).unwrap();
    assert_eq!(recorded_base(dir.path(), None).unwrap(), "org/base@0e9e39f");
    assert_eq!(recorded_base(dir.path(), Some("v2")).unwrap(), "org/base");
    std::fs::write(dir.path().join(ADAPTER_CONFIG), r#"{"base_model_name_or_path": "/gone/base"}"#).unwrap();
    let error = recorded_base(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("records the base \"/gone/base\"") && error.contains("--model"), "{error}");
    std::fs::write(dir.path().join(ADAPTER_CONFIG), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
    // A path that is gone says nothing.
    for (model, expected) in [("gone", "org/base"), ("src/gone", "org/base"), ("org/other", "org/other")] {
        let run = serde_json::json!({"settings": {"model": model}}).to_string();
        std::fs::write(dir.path().join("run.json"), run).unwrap();
        assert_eq!(recorded_base(dir.path(), None).unwrap(), expected);
    }
    // A checkpoint of the run, and a directory beside it that is none.
    for (name, recorded) in [("checkpoint-3", Some("org/other")), ("other", None)] {
        assert_eq!(recorded_setting(&dir.path().join(name), "model").as_deref(), recorded);
    }
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert!(!is_adapter(dir.path()), "a model with an adapter's file beside it");
}
