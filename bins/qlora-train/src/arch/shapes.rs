//! Models by name, of which only the shape is known here.

use super::Arch;
use crate::error::Result;
use crate::refuse;
use serde_json::json;
use std::path::Path;

/// What `--shape` takes beside a config.json.
pub const NAMES: [&str; 13] = [
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3-8b",
    "llama-3-70b",
    "mistral-7b",
    "mistral-7b-v0.1",
    "mistral-nemo-12b",
    "mistral-small-24b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
];

/// The config of one of [`NAMES`], or of a config.json. Refused: neither.
pub fn shape(name: &str) -> Result<Arch> {
    // llama3-8b, llama-3.1-8b and Llama-3.3-70B-Instruct have the shapes of the first Llama 3.
    let plain = name.to_ascii_lowercase().replace("llama3", "llama-3").replace("-instruct", "");
    let (hidden_size, intermediate_size, num_layers, num_heads, head_dim, tied) = match plain.as_str() {
        "llama-3.2-1b" => (2048, 8192, 16, 32, 64, true),
        "llama-3.2-3b" => (3072, 8192, 28, 24, 128, true),
        "llama-3-8b" | "llama-3.1-8b" => (4096, 14336, 32, 32, 128, false),
        "llama-3-70b" | "llama-3.1-70b" | "llama-3.3-70b" => (8192, 28672, 80, 64, 128, false),
        "mistral-7b" | "mistral-7b-v0.2" | "mistral-7b-v0.3" | "mistral-7b-v0.1" => (4096, 14336, 32, 32, 128, false),
        "mistral-nemo-12b" => (5120, 14336, 40, 32, 128, false),
        "mistral-small-24b" => (5120, 32768, 40, 32, 128, false),
        "qwen3-1.7b" => (2048, 6144, 28, 16, 128, true),
        "qwen3-4b" => (2560, 9728, 36, 32, 128, true),
        "qwen3-8b" => (4096, 12288, 36, 32, 128, false),
        "qwen3-14b" => (5120, 17408, 40, 40, 128, false),
        "qwen3-32b" => (5120, 25600, 64, 64, 128, false),
        _ if Path::new(name).is_file() => return Arch::from_file(Path::new(name)),
        _ if Path::new(name).join("config.json").is_file() => {
            return Arch::from_file(&Path::new(name).join("config.json"));
        }
        _ => refuse!(
            "--shape: found {name:?}, expected {}, a model's directory or the path of a config.json",
            NAMES.join(", ")
        ),
    };
    let (model_type, vocab_size, rope_theta, eps, bos, eos) = match plain.as_str() {
        name if name.starts_with("qwen3") => ("qwen3", 151_936, 1e6, 1e-6, 151_643, 151_645),
        "mistral-7b-v0.1" => ("mistral", 32_000, 1e4, 1e-5, 1, 2),
        "mistral-7b-v0.2" => ("mistral", 32_000, 1e6, 1e-5, 1, 2),
        "mistral-nemo-12b" => ("mistral", 131_072, 1e6, 1e-5, 1, 2),
        "mistral-small-24b" => ("mistral", 131_072, 1e8, 1e-5, 1, 2),
        name if name.starts_with("mistral-7b") => ("mistral", 32_768, 1e6, 1e-5, 1, 2),
        _ => ("llama", 128_256, 500_000.0, 1e-5, 128_000, 128_001),
    };
    let config = json!({
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "rope_theta": rope_theta,
        // Of the context that is asked for, not of the model.
        "max_position_embeddings": 1 << 20,
        // Of the families below only Mistral reads it.
        "sliding_window": if plain == "mistral-7b-v0.1" { Some(4096) } else { None },
        "bos_token_id": bos,
        "eos_token_id": eos,
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
        assert_eq!(parameters("mistral-7b"), 7_248_023_552);
        assert_eq!(parameters("Mistral-7B-Instruct-v0.1"), 7_241_732_096);
        assert_eq!(parameters("mistral-nemo-12b"), 12_247_782_400);
        assert_eq!(parameters("mistral-small-24b"), 23_572_403_200);
        assert_eq!(shape("mistral-7b-v0.1").unwrap().layer(31).window, Some(4096));
        assert_eq!(shape("mistral-7b").unwrap().layer(31).window, None);
        assert_eq!(parameters("qwen3-1.7b"), 1_720_574_976);
        assert_eq!(parameters("qwen3-4b"), 4_022_468_096);
        assert_eq!(parameters("qwen3-8b"), 8_190_735_360);
        assert_eq!(parameters("qwen3-14b"), 14_768_307_200);
        assert_eq!(parameters("Qwen3-32B"), 32_762_123_264);
        assert_eq!(parameters("Llama-3.3-70B-Instruct"), parameters("llama3-70b"));
        let error = shape("llama-9").unwrap_err().to_string();
        assert!(
            error.contains("\"llama-9\"") && error.contains("llama-3-70b") && error.contains("config.json"),
            "{error}"
        );
    }
}
