//! Qwen2 and Qwen2.5: Llama with biases on q, k and v.
//!
//! A key that is absent has the default of transformers' `Qwen2Config`.

use super::config::{self, Defaults, note_attention_dropout, only_false, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Projection};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    models: "Qwen2 and Qwen2.5",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: config::write_windows,
};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: Some(32),
    head_dim: None,
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    bos_token_id: None,
    eos_token_id: None,
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    for key in ["use_mrope", "add_cross_attention"] {
        only_false(keys, key)?;
    }
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    let layers = config::windows_of_layers(keys, &arch)?;
    Ok(Arch { biases: [Projection::Q, Projection::K, Projection::V].into(), layers, ..arch })
}
