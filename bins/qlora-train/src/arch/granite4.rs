//! Granite 4, dense: Granite 3 with gate and up in one tensor. transformers computes it with the class of its hybrid
//! models; a dense model has none of their Mamba layers and experts.
//!
//! A key that is absent has the default of transformers' `GraniteMoeHybridConfig`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::config::{self, note_attention_dropout, only_silu};
use super::{Arch, Family, GRANITE4_NAMES, LayerKeys, Projection, granite, llama, rope};
use crate::error::Result;
use crate::files::json::Keys;

pub(super) static FAMILY: Family = Family {
    model_type: "granitemoehybrid",
    architecture: "GraniteMoeHybridForCausalLM",
    models: "Granite 4, those without experts and Mamba layers",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
        map.insert("shared_intermediate_size".into(), arch.intermediate_size.into());
        map.insert("num_local_experts".into(), 0.into());
        map.insert("num_experts_per_tok".into(), 0.into());
        map.insert("position_embedding_type".into(), ROTARY.into());
        map.insert("layer_types".into(), vec![ATTENTION; arch.num_layers].into());
        arch.multipliers.insert_into(map);
    },
};

const ROTARY: &str = "rope";
/// A layer in published configs; transformers 5 writes "full_attention".
const ATTENTION: &str = "attention";
const DEFAULT_INTERMEDIATE_SIZE: usize = 1024;
/// Keys for sizes that a dense model does not have.
const OTHERS: [&str; 16] = [
    "intermediate_size",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "mamba_n_heads",
    "mamba_n_groups",
    "mamba_d_state",
    "mamba_d_head",
    "mamba_d_conv",
    "mamba_expand",
    "mamba_chunk_size",
    "mamba_conv_bias",
    "mamba_proj_bias",
    "time_step_limit",
    "init_method",
    "layers_block_type",
];

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    if keys.whole("num_local_experts")? != Some(0) {
        let expected = "0: a mixture of experts is not trained, the dense models of Granite 4 are";
        return Err(keys.wrong("num_local_experts", expected));
    }
    OTHERS.iter().for_each(|key| keys.known(key));
    let arch = config::read(keys, &FAMILY, &GRANITE4_NAMES, &llama::DEFAULTS)?;
    config::check(&arch, keys)?;
    let attends = |kind: &Value| kind == ATTENTION || kind == rope::FULL;
    let listed = ["layer_types", "layers_block_type"].into_iter().find_map(|key| keys.get(key)?.as_array());
    // Without a list, every layer is one of Mamba.
    if !listed.is_some_and(|list| list.len() == arch.num_layers && list.iter().all(attends)) {
        let expected = format!("a list of {} times {ATTENTION:?}: layers of Mamba are not trained", arch.num_layers);
        return Err(keys.wrong("layer_types", &expected));
    }
    if keys.text("position_embedding_type")? != Some(ROTARY) {
        return Err(keys.wrong("position_embedding_type", "\"rope\": layers without positions are not trained"));
    }
    let intermediate_size = match keys.whole("shared_intermediate_size")?.unwrap_or(DEFAULT_INTERMEDIATE_SIZE) {
        n if (1..=i32::MAX as usize / 2).contains(&n) => n,
        _ => return Err(keys.wrong("shared_intermediate_size", "a whole number from 1 to 1073741823")),
    };
    let biases = match keys.flag("attention_bias")? {
        Some(true) => Projection::ATTENTION.into(),
        _ => BTreeSet::new(),
    };
    Ok(Arch { intermediate_size, biases, multipliers: granite::multipliers(keys, arch.norm.eps)?, ..arch })
}
