//! Llama: RMSNorm before attention and MLP, grouped queries, rotary positions, silu(gate) · up; biases on all
//! projections of attention or of the MLP, or none.
//!
//! A key that is absent has the default of transformers' `LlamaConfig`; a key that would change the arithmetic in a way
//! that this trainer does not know is refused.

use super::config::{self, Defaults, attention_and_mlp_biases, note_attention_dropout, only_false};
use super::config::{only_full_attention, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Projection};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    models: "Llama 2, 3, 3.1, 3.2, 3.3 and models of the same shape",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        map.insert("mlp_bias".into(), arch.biases.contains(&Projection::Down).into());
    },
};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
};

fn read(keys: &Keys) -> Result<Arch> {
    check_neutral(keys)?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    Ok(Arch { biases: attention_and_mlp_biases(keys)?, ..arch })
}

/// Keys that some configs carry and that change the arithmetic: only their neutral value is supported.
fn check_neutral(keys: &Keys) -> Result<()> {
    // It records how Llama 2 was trained on several devices, and changes nothing since transformers 4.
    if keys.number("pretraining_tp")?.is_some_and(|ranks| ranks != 1.0) {
        crate::report::status!("{}: key `pretraining_tp` is not used: it changes nothing", keys.source);
    }
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    for key in ["rope_interleaved", "use_sliding_window", "add_cross_attention"] {
        only_false(keys, key)?;
    }
    if keys.get("sliding_window").is_some() {
        return Err(keys.wrong("sliding_window", "null: a \"llama\" has no window; a Llama with one is a \"mistral\""));
    }
    only_full_attention(keys)
}
