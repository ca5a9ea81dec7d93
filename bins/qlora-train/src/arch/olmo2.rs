//! OLMo 2: Llama with the norms on the outputs of attention and MLP, not on their inputs, and an RMSNorm of all queries
//! and of all keys before the rotation; biases on all projections of attention, or none.
//!
//! A key that is absent has the default of transformers' `Olmo2Config`.

use super::config::{self, Defaults, note_attention_dropout, only_full_attention, only_silu};
use super::{Arch, Family, LayerKeys, OLMO2_NAMES, Projection, QkNorm};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    models: "OLMo 2",
    read: |keys| {
        only_full_attention(keys)?;
        read(keys, &FAMILY, DEFAULT_THETA)
    },
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
    },
};

const DEFAULT_THETA: f64 = 10_000.0;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    rope_theta: DEFAULT_THETA,
    tie_word_embeddings: false,
    bos_token_id: None,
    eos_token_id: Some(50_279),
};

/// The keys that OLMo 2 and 3 share.
pub(super) fn read(keys: &Keys, family: &'static Family, rope_theta: f64) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    let arch = config::read(keys, family, &OLMO2_NAMES, &Defaults { rope_theta, ..DEFAULTS })?;
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    let biases = Projection::ATTENTION.into_iter().filter(|_| biased).collect();
    Ok(Arch { biases, qk_norm: QkNorm::Width, ..arch })
}
