//! Qwen3: Llama with an RMSNorm of each head of q and k before the rotation; biases on all projections of attention, or
//! none.
//!
//! A key that is absent has the default of transformers' `Qwen3Config`, which is `Qwen2Config`'s but for the heads.

use super::config::{self, Defaults, note_attention_dropout, only_false, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerKeys, Projection, QkNorm, qwen2};
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

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };

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
