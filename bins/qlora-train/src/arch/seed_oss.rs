//! Seed-OSS: Llama with biases on q, k and v, and heads of a width of their own.
//!
//! A key that is absent has the default of transformers' `SeedOssConfig`.

use super::config::{self, Defaults, note_attention_dropout, note_residual_dropout, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Projection};
use crate::error::Result;
use crate::files::json::Keys;
use std::collections::BTreeSet;

pub(super) static FAMILY: Family = Family {
    model_type: "seed_oss",
    architecture: "SeedOssForCausalLM",
    models: "Seed-OSS",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        for (key, projection) in BIASES {
            map.insert(key.into(), arch.biases.contains(&projection).into());
        }
        map.insert("residual_dropout".into(), 0.0.into());
    },
};

/// Each key with one of the projections that it is of.
const BIASES: [(&str, Projection); 3] =
    [("attention_bias", Projection::Q), ("attention_out_bias", Projection::O), ("mlp_bias", Projection::Down)];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 155_136,
    hidden_size: 4096,
    intermediate_size: 27_648,
    num_layers: 64,
    num_heads: 80,
    num_kv_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 524_288,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
    bos_token_id: Some(0),
    eos_token_id: Some(2),
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    note_residual_dropout(keys, "residual_dropout")?;
    only_silu(keys)?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    let mut biases = BTreeSet::new();
    for ((key, _), (default, projections)) in BIASES.into_iter().zip([
        (true, &[Projection::Q, Projection::K, Projection::V][..]),
        (false, &[Projection::O]),
        (false, &Projection::MLP),
    ]) {
        if keys.flag(key)?.unwrap_or(default) {
            biases.extend(projections);
        }
    }
    Ok(Arch { biases, ..arch })
}
