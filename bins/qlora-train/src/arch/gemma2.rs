//! Gemma 2: norms before and after attention and MLP that multiply by 1 + w; an embedding that is multiplied by
//! √hidden; gelu in its tanh form; soft caps of scores and of logits; a window on each layer but every second.
//!
//! A key that is absent has the default of transformers' `Gemma2Config`.

use super::config::{self, Defaults, note_attention_dropout, only_false};
use super::{Activation, Arch, Family, GEMMA_NAMES, LayerArch, LayerKeys, Multipliers, Norm, NormWeight, Projection};
use crate::error::Result;
use crate::files::json::{Keys, shortest};
use serde_json::{Map, Value};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    models: "Gemma 2",
    read: |keys| {
        let arch = read(keys, &FAMILY, &DEFAULTS, [Some(50.0), Some(30.0)])?;
        let windows = config::windows_by_kind(keys, arch.num_layers, 2)?;
        let layer = |window| LayerArch { window, ..arch.layer(0).clone() };
        Ok(Arch { layers: windows.into_iter().map(layer).collect(), ..arch })
    },
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        write(arch, map);
        config::write_kinds(arch, map);
    },
};

const GELU_TANH: &str = "gelu_pytorch_tanh";

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_layers: 26,
    num_heads: 8,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: true,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
};

/// The keys that Gemma 2 and 3 share. `soft_caps` are the defaults for scores and logits.
pub(super) fn read(
    keys: &Keys,
    family: &'static Family,
    defaults: &Defaults,
    soft_caps: [Option<f32>; 2],
) -> Result<Arch> {
    note_attention_dropout(keys)?;
    if keys.text("hidden_activation")?.is_some_and(|activation| activation != GELU_TANH) {
        return Err(keys.wrong("hidden_activation", &format!("{GELU_TANH:?}, the only activation of this family")));
    }
    only_false(keys, "use_bidirectional_attention")?;
    // A key of other families that some carry.
    keys.known("hidden_act");
    let arch = config::read(keys, family, &GEMMA_NAMES, defaults)?;
    let soft_cap = |key: &str, default: Option<f32>| match keys.number(key)?.map(|cap| cap as f32) {
        Some(cap) if cap.is_normal() && cap > 0.0 => Ok(Some(cap)),
        Some(_) => Err(keys.wrong(key, "null, or a number above 0 that f32 can hold")),
        None => Ok(default.filter(|_| !keys.map.contains_key(key))),
    };
    let scalar = match keys.number("query_pre_attn_scalar")?.unwrap_or(256.0) {
        scalar if scalar > 0.0 && (scalar.powf(-0.5) as f32).is_normal() => scalar,
        _ => return Err(keys.wrong("query_pre_attn_scalar", "a number above 0")),
    };
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    Ok(Arch {
        biases: Projection::ATTENTION.into_iter().filter(|_| biased).collect(),
        norm: Norm { weight: NormWeight::OnePlus, ..arch.norm },
        activation: Activation::GeluTanh,
        multipliers: Multipliers {
            embedding: (arch.hidden_size as f32).sqrt(),
            embedding_is_rounded: true,
            attention: (scalar != arch.head_dim as f64).then_some(scalar.powf(-0.5) as f32),
            ..Multipliers::NONE
        },
        attention_soft_cap: soft_cap("attn_logit_softcapping", soft_caps[0])?,
        logits_soft_cap: soft_cap("final_logit_softcapping", soft_caps[1])?,
        ..arch
    })
}

/// The keys that [`read`] reads.
pub(super) fn write(arch: &Arch, map: &mut Map<String, Value>) {
    map.remove("hidden_act");
    map.insert("hidden_activation".into(), GELU_TANH.into());
    map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
    let scalar = arch.multipliers.attention.map_or(arch.head_dim as f64, |scale| f64::from(scale).powi(-2));
    // The square of a rounded root is a whole number but for that rounding.
    let whole = scalar.round();
    let scalar = if (scalar - whole).abs() < 1e-5 * whole { whole } else { scalar };
    map.insert("query_pre_attn_scalar".into(), scalar.into());
    for (key, cap) in
        [("attn_logit_softcapping", arch.attention_soft_cap), ("final_logit_softcapping", arch.logits_soft_cap)]
    {
        map.insert(key.into(), cap.map(shortest).into());
    }
}
