//! Gemma 3, its text: norms before and after attention and MLP, and of each head of q and k, that multiply by 1 + w; an
//! embedding that is multiplied by √hidden; gelu in its tanh form; a window, with rotary positions of its own, on five
//! layers of six.
//!
//! A key that is absent has the default of transformers' `Gemma3TextConfig`.

use super::config::{self, Defaults, note_attention_dropout, only_false};
use super::{Activation, Arch, Family, GEMMA3_NAMES, LayerKeys, Multipliers, Norm, NormWeight, Projection, QkNorm};
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
    write: |arch, map| {
        map.remove("hidden_act");
        map.insert("hidden_activation".into(), GELU_TANH.into());
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        let scalar = arch.multipliers.attention.map_or(arch.head_dim as f64, |scale| f64::from(scale).powi(-2));
        // The square of a rounded root is a whole number but for that rounding.
        let whole = scalar.round();
        map.insert(
            "query_pre_attn_scalar".into(),
            if (scalar - whole).abs() < 1e-5 * whole { whole } else { scalar }.into(),
        );
    },
};

const GELU_TANH: &str = "gelu_pytorch_tanh";

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
    note_attention_dropout(keys)?;
    if keys.text("hidden_activation")?.is_some_and(|activation| activation != GELU_TANH) {
        return Err(keys.wrong("hidden_activation", &format!("{GELU_TANH:?}, the only activation of this family")));
    }
    only_false(keys, "use_bidirectional_attention")?;
    // What transformers writes beside the list of layers, and a key of other families that some carry.
    keys.known("_sliding_window_pattern");
    keys.known("hidden_act");
    let arch = config::read(keys, &FAMILY, &GEMMA3_NAMES, &DEFAULTS)?;
    let soft_cap = |key: &str| match keys.number(key)? {
        Some(cap) if cap > 0.0 => Ok(Some(cap as f32)),
        Some(_) => Err(keys.wrong(key, "null, or a number above 0")),
        None => Ok(None),
    };
    let scalar = match keys.number("query_pre_attn_scalar")?.unwrap_or(256.0) {
        scalar if scalar > 0.0 && (scalar.powf(-0.5) as f32).is_normal() => scalar,
        _ => return Err(keys.wrong("query_pre_attn_scalar", "a number above 0")),
    };
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    Ok(Arch {
        biases: Projection::ATTENTION.into_iter().filter(|_| biased).collect(),
        norm: Norm { weight: NormWeight::OnePlus, ..arch.norm },
        qk_norm: QkNorm::Head,
        activation: Activation::GeluTanh,
        multipliers: Multipliers {
            embedding: (arch.hidden_size as f32).sqrt(),
            embedding_is_rounded: true,
            attention: (scalar != arch.head_dim as f64).then_some(scalar.powf(-0.5) as f32),
            ..Multipliers::NONE
        },
        attention_soft_cap: soft_cap("attn_logit_softcapping")?,
        logits_soft_cap: soft_cap("final_logit_softcapping")?,
        ..arch
    })
}
