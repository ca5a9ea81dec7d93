//! Adapter directories that stand where a model is expected.

use super::ADAPTER_CONFIG;
use crate::error::Result;
use crate::files::json::read_bounded;
use crate::refuse;
use serde_json::Value;
use std::path::Path;

/// The record of a run, or an adapter's configuration.
const MAX_RECORD_BYTES: u64 = 256 << 20;

/// Whether a directory holds an adapter and no model.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(ADAPTER_CONFIG).is_file() && !dir.join("config.json").is_file()
}

/// The base that an adapter was trained on: as its run was told, else as adapter_config.json names it.
pub fn recorded_base(adapter: &Path) -> Result<String> {
    let read = |name: &str, pointer: &str| {
        let bytes = read_bounded(&adapter.join(name), MAX_RECORD_BYTES).ok()?;
        let json: Value = serde_json::from_slice(&bytes).ok()?;
        json.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
    };
    let of_run = read("run.json", "/settings/model").filter(|model| Path::new(model).exists() || model.contains('/'));
    match of_run.or_else(|| read(ADAPTER_CONFIG, "/base_model_name_or_path")) {
        Some(base) => Ok(base),
        None => {
            refuse!("{}: found no record of the base that it was trained on; give it with --model", adapter.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_that_of_the_run_then_that_of_the_config() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_adapter(dir.path()));
        std::fs::write(dir.path().join(ADAPTER_CONFIG), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
        assert!(is_adapter(dir.path()));
        assert_eq!(recorded_base(dir.path()).unwrap(), "org/base");
        // A path that is gone says nothing.
        for (model, expected) in [("gone", "org/base"), ("org/other", "org/other")] {
            let run = serde_json::json!({"settings": {"model": model}}).to_string();
            std::fs::write(dir.path().join("run.json"), run).unwrap();
            assert_eq!(recorded_base(dir.path()).unwrap(), expected);
        }
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(!is_adapter(dir.path()), "a model with an adapter's file beside it");
    }
}
