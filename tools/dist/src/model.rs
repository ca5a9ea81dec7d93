//! A tiny random Llama and rows of token ids, for a training of two steps.

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 128;
const VOCABULARY: usize = 96;
/// Rows of keys and values: half of the heads
const KEYS: usize = 32;

/// Names and shapes of the tensors of one layer.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let of_layer = [
        ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
        ("self_attn.k_proj", vec![KEYS, HIDDEN]),
        ("self_attn.v_proj", vec![KEYS, HIDDEN]),
        ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
        ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
        ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
        ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ("input_layernorm", vec![HIDDEN]),
        ("post_attention_layernorm", vec![HIDDEN]),
    ];
    let layer = of_layer.map(|(name, shape)| (format!("model.layers.0.{name}.weight"), shape));
    let others = [("model.embed_tokens", vec![VOCABULARY, HIDDEN]), ("model.norm", vec![HIDDEN])];
    let others = others.map(|(name, shape)| (format!("{name}.weight"), shape));
    layer.into_iter().chain(others).collect()
}

/// Writes `model/` and `rows.jsonl` into the folder.
pub fn write(folder: &Path) -> Result<()> {
    let model = folder.join("model");
    fs::create_dir_all(&model).with_context(|| format!("cannot make {}", model.display()))?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "tie_word_embeddings": true,
    });
    fs::write(model.join("config.json"), config.to_string())?;
    let mut state = 1u64;
    let mut random = || {
        // Knuth's constants of a linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut value = |name: &str| if name.contains("norm") { 1.0 } else { 0.1 * random() };
    let shapes = tensors();
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| (0..shape.iter().product()).flat_map(|_: usize| value(name).to_le_bytes()).collect())
        .collect();
    let views = shapes
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views: BTreeMap<&str, TensorView> = views.collect::<Result<_, safetensors::SafeTensorError>>()?;
    fs::write(model.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    let row = |row: usize| {
        let ids: Vec<usize> = (0..16).map(|at| (7 * row + 5 * at) % VOCABULARY).collect();
        json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
    };
    let rows: String = (0..8).map(row).collect();
    fs::write(folder.join("rows.jsonl"), rows).context("cannot write the rows")
}
