//! Models by name, of which only the shape is known here.

use super::{LlamaConfig, Rope, RopeScaling};
use crate::error::Result;
use crate::refuse;
use std::path::Path;

/// What `--shape` takes beside a config.json.
pub const NAMES: [&str; 2] = ["llama-3-8b", "llama-3-70b"];

/// The config of one of [`NAMES`], or of a config.json. Refused: neither.
pub fn shape(name: &str) -> Result<LlamaConfig> {
    let (hidden_size, intermediate_size, num_layers, num_heads) = match name {
        "llama-3-8b" => (4096, 14336, 32, 32),
        "llama-3-70b" => (8192, 28672, 80, 64),
        _ if Path::new(name).is_file() => return LlamaConfig::from_file(Path::new(name)),
        _ => refuse!("--shape: found {name:?}, expected {} or the path of a config.json", NAMES.join(", ")),
    };
    Ok(LlamaConfig {
        vocab_size: 128_256,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads: 8,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::Default },
        attention_bias: false,
        mlp_bias: false,
        tie_word_embeddings: false,
        // Of the context that is asked for, not of the model.
        max_position_embeddings: 1 << 20,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_models_have_their_published_sizes() {
        let parameters = |name: &str| shape(name).unwrap().num_parameters().unwrap();
        assert_eq!(parameters("llama-3-8b"), 8_030_261_248);
        assert_eq!(parameters("llama-3-70b"), 70_553_706_496);
        let error = shape("llama-9").unwrap_err().to_string();
        assert!(
            error.contains("\"llama-9\"") && error.contains("llama-3-70b") && error.contains("config.json"),
            "{error}"
        );
    }
}
