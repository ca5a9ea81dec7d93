//! Ministral 3: Mistral with YaRN, and queries that grow with their position beyond the trained context. Rows are as
//! long as that context at most, where nothing grows.
//!
//! A key that is absent has the default of transformers' `Ministral3Config`.

use super::config::{self, Defaults, note_attention_dropout, only_silu};
use super::{Arch, Family, LLAMA_NAMES, LayerArch, LayerKeys, Rope, RopeScaling, llama, rope};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    models: "Ministral 3",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: Some("llama_4_scaling_beta"),
    write: |arch, map| {
        map.insert("sliding_window".into(), arch.layer(0).window.into());
    },
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    intermediate_size: 14_336,
    num_layers: 34,
    num_kv_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    rms_norm_eps: 1e-5,
    rope_theta: 1e6,
    ..llama::DEFAULTS
};
const DEFAULT_ROPE: RopeScaling = RopeScaling::Yarn {
    factor: 16.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original_max_position_embeddings: 16_384,
    attention_factor: 1.0,
    truncate: true,
};

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    let mut arch = config::read(keys, &FAMILY, &LLAMA_NAMES, &DEFAULTS)?;
    if ["rope_parameters", "rope_scaling"].iter().all(|key| keys.get(key).is_none()) {
        arch.layers = LayerArch::uniform(Rope::new(arch.rope().theta, DEFAULT_ROPE));
    }
    let RopeScaling::Yarn { original_max_position_embeddings: trained, .. } = arch.rope().scaling else {
        let key = if keys.get("rope_scaling").is_some() { "rope_scaling" } else { "rope_parameters" };
        return Err(keys.wrong(key, "rope type \"yarn\", which this family has"));
    };
    if rope::queries_grow(keys)? && trained < arch.max_position_embeddings {
        crate::report::status!(
            "{}: rows and texts are of at most {trained} tokens, the trained context: what queries are multiplied by \
             beyond it (`llama_4_scaling_beta`) is not computed",
            keys.source
        );
        arch.max_position_embeddings = trained;
    }
    let window = match keys.get("sliding_window") {
        None => None,
        Some(_) => config::window(keys)?,
    };
    let layers = arch.layers.iter().map(|layer| LayerArch { window, ..layer.clone() }).collect();
    Ok(Arch { layers, ..arch })
}
