//! Granite 3: Llama with multipliers of the embedding, of attention's scores, of both branches, and a divisor of the
//! logits.
//!
//! A key that is absent has the default of transformers' `GraniteConfig`, which is `LlamaConfig`'s.

use super::config::{self, attention_and_mlp_biases, note_attention_dropout, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Multipliers, Projection, llama};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    models: "Granite 3.0 to 3.3, dense",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        map.insert("mlp_bias".into(), arch.biases.contains(&Projection::Down).into());
        arch.multipliers.insert_into(map);
    },
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &llama::DEFAULTS)?;
    Ok(Arch { biases: attention_and_mlp_biases(keys)?, multipliers: multipliers(keys, arch.norm.eps)?, ..arch })
}

/// The multipliers of a Granite whose norms have `eps`.
pub(super) fn multipliers(keys: &Keys, eps: f32) -> Result<Multipliers> {
    let multipliers = Multipliers::from_keys(keys)?;
    // The model divides by them: values that overflow f32 are found here.
    let (scale, eps) = (multipliers.stream_scale(|x| x), multipliers.stream_eps(eps));
    for (key, value) in [("embedding_multiplier", scale), ("residual_multiplier", eps)] {
        if !value.is_normal() {
            return Err(keys.wrong(key, "a number that f32 can hold once it is divided by residual_multiplier"));
        }
    }
    Ok(multipliers)
}
