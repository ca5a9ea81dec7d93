//! Models by name, of which only the shape is known here.

use super::Arch;
use crate::bail_usage;
use crate::error::Result;
use serde_json::{Value, json};
use std::path::Path;

/// A model that `--shape` names.
struct Shape {
    name: &'static str,
    /// Names of models of this shape, and other spellings.
    also: &'static [&'static str],
    /// Hidden size, intermediate size, layers, heads, heads of keys and values, width of a head
    sizes: [usize; 6],
    vocab_size: usize,
    tied: bool,
    of: &'static Generation,
}

/// The keys of config.json that models of one generation share.
struct Generation {
    model_type: &'static str,
    eps: f64,
    theta: f64,
    bos: Option<u32>,
    eos: u32,
    /// More keys of config.json
    more: &'static str,
}

const LLAMA3: Generation =
    Generation { model_type: "llama", eps: 1e-5, theta: 500_000.0, bos: Some(128_000), eos: 128_001, more: "{}" };
/// From Mistral 7B v0.2 on.
const MISTRAL: Generation = Generation {
    model_type: "mistral",
    theta: 1e6,
    bos: Some(1),
    eos: 2,
    more: r#"{"sliding_window": null}"#,
    ..LLAMA3
};
const MISTRAL_V1: Generation = Generation { theta: 1e4, more: r#"{"sliding_window": 4096}"#, ..MISTRAL };
const MISTRAL_SMALL: Generation = Generation { theta: 1e8, ..MISTRAL };
const QWEN2_5: Generation =
    Generation { model_type: "qwen2", eps: 1e-6, theta: 1e6, bos: Some(151_643), eos: 151_645, more: "{}" };
const QWEN3: Generation = Generation { model_type: "qwen3", ..QWEN2_5 };
const SMOLLM3: Generation =
    Generation { model_type: "smollm3", eps: 1e-6, theta: 5e6, bos: Some(128_000), eos: 128_012, more: "{}" };
const GRANITE_2B: Generation = Generation {
    model_type: "granite",
    eps: 1e-5,
    theta: 1e7,
    bos: Some(0),
    eos: 0,
    more: r#"{"embedding_multiplier": 12.0, "attention_multiplier": 0.015625, "residual_multiplier": 0.22,
              "logits_scaling": 8.0}"#,
};
const GRANITE_8B: Generation = Generation {
    more: r#"{"embedding_multiplier": 12.0, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22,
              "logits_scaling": 16.0}"#,
    ..GRANITE_2B
};
const SEED_OSS: Generation =
    Generation { model_type: "seed_oss", eps: 1e-6, theta: 1e7, bos: Some(0), eos: 2, more: "{}" };
const OLMO2: Generation =
    Generation { model_type: "olmo2", eps: 1e-6, theta: 5e5, bos: None, eos: 100_257, more: "{}" };
const OLMO3: Generation = Generation { model_type: "olmo3", more: r#"{"sliding_window": 4096}"#, ..OLMO2 };
const PHI3: Generation = Generation {
    model_type: "phi3",
    eps: 1e-5,
    theta: 1e4,
    bos: Some(1),
    eos: 32_000,
    more: r#"{"sliding_window": null}"#,
};
const PHI3_4K: Generation = Generation { more: r#"{"sliding_window": 2047}"#, ..PHI3 };
const PHI4: Generation = Generation { theta: 250_000.0, bos: Some(100_257), eos: 100_257, ..PHI3 };
const PHI4_MINI: Generation = Generation {
    bos: Some(199_999),
    eos: 199_999,
    more: r#"{"sliding_window": 262144, "partial_rotary_factor": 0.75}"#,
    ..PHI3
};
const GEMMA2: Generation = Generation { model_type: "gemma2", eps: 1e-6, theta: 1e4, bos: Some(2), eos: 1, more: "{}" };
const GEMMA2_27B: Generation = Generation { more: r#"{"query_pre_attn_scalar": 144}"#, ..GEMMA2 };
/// Gemma 3 of 270M and 1B parameters, which read text only.
const GEMMA3: Generation = Generation {
    model_type: "gemma3_text",
    eps: 1e-6,
    theta: 1e6,
    bos: Some(2),
    eos: 1,
    more: r#"{"sliding_window": 512, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0,
              "sliding_window_pattern": 6}"#,
};
/// The text model of the larger ones.
const GEMMA3_LARGE: Generation = Generation {
    more: r#"{"sliding_window": 1024, "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0,
              "sliding_window_pattern": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}"#,
    ..GEMMA3
};
const GEMMA3_27B: Generation = Generation {
    more: r#"{"sliding_window": 1024, "query_pre_attn_scalar": 168, "rope_local_base_freq": 10000.0,
              "sliding_window_pattern": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}"#,
    ..GEMMA3
};

#[rustfmt::skip]
static SHAPES: &[Shape] = &[
    shape_of("llama-3.2-1b", &[], [2048, 8192, 16, 32, 8, 64], 128_256, true, &LLAMA3),
    shape_of("llama-3.2-3b", &[], [3072, 8192, 28, 24, 8, 128], 128_256, true, &LLAMA3),
    shape_of("llama-3-8b", &["llama-3.1-8b"], [4096, 14_336, 32, 32, 8, 128], 128_256, false, &LLAMA3),
    shape_of("llama-3-70b", &["llama-3.1-70b", "llama-3.3-70b"], [8192, 28_672, 80, 64, 8, 128], 128_256, false, &LLAMA3),
    shape_of("mistral-7b", &["mistral-7b-v0.3"], [4096, 14_336, 32, 32, 8, 128], 32_768, false, &MISTRAL),
    shape_of("mistral-7b-v0.1", &[], [4096, 14_336, 32, 32, 8, 128], 32_000, false, &MISTRAL_V1),
    shape_of("mistral-7b-v0.2", &[], [4096, 14_336, 32, 32, 8, 128], 32_000, false, &MISTRAL),
    shape_of("mistral-nemo-12b", &["mistral-nemo"], [5120, 14_336, 40, 32, 8, 128], 131_072, false, &MISTRAL),
    shape_of("mistral-small-24b", &[], [5120, 32_768, 40, 32, 8, 128], 131_072, false, &MISTRAL_SMALL),
    shape_of("qwen2.5-0.5b", &[], [896, 4864, 24, 14, 2, 64], 151_936, true, &QWEN2_5),
    shape_of("qwen2.5-1.5b", &[], [1536, 8960, 28, 12, 2, 128], 151_936, true, &QWEN2_5),
    shape_of("qwen2.5-3b", &[], [2048, 11_008, 36, 16, 2, 128], 151_936, true, &QWEN2_5),
    shape_of("qwen2.5-7b", &[], [3584, 18_944, 28, 28, 4, 128], 152_064, false, &QWEN2_5),
    shape_of("qwen2.5-14b", &[], [5120, 13_824, 48, 40, 8, 128], 152_064, false, &QWEN2_5),
    shape_of("qwen2.5-32b", &[], [5120, 27_648, 64, 40, 8, 128], 152_064, false, &QWEN2_5),
    shape_of("qwen2.5-72b", &[], [8192, 29_568, 80, 64, 8, 128], 152_064, false, &QWEN2_5),
    shape_of("qwen3-0.6b", &[], [1024, 3072, 28, 16, 8, 128], 151_936, true, &QWEN3),
    shape_of("qwen3-1.7b", &[], [2048, 6144, 28, 16, 8, 128], 151_936, true, &QWEN3),
    shape_of("qwen3-4b", &[], [2560, 9728, 36, 32, 8, 128], 151_936, true, &QWEN3),
    shape_of("qwen3-8b", &[], [4096, 12_288, 36, 32, 8, 128], 151_936, false, &QWEN3),
    shape_of("qwen3-14b", &[], [5120, 17_408, 40, 40, 8, 128], 151_936, false, &QWEN3),
    shape_of("qwen3-32b", &[], [5120, 25_600, 64, 64, 8, 128], 151_936, false, &QWEN3),
    shape_of("smollm3-3b", &[], [2048, 11_008, 36, 16, 4, 128], 128_256, true, &SMOLLM3),
    shape_of("granite-3.3-2b", &["granite-3-2b"], [2048, 8192, 40, 32, 8, 64], 49_159, true, &GRANITE_2B),
    shape_of("granite-3.3-8b", &["granite-3-8b"], [4096, 12_800, 40, 32, 8, 128], 49_159, true, &GRANITE_8B),
    shape_of("seed-oss-36b", &[], [5120, 27_648, 64, 80, 8, 128], 155_136, false, &SEED_OSS),
    shape_of("olmo-2-1b", &["olmo2-1b"], [2048, 8192, 16, 16, 16, 128], 100_352, false, &OLMO2),
    shape_of("olmo-2-7b", &["olmo2-7b"], [4096, 11_008, 32, 32, 32, 128], 100_352, false, &OLMO2),
    shape_of("olmo-2-13b", &["olmo2-13b"], [5120, 13_824, 40, 40, 40, 128], 100_352, false, &OLMO2),
    shape_of("olmo-2-32b", &["olmo2-32b"], [5120, 27_648, 64, 40, 8, 128], 100_352, false, &OLMO2),
    shape_of("olmo-3-7b", &["olmo3-7b"], [4096, 11_008, 32, 32, 32, 128], 100_278, false, &OLMO3),
    shape_of("olmo-3-32b", &["olmo3-32b"], [5120, 27_648, 64, 40, 8, 128], 100_278, false, &OLMO3),
    shape_of("phi-3-mini", &["phi-3-mini-4k"], [3072, 8192, 32, 32, 32, 96], 32_064, false, &PHI3_4K),
    shape_of("phi-3.5-mini", &["phi-3-mini-128k"], [3072, 8192, 32, 32, 32, 96], 32_064, false, &PHI3),
    shape_of("phi-3-medium", &[], [5120, 17_920, 40, 40, 10, 128], 32_064, false, &PHI3_4K),
    shape_of("phi-4", &[], [5120, 17_920, 40, 40, 10, 128], 100_352, false, &PHI4),
    shape_of("phi-4-mini", &[], [3072, 8192, 32, 24, 8, 128], 200_064, true, &PHI4_MINI),
    shape_of("gemma-2-2b", &["gemma2-2b"], [2304, 9216, 26, 8, 4, 256], 256_000, true, &GEMMA2),
    shape_of("gemma-2-9b", &["gemma2-9b"], [3584, 14_336, 42, 16, 8, 256], 256_000, true, &GEMMA2),
    shape_of("gemma-2-27b", &["gemma2-27b"], [4608, 36_864, 46, 32, 16, 128], 256_000, true, &GEMMA2_27B),
    shape_of("gemma-3-270m", &[], [640, 2048, 18, 4, 1, 256], 262_144, true, &GEMMA3),
    shape_of("gemma-3-1b", &[], [1152, 6912, 26, 4, 1, 256], 262_144, true, &GEMMA3),
    shape_of("gemma-3-4b", &[], [2560, 10_240, 34, 8, 4, 256], 262_208, true, &GEMMA3_LARGE),
    shape_of("gemma-3-12b", &[], [3840, 15_360, 48, 16, 8, 256], 262_208, true, &GEMMA3_LARGE),
    shape_of("gemma-3-27b", &[], [5376, 21_504, 62, 32, 16, 128], 262_208, true, &GEMMA3_27B),
];

const fn shape_of(
    name: &'static str,
    also: &'static [&'static str],
    sizes: [usize; 6],
    vocab_size: usize,
    tied: bool,
    of: &'static Generation,
) -> Shape {
    Shape { name, also, sizes, vocab_size, tied, of }
}

/// The names that `--shape` accepts beside the path of a config.json.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The config of one of [`names`], or of a config.json. Refused: neither.
pub fn shape(name: &str) -> Result<Arch> {
    // Llama-3.3-70B-Instruct, gemma-3-1b-it: a model that was trained on has the shape of its base.
    let lower = name.to_ascii_lowercase().replace("llama3", "llama-3").replace("-instruct", "");
    let plain = lower.strip_suffix("-it").unwrap_or(&lower);
    match SHAPES.iter().find(|shape| shape.name == plain || shape.also.contains(&plain)) {
        Some(shape) => shape.arch(),
        None if Path::new(name).is_file() => Arch::from_file(Path::new(name)),
        None if Path::new(name).join("config.json").is_file() => Arch::from_file(&Path::new(name).join("config.json")),
        None => bail_usage!(
            "--shape: found {name:?}, expected {}, a model's directory or the path of a config.json",
            names().collect::<Vec<_>>().join(", ")
        ),
    }
}

impl Shape {
    fn arch(&self) -> Result<Arch> {
        let [hidden, intermediate, layers, heads, kv_heads, head_dim] = self.sizes;
        let mut config = json!({
            "model_type": self.of.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": self.of.eps,
            "rope_theta": self.of.theta,
            // The context is the one that is asked for, not the model's.
            "max_position_embeddings": 1 << 20,
            "bos_token_id": self.of.bos,
            "eos_token_id": self.of.eos,
        });
        let map = config.as_object_mut().expect("json! of braces is an object");
        let more: Value = serde_json::from_str(self.of.more).expect("the table holds JSON");
        map.extend(more.as_object().expect("the table holds objects").clone());
        Arch::from_json(Path::new(self.name), map)
    }
}

#[cfg(test)]
mod tests;
