//! Turns a GGUF file of architecture `llama` into a Hugging Face directory: config.json, generation_config.json,
//! model.safetensors (bf16), and the tokenizer's files.

use super::ensure;
use super::ggml::{to_bf16_bytes, undo_interleaved_rows};
use super::read::{Gguf, Tensor, shown};
use super::tokenizer;
use crate::bail_usage;
use crate::error::{Context, Error, Result};
use safetensors::Dtype;
use safetensors::tensor::View;
use serde_json::json;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The shapes of a Llama as its GGUF metadata gives them.
#[derive(Clone, Debug)]
struct Shape {
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

impl Shape {
    fn from_metadata(gguf: &Gguf) -> Result<Self> {
        let size = |key: &str| -> Result<usize> {
            let value = gguf.integer(key)?;
            // The bound keeps every product of two sizes far from overflow.
            ensure!((1..1 << 28).contains(&value), "{key} is {value} (expected 1 to 2^28)");
            Ok(value as usize)
        };
        let shape = Self {
            layers: size("llama.block_count")?,
            hidden: size("llama.embedding_length")?,
            intermediate: size("llama.feed_forward_length")?,
            heads: size("llama.attention.head_count")?,
            kv_heads: size("llama.attention.head_count_kv")?,
            head_dim: size("llama.rope.dimension_count")?,
            vocab: size("llama.vocab_size")?,
        };
        ensure!(shape.layers <= 1000, "llama.block_count is {} (expected at most 1000)", shape.layers);
        ensure!(shape.heads.is_multiple_of(shape.kv_heads), "{} heads over {} kv heads", shape.heads, shape.kv_heads);
        ensure!(shape.head_dim.is_multiple_of(2), "llama.rope.dimension_count is {} (expected even)", shape.head_dim);
        Ok(shape)
    }
}

/// Order of a stored tensor's rows.
#[derive(Clone, Copy, Debug)]
enum Rows {
    AsTheyAre,
    InterleavedRope { heads: usize },
}

/// Every tensor that the model must have: (GGUF name, Hugging Face name, shape, order of rows).
fn expected_tensors(shape: &Shape, tied: bool) -> Vec<(String, String, Vec<usize>, Rows)> {
    let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *shape;
    let (q_rows, kv_rows) = (heads * head_dim, kv_heads * head_dim);
    let mut expected = vec![
        ("token_embd.weight".into(), "model.embed_tokens.weight".into(), vec![vocab, hidden], Rows::AsTheyAre),
        ("output_norm.weight".into(), "model.norm.weight".into(), vec![hidden], Rows::AsTheyAre),
    ];
    if !tied {
        expected.push(("output.weight".into(), "lm_head.weight".into(), vec![vocab, hidden], Rows::AsTheyAre));
    }
    for layer in 0..shape.layers {
        let mut add = |gguf: &str, hf: &str, dimensions: Vec<usize>, rows: Rows| {
            let names = (format!("blk.{layer}.{gguf}.weight"), format!("model.layers.{layer}.{hf}.weight"));
            expected.push((names.0, names.1, dimensions, rows));
        };
        add("attn_norm", "input_layernorm", vec![hidden], Rows::AsTheyAre);
        add("attn_q", "self_attn.q_proj", vec![q_rows, hidden], Rows::InterleavedRope { heads });
        add("attn_k", "self_attn.k_proj", vec![kv_rows, hidden], Rows::InterleavedRope { heads: kv_heads });
        add("attn_v", "self_attn.v_proj", vec![kv_rows, hidden], Rows::AsTheyAre);
        add("attn_output", "self_attn.o_proj", vec![hidden, q_rows], Rows::AsTheyAre);
        add("ffn_norm", "post_attention_layernorm", vec![hidden], Rows::AsTheyAre);
        add("ffn_gate", "mlp.gate_proj", vec![intermediate, hidden], Rows::AsTheyAre);
        add("ffn_up", "mlp.up_proj", vec![intermediate, hidden], Rows::AsTheyAre);
        add("ffn_down", "mlp.down_proj", vec![hidden, intermediate], Rows::AsTheyAre);
    }
    expected
}

/// A tensor that is dequantized when safetensors asks for its bytes, so that one at a time is in memory.
struct Bf16View<'a> {
    tensor: &'a Tensor<'a>,
    rows: Rows,
}

impl View for Bf16View<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.kind.to_f32(self.tensor.data);
        let ordered = match self.rows {
            Rows::AsTheyAre => values,
            Rows::InterleavedRope { heads } => undo_interleaved_rows(&values, heads, self.tensor.shape[1]),
        };
        Cow::Owned(to_bf16_bytes(&ordered))
    }

    fn data_len(&self) -> usize {
        2 * self.tensor.shape.iter().product::<usize>()
    }
}

/// Writes the Hugging Face directory of a GGUF file into `dir`, which exists and is empty.
///
/// `base_name`: the hub id of the model that the file was made from; adapters record it as their base.
pub fn write_model_dir(gguf: &Gguf, base_name: &str, dir: &Path) -> Result<()> {
    let architecture = gguf.string("general.architecture")?;
    ensure!(architecture == "llama", "general.architecture is {} (expected \"llama\")", shown(architecture));
    let shape = Shape::from_metadata(gguf)?;
    let tied = !gguf.tensors.contains_key("output.weight");

    let expected = expected_tensors(&shape, tied);
    let mut views = Vec::new();
    for (gguf_name, hf_name, dimensions, rows) in &expected {
        let tensor = gguf.tensors.get(gguf_name);
        let tensor = tensor.ok_or_else(|| Error::Refused(format!("the tensor {gguf_name} is missing")))?;
        ensure!(
            tensor.shape == *dimensions,
            "the tensor {gguf_name} has shape {:?} (expected {dimensions:?})",
            tensor.shape
        );
        views.push((hf_name.as_str(), Bf16View { tensor, rows: *rows }));
    }
    if let Some(unknown) = gguf.tensors.keys().find(|name| !expected.iter().any(|(known, ..)| known == *name)) {
        bail_usage!("the tensor {} has no place in a Llama without biases and rope factors", shown(unknown));
    }

    let vocabulary = tokenizer::Vocabulary::from_gguf(gguf)?;
    ensure!(vocabulary.len() == shape.vocab, "{} tokens, but llama.vocab_size is {}", vocabulary.len(), shape.vocab);
    let max_length = gguf.integer("llama.context_length")?;
    let special = &vocabulary.special;
    let config = json!({
        "_name_or_path": base_name,
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": max_length,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": special.pad,
        "rms_norm_eps": gguf.number("llama.attention.layer_norm_rms_epsilon")?,
        "rope_scaling": null,
        "rope_theta": gguf.number("llama.rope.freq_base")?,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": shape.vocab,
    });
    let generation_config = json!({
        "_from_model_config": true,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    });

    write_json(&dir.join("config.json"), &config)?;
    write_json(&dir.join("generation_config.json"), &generation_config)?;
    write_json(&dir.join("tokenizer.json"), &vocabulary.tokenizer_json())?;
    write_json(&dir.join("tokenizer_config.json"), &vocabulary.tokenizer_config_json(max_length))?;
    if let Some(template) = &vocabulary.chat_template {
        write(&dir.join("chat_template.jinja"), template.as_bytes())?;
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &weights)
        .context(|| format!("cannot write {}", weights.display()))?;
    // safetensors makes the file private to its user, unlike its neighbors.
    let usual = fs::metadata(dir.join("config.json")).context(|| dir.display().to_string())?.permissions();
    fs::set_permissions(&weights, usual).context(|| format!("cannot set permissions of {}", weights.display()))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context(|| path.display().to_string())?;
    text.push('\n');
    write(path, text.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).context(|| format!("cannot write {}", path.display()))
}
