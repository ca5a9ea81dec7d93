//! Mistral: Llama without biases, with a sliding window on every layer or on none, and heads of any width.
//!
//! A key that is absent has the default of transformers' `MistralConfig`, whose window is one of 4,096 tokens; a window
//! of null is none, as in every Mistral since 7B v0.3.

use super::config::{self, Defaults, note_attention_dropout, only_false, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerArch, LayerKeys, llama, rope};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    models: "Mistral 7B, Nemo, Small and Large",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("sliding_window".into(), arch.layer(0).window.into());
    },
};

const DEFAULTS: Defaults =
    Defaults { intermediate_size: 14_336, num_kv_heads: Some(8), max_position_embeddings: 131_072, ..llama::DEFAULTS };

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    only_false(keys, "add_cross_attention")?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    let window = config::window(keys)?;
    // transformers' Mistral reads no such list: its window is that of every layer.
    let kind = if window.is_some() { rope::SLIDING } else { rope::FULL };
    if config::layer_types(keys, arch.num_layers)?.is_some_and(|kinds| kinds.contains(&window.is_none())) {
        let expected = format!("only {kind:?}, as the key `sliding_window` has it for every layer of a \"mistral\"");
        return Err(keys.wrong("layer_types", &expected));
    }
    let layers = arch.layers.iter().map(|layer| LayerArch { window, ..layer.clone() }).collect();
    Ok(Arch { layers, ..arch })
}
