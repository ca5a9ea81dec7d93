//! Gemma 3, text model: Gemma 2 with norms of each head of q and k instead of soft caps, and a window, with rotary
//! positions of its own, on five layers of six.
//!
//! A key that is absent has the default of transformers' `Gemma3TextConfig`.

use super::config::Defaults;
use super::{Arch, Family, LayerKeys, QkNorm, gemma2};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    models: "Gemma 3 270M and 1B, and the text of the larger ones",
    read,
    layer_keys: LayerKeys::ByWindow {
        full_each: 6,
        full_each_key: Some("sliding_window_pattern"),
        local_theta: Some(("rope_local_base_freq", 10_000.0)),
    },
    rotates_a_part: false,
    beyond_positions: None,
    write: gemma2::write,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_layers: 26,
    num_heads: 8,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000.0,
    tie_word_embeddings: true,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
};

fn read(keys: &Keys) -> Result<Arch> {
    // transformers writes it beside the list of layers.
    keys.known("_sliding_window_pattern");
    // A key of its config that no class of transformers reads.
    if keys.number("attn_logit_softcapping")?.is_some() {
        return Err(keys.wrong("attn_logit_softcapping", "null: the scores of this family are not bounded"));
    }
    let arch = gemma2::read(keys, &FAMILY, &DEFAULTS, [None, None])?;
    Ok(Arch { qk_norm: QkNorm::Head, ..arch })
}
