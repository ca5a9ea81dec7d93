//! Qwen3: Llama with an RMSNorm of each head of q and k before the rotation; biases on all projections of attention, or
//! none.
//!
//! A key that is absent has the default of transformers' `Qwen3Config`.

use super::config::{self, Defaults, note_attention_dropout, only_false, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Projection, QkNorm};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    models: "Qwen3",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        config::write_windows(arch, map);
    },
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: Some(32),
    head_dim: Some(128),
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
    only_false(keys, "add_cross_attention")?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    let layers = config::windows_of_layers(keys, &arch)?;
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    let biases = Projection::ATTENTION.into_iter().filter(|_| biased).collect();
    Ok(Arch { biases, qk_norm: QkNorm::Head, layers, ..arch })
}
