//! Hunyuan, dense: Llama with an RMSNorm of each head of q and k after the rotation, whose base is stretched by a fixed
//! factor; biases on all projections of attention, or none.
//!
//! A key that is absent has the default of transformers' `HunYuanDenseV1Config`.

use super::config::{self, Defaults, note_attention_dropout, only_silu};
use super::{Arch, Family, HUNYUAN_NAMES, LayerKeys, Projection, QkNorm, llama};
use crate::error::Result;
use crate::files::json::Keys;
use serde_json::{Map, Value};

pub(super) static FAMILY: Family = Family {
    model_type: "hunyuan_v1_dense",
    architecture: "HunYuanDenseV1ForCausalLM",
    models: "Hunyuan 0.5B to 7B, dense",
    read,
    layer_keys: LayerKeys::Alike,
    rotates_a_part: false,
    beyond_positions: None,
    write: |arch, map| {
        map.insert("attention_bias".into(), arch.biases.contains(&Projection::O).into());
    },
};

const DEFAULTS: Defaults = Defaults { vocab_size: 290_943, rms_norm_eps: 1e-5, ..llama::DEFAULTS };

fn read(keys: &Keys) -> Result<Arch> {
    note_attention_dropout(keys)?;
    only_silu(keys)?;
    // Every model of the class has these norms, whatever its key says.
    keys.known("use_qk_norm");
    let stretched = with_stretched_base(keys)?;
    let read = Keys::of(keys.source.clone(), &stretched);
    let arch = config::read(&read, &FAMILY, &HUNYUAN_NAMES, &DEFAULTS)?;
    // Keys that were read from the copy count as read from the original.
    let unread: Vec<&str> = read.never_asked().map(|(key, _)| key).collect();
    keys.map.keys().filter(|key| !unread.contains(&key.as_str())).for_each(|key| keys.known(key));
    let biased = keys.flag("attention_bias")?.unwrap_or(false);
    let biases = Projection::ATTENTION.into_iter().filter(|_| biased).collect();
    Ok(Arch { biases, qk_norm: QkNorm::HeadRotated, ..arch })
}

/// The keys with a rotation of type "dynamic" and a fixed `alpha`, as the models are published, in the form of one that
/// is not scaled: of base theta · alpha^(D / (D − 2)).
fn with_stretched_base(keys: &Keys) -> Result<Map<String, Value>> {
    let mut map = keys.map.clone();
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(nested) = keys.object(key)? else { continue };
        if !["rope_type", "type"].iter().any(|kind| nested.map.get(*kind).is_some_and(|kind| kind == "dynamic")) {
            continue;
        }
        // transformers reads none but the first three beside `alpha`.
        let known = ["rope_type", "type", "rope_theta", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"];
        if let Some(other) = nested.map.keys().find(|name| *name != "alpha" && !known.contains(&name.as_str())) {
            return Err(nested.wrong(other, "no such key: its effect on the rotary positions is not known"));
        }
        let Some(alpha) = nested.number("alpha")?.filter(|alpha| *alpha > 0.0) else {
            return Err(nested.wrong("alpha", "a number above 0: without it \"dynamic\" depends on a row's length"));
        };
        let Some(width) = keys.whole("head_dim")?.filter(|width| *width > 2) else {
            return Err(keys.wrong("head_dim", "a number above 2, beside rotary positions of type \"dynamic\""));
        };
        let theta = nested.number("rope_theta")?.or(keys.number("rope_theta")?).unwrap_or(DEFAULTS.rope_theta);
        let base = theta * alpha.powf(width as f64 / (width as f64 - 2.0));
        if !(theta > 0.0 && base.is_finite()) {
            return Err(nested.wrong("alpha", "a number by which the base of the rotation stays one of f64"));
        }
        map.shift_remove(key);
        map.insert("rope_theta".to_owned(), base.into());
    }
    Ok(map)
}
