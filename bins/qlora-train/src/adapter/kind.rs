//! Directories that hold an adapter of PEFT, and what stands in their place.

use crate::bail_usage;
use crate::error::Result;
use crate::files::json::read_bounded;
use crate::files::regular;
use serde_json::Value;
use std::path::Path;

pub const ADAPTER_MODEL: &str = "adapter_model.safetensors";
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Limit far above the size of any configuration.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Refuses a path that holds no adapter, with what it is instead.
pub fn check_adapter(dir: &Path) -> Result<()> {
    let shown = dir.display();
    if !dir.is_dir() {
        bail_usage!("{shown}: found no such directory, expected that of an adapter ({ADAPTER_CONFIG} and its tensors)");
    }
    if regular::is_there(&dir.join(ADAPTER_CONFIG))? {
        if ["fine_tune_type", "lora_parameters"].iter().any(|key| holds_key(&dir.join(ADAPTER_CONFIG), key)) {
            bail_usage!("{shown}: is an adapter of mlx-lm, expected one of PEFT: convert it first ({MLX})");
        }
        return Ok(());
    }
    if dir.join("config.json").is_file() {
        bail_usage!("{shown}: is a model, not an adapter: give it with --model");
    }
    bail_usage!("{}: found no such file, expected that of a PEFT adapter", dir.join(ADAPTER_CONFIG).display())
}

/// The difference between mlx-lm's tensors and PEFT's.
pub(super) const MLX: &str = "its tensors are named `….lora_a` and `….lora_b` and lie transposed: PEFT's are `base_model.model.….lora_A.weight`, \
     `[r, k_in]`, and `….lora_B.weight`, `[n_out, r]`";

/// True if a JSON file is an object with this key.
fn holds_key(file: &Path, key: &str) -> bool {
    let json = read_bounded(file, MAX_CONFIG_BYTES).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    json.is_some_and(|json| json.get(key).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_adapter_is_told_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let told = |path: &Path| check_adapter(path).unwrap_err().to_string();
        assert!(told(&dir.path().join("nope")).contains("nope: found no such directory"));
        assert!(told(dir.path()).contains("adapter_config.json: found no such file"));
        let config = dir.path().join(ADAPTER_CONFIG);
        std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
        assert!(told(dir.path()).contains("adapter_config.json: found a device, expected a file"));
        std::fs::remove_file(&config).unwrap();
        std::fs::create_dir(&config).unwrap();
        assert!(told(dir.path()).contains("adapter_config.json: found a directory, expected a file"));
        std::fs::remove_dir(&config).unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(told(dir.path()).contains("is a model, not an adapter"));
        std::fs::write(dir.path().join(ADAPTER_CONFIG), r#"{"fine_tune_type": "lora", "num_layers": 4}"#).unwrap();
        assert!(told(dir.path()).contains("adapter of mlx-lm"));
        std::fs::write(dir.path().join(ADAPTER_CONFIG), "{}").unwrap();
        check_adapter(dir.path()).unwrap();
    }
}
