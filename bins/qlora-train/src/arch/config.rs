//! The keys of config.json that families share, as transformers v4 and v5 write them.

use serde_json::{Map, Value, json};

use super::rope::{FULL, SLIDING};
use super::{
    Activation, Arch, Family, LayerArch, LayerKeys, Multipliers, Norm, NormWeight, Projection, QkNorm, Rope,
    RopeScaling, TensorNames,
};
use crate::bail_usage;
use crate::error::Result;
use crate::files::json::{Keys, shortest};
use std::collections::BTreeSet;

/// Kernels index the rows and columns of a matrix with 32 bits.
const MAX_DIMENSION: usize = i32::MAX as usize;
const MAX_LAYERS: usize = 10_000;

/// The values of keys that are absent.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    /// `None`: as many as heads
    pub num_kv_heads: Option<usize>,
    /// `None`: hidden size / heads
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

/// An architecture like Llama's without biases, of the sizes in config.json. A family then changes what differs.
pub(super) fn read(
    keys: &Keys,
    family: &'static Family,
    names: &'static TensorNames,
    defaults: &Defaults,
) -> Result<Arch> {
    let at_least_one = |key: &str, default: usize| match keys.whole(key)?.unwrap_or(default) {
        n if (1..=MAX_DIMENSION).contains(&n) => Ok(n),
        _ => Err(keys.wrong(key, &format!("a whole number from 1 to {MAX_DIMENSION}"))),
    };
    let hidden_size = at_least_one("hidden_size", defaults.hidden_size)?;
    let num_heads = at_least_one("num_attention_heads", defaults.num_heads)?;
    // null, where a default stands for an absent key, is transformers' word for hidden size / heads.
    let default_head_dim = defaults.head_dim.filter(|_| !keys.map.contains_key("head_dim"));
    if keys.get("head_dim").is_none() && default_head_dim.is_none() && !hidden_size.is_multiple_of(num_heads) {
        let expected = format!("a multiple of num_attention_heads ({num_heads}), or a key `head_dim`");
        return Err(keys.wrong("hidden_size", &expected));
    }
    let num_layers = at_least_one("num_hidden_layers", defaults.num_layers)?;
    if num_layers > MAX_LAYERS {
        return Err(keys.wrong("num_hidden_layers", &format!("at most {MAX_LAYERS}")));
    }
    let max_position_embeddings = at_least_one("max_position_embeddings", defaults.max_position_embeddings)?;
    let vocab_size = at_least_one("vocab_size", defaults.vocab_size)?;
    // In transformers null is as many as there are queries, and no key the family's default.
    let null_kv_heads = keys.map.get("num_key_value_heads").is_some_and(Value::is_null);
    let num_kv_heads = defaults.num_kv_heads.filter(|_| !null_kv_heads).unwrap_or(num_heads);
    Ok(Arch {
        family,
        names,
        wrapper: None,
        vocab_size,
        hidden_size,
        intermediate_size: at_least_one("intermediate_size", defaults.intermediate_size)?,
        num_layers,
        num_heads,
        num_kv_heads: at_least_one("num_key_value_heads", num_kv_heads)?,
        head_dim: at_least_one("head_dim", default_head_dim.unwrap_or(hidden_size / num_heads))?,
        norm: Norm {
            eps: keys.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
            weight: NormWeight::Plain,
        },
        qk_norm: QkNorm::None,
        biases: BTreeSet::new(),
        layers: layers(keys, family, num_layers, max_position_embeddings, defaults.rope_theta)?,
        activation: Activation::Silu,
        multipliers: Multipliers::NONE,
        attention_soft_cap: None,
        logits_soft_cap: None,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
        max_position_embeddings,
        bos_token_id: token_ids(keys, "bos_token_id", defaults.bos_token_id, vocab_size)?.first().copied(),
        eos_token_ids: token_ids(keys, "eos_token_id", defaults.eos_token_id, vocab_size)?,
    })
}

/// The layers, as far as [`LayerKeys`] tell them.
fn layers(
    keys: &Keys,
    family: &Family,
    num_layers: usize,
    max_position_embeddings: usize,
    rope_theta: f64,
) -> Result<Vec<LayerArch>> {
    let LayerKeys::ByWindow { full_each, full_each_key, local_theta } = family.layer_keys else {
        let rope = Rope::from_keys(keys, max_position_embeddings, rope_theta, family.rotates_a_part)?;
        return Ok(LayerArch::uniform(rope));
    };
    let [full, local] = Rope::by_window(keys, max_position_embeddings, rope_theta, local_theta)?;
    let full_each = match full_each_key {
        Some(key) => match keys.whole(key)? {
            Some(0) => return Err(keys.wrong(key, "a whole number above 0")),
            each => each.unwrap_or(full_each),
        },
        None => full_each,
    };
    let layer = |window: Option<usize>| LayerArch {
        window,
        rope: Some(if window.is_some() { local.clone() } else { full.clone() }),
    };
    Ok(windows_by_kind(keys, num_layers, full_each)?.into_iter().map(layer).collect())
}

/// The window of each layer: `sliding_window`, for those that `layer_types` lists or, without a list, for all but each
/// `full_each`th.
pub(super) fn windows_by_kind(keys: &Keys, num_layers: usize, full_each: usize) -> Result<Vec<Option<usize>>> {
    let sliding = match layer_types(keys, num_layers)? {
        Some(kinds) => kinds,
        None => (1..=num_layers).map(|number| !number.is_multiple_of(full_each)).collect(),
    };
    let window = window(keys)?;
    if window.is_none() && sliding.contains(&true) {
        return Err(keys.wrong("sliding_window", "a number of keys, as some layers have a window"));
    }
    Ok(sliding.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

/// Sizes that do not fit together.
pub(super) fn check(arch: &Arch, keys: &Keys) -> Result<()> {
    if !arch.num_heads.is_multiple_of(arch.num_kv_heads) {
        let expected = format!("a divisor of num_attention_heads ({})", arch.num_heads);
        return Err(keys.wrong("num_key_value_heads", &expected));
    }
    for rope in arch.ropes() {
        let (rotated, d) = (rope.rotary_dim(arch.head_dim), arch.head_dim);
        if rope.partial != 1.0 && !(rotated >= 2 && rotated.is_multiple_of(2)) {
            let expected = format!("a share of {d} elements of a head that is an even number, found {rotated}");
            return Err(keys.wrong("partial_rotary_factor", &expected));
        }
        if let RopeScaling::LongRope { short_factor, long_factor, .. } = &rope.scaling {
            for (name, factors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                if factors.len() != rotated / 2 {
                    bail_usage!(
                        "{}: key `{name}`: found {} numbers, expected {}, one for every two elements of a head that are \
                         rotated",
                        keys.source,
                        factors.len(),
                        rotated / 2
                    );
                }
            }
        }
    }
    if !arch.head_dim.is_multiple_of(2) {
        let expected = format!("an even head dimension, found {}: rotary positions turn pairs", arch.head_dim);
        return Err(keys.wrong("head_dim", &expected));
    }
    if !(arch.norm.eps.is_finite() && arch.norm.eps > 0.0) {
        return Err(keys.wrong("rms_norm_eps", "a number above 0 that f32 can hold"));
    }
    if arch.num_heads.checked_mul(arch.head_dim).is_none_or(|n| n > MAX_DIMENSION) {
        bail_usage!(
            "{}: keys `num_attention_heads` and `head_dim`: found {} x {}, expected a product of at most {MAX_DIMENSION}",
            keys.source,
            arch.num_heads,
            arch.head_dim
        );
    }
    let bytes = arch.num_parameters().and_then(|n| n.checked_mul(4));
    if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
        bail_usage!(
            "{}: the sizes give more parameters than can be addressed; expected those of a real model",
            keys.source
        );
    }
    Ok(())
}

/// The keys of [`read`], less the rotary positions and the stored type.
pub(super) fn write(arch: &Arch) -> Map<String, Value> {
    let eos = match arch.eos_token_ids[..] {
        [] => Value::Null,
        [id] => id.into(),
        _ => json!(arch.eos_token_ids),
    };
    let value = json!({
        "architectures": [arch.family.architecture],
        "model_type": arch.family.model_type,
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.intermediate_size,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shortest(arch.norm.eps),
        "attention_dropout": 0.0,
        "tie_word_embeddings": arch.tie_word_embeddings,
        "max_position_embeddings": arch.max_position_embeddings,
        "bos_token_id": arch.bos_token_id,
        "eos_token_id": eos,
    });
    let Value::Object(mut map) = value else { unreachable!("json! of braces is an object") };
    if let LayerKeys::ByWindow { .. } = arch.family.layer_keys {
        write_kinds(arch, &mut map);
    }
    (arch.family.write)(arch, &mut map);
    map
}

/// The keys that [`windows_by_kind`] reads.
pub(super) fn write_kinds(arch: &Arch, map: &mut Map<String, Value>) {
    let windows = (0..arch.num_layers).map(|layer| arch.layer(layer).window);
    map.insert("sliding_window".into(), windows.clone().flatten().next().into());
    let kind = |window: Option<usize>| if window.is_some() { SLIDING } else { FULL };
    map.insert("layer_types".into(), windows.map(kind).collect::<Vec<_>>().into());
}

/// Dropout of attention in training; the frozen base is used without it, as PEFT's default leaves it to the config.
pub(super) fn note_attention_dropout(keys: &Keys) -> Result<()> {
    if keys.number("attention_dropout")?.is_some_and(|rate| rate != 0.0) {
        crate::report::status!("{}: key `attention_dropout` is not used: nothing of attention is dropped", keys.source);
    }
    Ok(())
}

/// Says that a dropout of the residual stream is not used.
pub(super) fn note_residual_dropout(keys: &Keys, key: &str) -> Result<()> {
    if keys.number(key)?.is_some_and(|rate| rate != 0.0) {
        crate::report::status!("{}: key `{key}` is not used: nothing of the base is dropped", keys.source);
    }
    Ok(())
}

/// The projections that `attention_bias` and `mlp_bias` give a bias: all of attention, all of the MLP.
pub(super) fn attention_and_mlp_biases(keys: &Keys) -> Result<BTreeSet<Projection>> {
    let mut biases = BTreeSet::new();
    if keys.flag("attention_bias")?.unwrap_or(false) {
        biases.extend(Projection::ATTENTION);
    }
    if keys.flag("mlp_bias")?.unwrap_or(false) {
        biases.extend(Projection::MLP);
    }
    Ok(biases)
}

/// Refuses `key` where it is true.
pub(super) fn only_false(keys: &Keys, key: &str) -> Result<()> {
    match keys.flag(key)? {
        Some(true) => Err(keys.wrong(key, "false, the only supported value")),
        _ => Ok(()),
    }
}

/// Refuses another activation than silu, which transformers calls swish too.
pub(super) fn only_silu(keys: &Keys) -> Result<()> {
    match keys.text("hidden_act")?.is_some_and(|act| !["silu", "swish"].contains(&act)) {
        true => Err(keys.wrong("hidden_act", "\"silu\", the only supported activation")),
        false => Ok(()),
    }
}

/// Refuses layers of another kind than full attention.
pub(super) fn only_full_attention(keys: &Keys) -> Result<()> {
    let full = |list: &Vec<Value>| list.iter().all(|kind| kind == FULL);
    match keys.get("layer_types").is_some_and(|value| !value.as_array().is_some_and(full)) {
        true => Err(keys.wrong("layer_types", "only \"full_attention\"")),
        false => Ok(()),
    }
}

/// The window of transformers where a config has no key for it.
const DEFAULT_WINDOW: usize = 4096;
/// The first layer with a window where a config of Qwen does not say.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// The value of `sliding_window`: null is no window, and an absent key one of [`DEFAULT_WINDOW`] tokens.
pub(super) fn window(keys: &Keys) -> Result<Option<usize>> {
    match keys.map.get("sliding_window") {
        None => Ok(Some(DEFAULT_WINDOW)),
        Some(Value::Null) => Ok(None),
        Some(_) => match keys.whole("sliding_window")? {
            Some(window) if (1..=MAX_DIMENSION).contains(&window) => Ok(Some(window)),
            _ => Err(keys.wrong("sliding_window", &format!("null, or a whole number from 1 to {MAX_DIMENSION}"))),
        },
    }
}

/// For each layer, whether it has a sliding window; none without `layer_types`.
pub(super) fn layer_types(keys: &Keys, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = keys.get("layer_types") else { return Ok(None) };
    let expected = format!("a list of {num_layers}, as `num_hidden_layers` has it, each {FULL:?} or {SLIDING:?}");
    let kind = |kind: &Value| match kind.as_str() {
        Some(FULL) => Some(false),
        Some(SLIDING) => Some(true),
        _ => None,
    };
    let kinds = value.as_array().and_then(|list| list.iter().map(kind).collect::<Option<Vec<bool>>>());
    match kinds.filter(|kinds| kinds.len() == num_layers) {
        Some(kinds) => Ok(Some(kinds)),
        None => Err(keys.wrong("layer_types", &expected)),
    }
}

/// The layers of a Qwen: with `use_sliding_window` those slide that `layer_types` lists or, without a list, those from
/// `max_window_layers` on. `sliding_window` stands in every published config and means nothing without that key.
pub(super) fn windows_of_layers(keys: &Keys, arch: &Arch) -> Result<Vec<LayerArch>> {
    let used = keys.flag("use_sliding_window")?.unwrap_or(false);
    keys.known("sliding_window");
    let window = if used { window(keys)? } else { None };
    let first = keys.whole("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    let sliding = match layer_types(keys, arch.num_layers)? {
        Some(kinds) if window.is_none() && kinds.contains(&true) => {
            let expected =
                format!("only {FULL:?}, or a window: `use_sliding_window` true and `sliding_window` a number");
            return Err(keys.wrong("layer_types", &expected));
        }
        Some(kinds) => kinds,
        None => (0..arch.num_layers).map(|layer| window.is_some() && layer >= first).collect(),
    };
    let layer = |(index, sliding)| LayerArch { window: window.filter(|_| sliding), ..arch.layer(index).clone() };
    let layers: Vec<LayerArch> = sliding.into_iter().enumerate().map(layer).collect();
    let same = layers.windows(2).all(|pair| pair[0] == pair[1]);
    Ok(if same { layers[..1].to_vec() } else { layers })
}

/// The keys that [`windows_of_layers`] reads.
pub(super) fn write_windows(arch: &Arch, map: &mut Map<String, Value>) {
    let windows: Vec<Option<usize>> = (0..arch.num_layers).map(|layer| arch.layer(layer).window).collect();
    let window = windows.iter().find_map(|window| *window);
    map.insert("use_sliding_window".into(), window.is_some().into());
    let Some(window) = window else { return };
    map.insert("sliding_window".into(), window.into());
    let kinds: Vec<&str> = windows.iter().map(|window| if window.is_some() { SLIDING } else { FULL }).collect();
    // For programs that read no list; right where the layers with a window are the last ones.
    let full = windows.iter().take_while(|window| window.is_none()).count();
    map.insert("max_window_layers".into(), full.into());
    map.insert("layer_types".into(), kinds.into());
}

/// One id or a list of ids. Absent: the default of transformers where the vocabulary has it; null: none.
fn token_ids(keys: &Keys, key: &str, default: Option<u32>, vocab_size: usize) -> Result<Vec<u32>> {
    let Some(value) = keys.map.get(key) else {
        return Ok(default.filter(|&id| (id as usize) < vocab_size).into_iter().collect());
    };
    let expected = || keys.wrong(key, "a token id or a list of them");
    let one = |value: &Value| value.as_i64().ok_or_else(expected);
    let ids: Vec<i64> = match value {
        Value::Null => vec![],
        Value::Array(list) => list.iter().map(one).collect::<Result<_>>()?,
        value => vec![one(value)?],
    };
    // transformers loads ids of another vocabulary: they can be neither given nor drawn.
    let (here, foreign): (Vec<i64>, Vec<i64>) = ids.into_iter().partition(|id| (0..vocab_size as i64).contains(id));
    if !foreign.is_empty() {
        crate::report::status!(
            "{}: key `{key}`: {foreign:?} is outside the vocabulary ({vocab_size} tokens) and is not used",
            keys.source
        );
    }
    here.into_iter().map(|id| u32::try_from(id).map_err(|_| expected())).collect()
}
