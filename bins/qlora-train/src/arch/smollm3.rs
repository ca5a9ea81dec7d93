//! SmolLM3: Llama with layers whose queries and keys are not rotated, each fourth by default, and with
//! a window on those where the config asks for one.
//!
//! A key that is absent has the default of transformers' `SmolLM3Config`.

use super::config::{self, Defaults, attention_and_mlp_biases, note_attention_dropout, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerArch, LayerKeys, Projection, Rope, rope};
use crate::error::Result;
use crate::files::json::Keys;
use serde_json::Value;

pub(super) static FAMILY: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    models: "SmolLM3",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        map.insert("mlp_bias".into(), arch.biases.contains(&Projection::Down).into());
        let windows = (0..arch.num_layers).map(|layer| arch.layer(layer).window);
        let window = windows.clone().flatten().next();
        map.insert("use_sliding_window".into(), window.is_some().into());
        map.insert("sliding_window".into(), window.into());
        let kind = |window: Option<usize>| if window.is_some() { rope::SLIDING } else { rope::FULL };
        map.insert("layer_types".into(), windows.map(kind).collect::<Vec<_>>().into());
        let rotated = |layer| u8::from(arch.layer(layer).rope.is_some());
        map.insert("no_rope_layers".into(), (0..arch.num_layers).map(rotated).collect());
    },
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 11_008,
    num_layers: 36,
    num_heads: 16,
    num_kv_heads: Some(4),
    head_dim: None,
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 2_000_000.0,
    tie_word_embeddings: true,
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    let arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    // This check comes before there is an entry for each layer.
    config::check(&arch, keys)?;
    let mut layers = layers(keys, arch.num_layers, arch.rope())?;
    set_windows(keys, &mut layers)?;
    Ok(Arch { biases: attention_and_mlp_biases(keys)?, layers, ..arch })
}

/// With `use_sliding_window` those slide that `layer_types` lists or, without a list, those that are not rotated.
fn set_windows(keys: &Keys, layers: &mut [LayerArch]) -> Result<()> {
    let used = keys.flag("use_sliding_window")?.unwrap_or(false);
    keys.known("sliding_window");
    let window = match keys.get("sliding_window") {
        Some(_) if used => config::window(keys)?,
        _ => None,
    };
    let listed = config::layer_types(keys, layers.len())?;
    if window.is_none() && listed.as_ref().is_some_and(|kinds| kinds.contains(&true)) {
        let expected = "only \"full_attention\", or a window: `use_sliding_window` true and `sliding_window` a number";
        return Err(keys.wrong("layer_types", expected));
    }
    for (index, layer) in layers.iter_mut().enumerate() {
        let slides = listed.as_ref().map_or(layer.rope.is_none(), |kinds| kinds[index]);
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// `no_rope_layers` has a 1 for each layer that is rotated; without it, each `no_rope_layer_interval`th is not.
fn layers(keys: &Keys, num_layers: usize, rope: Rope) -> Result<Vec<LayerArch>> {
    let layer = |rotated: bool| LayerArch { window: None, rope: rotated.then(|| rope.clone()) };
    keys.known("no_rope_layer_interval");
    let Some(list) = keys.get("no_rope_layers") else {
        let interval = match keys.whole("no_rope_layer_interval")?.unwrap_or(4) {
            0 => return Err(keys.wrong("no_rope_layer_interval", "a whole number above 0")),
            interval => interval,
        };
        return Ok((1..=num_layers).map(|number| layer(!number.is_multiple_of(interval))).collect());
    };
    let expected = || {
        let expected = format!("a list of {num_layers} numbers, one for each layer: 1 rotated, 0 not");
        keys.wrong("no_rope_layers", &expected)
    };
    let list = list.as_array().filter(|list| list.len() >= num_layers).ok_or_else(expected)?;
    let one = |value: &Value| match value.as_u64() {
        Some(flag @ 0..=1) => Ok(layer(flag == 1)),
        _ => Err(expected()),
    };
    list[..num_layers].iter().map(one).collect()
}
