//! Models by name, of which only the shape is known here.

use super::Arch;
use crate::error::Result;
use crate::refuse;
use serde_json::json;
use std::path::Path;

/// What `--shape` takes beside a config.json.
pub const NAMES: [&str; 4] = ["llama-3.2-1b", "llama-3.2-3b", "llama-3-8b", "llama-3-70b"];

/// The config of one of [`NAMES`], or of a config.json. Refused: neither.
pub fn shape(name: &str) -> Result<Arch> {
    // llama3-8b, llama-3.1-8b and Llama-3.3-70B-Instruct have the shapes of the first Llama 3.
    let plain = name.to_ascii_lowercase().replace("llama3", "llama-3").replace("-instruct", "");
    let (hidden_size, intermediate_size, num_layers, num_heads, head_dim, tied) = match plain.as_str() {
        "llama-3.2-1b" => (2048, 8192, 16, 32, 64, true),
        "llama-3.2-3b" => (3072, 8192, 28, 24, 128, true),
        "llama-3-8b" | "llama-3.1-8b" => (4096, 14336, 32, 32, 128, false),
        "llama-3-70b" | "llama-3.1-70b" | "llama-3.3-70b" => (8192, 28672, 80, 64, 128, false),
        _ if Path::new(name).is_file() => return Arch::from_file(Path::new(name)),
        _ if Path::new(name).join("config.json").is_file() => {
            return Arch::from_file(&Path::new(name).join("config.json"));
        }
        _ => refuse!(
            "--shape: found {name:?}, expected {}, a model's directory or the path of a config.json",
            NAMES.join(", ")
        ),
    };
    let config = json!({
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        // Of the context that is asked for, not of the model.
        "max_position_embeddings": 1 << 20,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    });
    Arch::from_json(Path::new(name), config.as_object().expect("json! of braces is an object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_models_have_their_published_sizes() {
        let parameters = |name: &str| shape(name).unwrap().num_parameters().unwrap();
        assert_eq!(parameters("llama-3-8b"), 8_030_261_248);
        assert_eq!(parameters("llama-3-70b"), 70_553_706_496);
        assert_eq!(parameters("llama-3.2-1b"), 1_235_814_400);
        assert_eq!(parameters("llama-3.2-3b"), 3_212_749_824);
        assert_eq!(parameters("Llama-3.3-70B-Instruct"), parameters("llama3-70b"));
        let error = shape("llama-9").unwrap_err().to_string();
        assert!(
            error.contains("\"llama-9\"") && error.contains("llama-3-70b") && error.contains("config.json"),
            "{error}"
        );
    }
}
