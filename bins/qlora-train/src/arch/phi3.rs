//! Phi-3, 3.5 and 4: Llama with q, k and v in one tensor, and gate and up in another; LoRA terms belong to these. With
//! a window on every layer or on none, and rotary positions of whole heads or of a part of each.
//!
//! A key that is absent has the default of transformers' `Phi3Config`.

use super::config::{self, Defaults, note_attention_dropout, note_residual_dropout, only_false, only_silu};
use super::{Arch, Family, LayerArch, LayerKeys, PHI3_NAMES, RopeScaling, llama};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    models: "Phi-3, Phi-3.5 mini, Phi-4 and Phi-4 mini",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: true,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("sliding_window".into(), arch.layer(0).window.into());
    },
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    eos_token_id: Some(32_000),
    ..llama::DEFAULTS
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    note_residual_dropout(keys, "resid_pdrop")?;
    only_silu(keys)?;
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        only_false(keys, key)?;
    }
    let arch = config::read(keys, &FAMILY, &PHI3_NAMES, &DEFAULTS)?;
    if !matches!(arch.rope().scaling, RopeScaling::Default | RopeScaling::LongRope { .. }) {
        let key = if keys.get("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
        return Err(keys.wrong(key, "rope type \"default\" or \"longrope\", as transformers has it for this family"));
    }
    let window = match keys.get("sliding_window") {
        None => None,
        Some(_) => config::window(keys)?,
    };
    let layers = arch.layers.iter().map(|layer| LayerArch { window, ..layer.clone() }).collect();
    Ok(Arch { layers, ..arch })
}
