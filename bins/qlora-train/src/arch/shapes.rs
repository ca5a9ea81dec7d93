//! Models by name, of which only the shape is known here.

use super::Arch;
use crate::error::Result;
use crate::refuse;
use serde_json::json;
use std::path::Path;

/// What `--shape` takes beside a config.json.
pub const NAMES: [&str; 17] = [
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
    "smollm3-3b",
    "granite-3.3-2b",
    "granite-3.3-8b",
    "seed-oss-36b",
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
        "smollm3-3b" => (2048, 11_008, 36, 16, 128, true),
        "granite-3.3-2b" => (2048, 8192, 40, 32, 64, true),
        "granite-3.3-8b" => (4096, 12_800, 40, 32, 128, true),
        "seed-oss-36b" => (5120, 27_648, 64, 80, 128, false),
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
        name if name.starts_with("smollm3") => ("smollm3", 128_256, 5e6, 1e-6, 128_000, 128_012),
        name if name.starts_with("granite") => ("granite", 49_159, 1e7, 1e-5, 0, 0),
        name if name.starts_with("seed") => ("seed_oss", 155_136, 1e7, 1e-6, 0, 2),
        "mistral-7b-v0.1" => ("mistral", 32_000, 1e4, 1e-5, 1, 2),
        "mistral-7b-v0.2" => ("mistral", 32_000, 1e6, 1e-5, 1, 2),
        "mistral-nemo-12b" => ("mistral", 131_072, 1e6, 1e-5, 1, 2),
        "mistral-small-24b" => ("mistral", 131_072, 1e8, 1e-5, 1, 2),
        name if name.starts_with("mistral-7b") => ("mistral", 32_768, 1e6, 1e-5, 1, 2),
        _ => ("llama", 128_256, 500_000.0, 1e-5, 128_000, 128_001),
    };
    let mut config = json!({
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": if model_type == "smollm3" { 4 } else { 8 },
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
        "rms_norm_eps": eps,
        "rope_theta": rope_theta,
        // The context is the one that is asked for, not the model's.
        "max_position_embeddings": 1 << 20,
        // Mistral alone of the families below reads it.
        "sliding_window": if plain == "mistral-7b-v0.1" { Some(4096) } else { None },
        "bos_token_id": bos,
        "eos_token_id": eos,
    });
    if model_type == "granite" {
        config["embedding_multiplier"] = 12.0.into();
        config["attention_multiplier"] = (1.0 / f64::from(head_dim)).into();
        config["residual_multiplier"] = 0.22.into();
        config["logits_scaling"] = (f64::from(hidden_size) / 256.0).into();
    }
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
        assert_eq!(parameters("smollm3-3b"), 3_075_098_624);
        assert_eq!(parameters("granite-3.3-2b"), 2_533_539_840);
        assert_eq!(parameters("granite-3.3-8b-instruct"), 8_170_864_640);
        assert_eq!(parameters("Seed-OSS-36B-Instruct"), 36_151_104_512);
        assert_eq!(parameters("Llama-3.3-70B-Instruct"), parameters("llama3-70b"));
        let error = shape("llama-9").unwrap_err().to_string();
        assert!(
            error.contains("\"llama-9\"") && error.contains("llama-3-70b") && error.contains("config.json"),
            "{error}"
        );
    }
}
