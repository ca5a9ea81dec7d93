//! Rotary position settings of config.json, in the spelling of transformers v4 (`rope_theta` and `rope_scaling`) and
//! of v5 (`rope_parameters`).

pub use qlora_kernels::rope::RopeScaling;
use serde_json::{Map, Value, json};

use crate::bail_usage;
use crate::error::Result;
use crate::files::json::{Keys, shortest};

/// Every key that some rope type of transformers reads. A key outside this list is an error; one that is in it but is
/// not read by the type at hand only warns, as it does there.
const KNOWN_KEYS: [&str; 20] = [
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    // The first models that YaRN stretched have these; transformers reads neither.
    "finetuned",
    ATTENTION_FACTOR,
    QUERY_GROWTH,
    "max_position_embeddings",
];

/// Factor of attention by which vLLM and llama.cpp stretch with YaRN, and transformers does not.
const ATTENTION_FACTOR: &str = "attn_factor";

/// Key for the growth of queries beyond the trained context (Ministral 3, Llama 4).
const QUERY_GROWTH: &str = "llama_4_scaling_beta";

/// True if queries grow with their position beyond the trained context.
pub(super) fn queries_grow(config: &Keys) -> Result<bool> {
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(nested) = config.object(key)? {
            return Ok(nested.number(QUERY_GROWTH)?.is_some_and(|beta| beta != 0.0));
        }
    }
    // The default of the family.
    Ok(true)
}

/// The two kinds of layers in `layer_types`, and of rotary positions.
pub(super) const FULL: &str = "full_attention";
pub(super) const SLIDING: &str = "sliding_attention";

/// Base wavelength, and the scaling of the frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// The share of a head that is rotated, its first elements.
    pub partial: f64,
}

impl Rope {
    pub fn new(theta: f64, scaling: RopeScaling) -> Self {
        Self { theta, scaling, partial: 1.0 }
    }

    /// Elements that are rotated of a head of `head_dim`.
    pub fn rotary_dim(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial) as usize
    }

    /// `default_theta` is the family's, for a config that names none; `partial_is_known`, whether the family reads
    /// `partial_rotary_factor`.
    pub(super) fn from_keys(
        config: &Keys,
        max_position_embeddings: usize,
        default_theta: f64,
        partial_is_known: bool,
    ) -> Result<Self> {
        let (v4, v5) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
        let nested = match (v4, v5) {
            (Some(v4), Some(v5)) if v4.map != v5.map => bail_usage!(
                "{}: keys `rope_scaling` and `rope_parameters` contradict each other; expected one of them: remove \
                 the one that does not belong to this model",
                config.source
            ),
            (v4, v5) => v5.or(v4),
        };
        let empty = Map::new();
        let nested = nested.unwrap_or(Keys::of(config.source.clone(), &empty));
        Self::from_nested(config, &nested, max_position_embeddings, default_theta, partial_is_known)
    }

    /// The rotary positions of layers without a window, and of those with one; see
    /// [`LayerKeys::ByWindow`](super::LayerKeys::ByWindow).
    pub(super) fn by_window(
        config: &Keys,
        max_position_embeddings: usize,
        default_theta: f64,
        local_theta: Option<(&str, f64)>,
    ) -> Result<[Self; 2]> {
        let kinds = [FULL, SLIDING];
        let local = match local_theta {
            Some((key, default)) => Some(config.number(key)?.unwrap_or(default)),
            None => None,
        };
        let v5 = config.object("rope_parameters")?;
        let Some(v5) = v5.filter(|keys| kinds.iter().any(|kind| keys.map.contains_key(*kind))) else {
            let full = Self::from_keys(config, max_position_embeddings, default_theta, false)?;
            let local = Self::new(local.unwrap_or(full.theta), RopeScaling::Default);
            return match (local.theta > 0.0, local_theta) {
                (false, Some((key, _))) => Err(config.wrong(key, "a number above 0")),
                _ => Ok([full, local]),
            };
        };
        if let Some(key) = v5.map.keys().find(|key| !kinds.contains(&key.as_str())) {
            return Err(v5.wrong(key, &format!("only {FULL:?} and {SLIDING:?}, the kinds of layers")));
        }
        if config.get("rope_scaling").is_some() {
            return Err(config.wrong("rope_scaling", "no such key beside `rope_parameters`: remove one of them"));
        }
        let empty = Map::new();
        let alone = Keys::of(config.source.clone(), &empty);
        let of = |kind: &str, outside: &Keys, default_theta| {
            let nested = v5.object(kind)?.unwrap_or(Keys::of(v5.source.clone(), &empty));
            Self::from_nested(outside, &nested, max_position_embeddings, default_theta, false)
        };
        Ok([of(FULL, config, default_theta)?, of(SLIDING, &alone, local.unwrap_or(default_theta))?])
    }

    /// From the object that holds the settings, `nested`, and the keys outside of it.
    fn from_nested(
        config: &Keys,
        nested: &Keys,
        max_position_embeddings: usize,
        default_theta: f64,
        partial_is_known: bool,
    ) -> Result<Self> {
        if let Some(key) = nested.map.keys().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(nested.wrong(key, "no such key: its effect on the rotary positions is not known"));
        }
        if nested.number(QUERY_GROWTH)?.is_some_and(|beta| beta != 0.0)
            && config.text("model_type")? != Some("ministral3")
        {
            return Err(nested.wrong(QUERY_GROWTH, "no such key, or 0: a \"ministral3\" alone has it"));
        }
        const PARTIAL: &str = "partial_rotary_factor";
        let mut partial = 1.0;
        for keys in [config, nested] {
            let Some(factor) = keys.number(PARTIAL)?.filter(|factor| *factor != 1.0) else { continue };
            if !partial_is_known {
                return Err(keys.wrong(PARTIAL, "1: this family rotates whole heads"));
            }
            if !(factor > 0.0 && factor < 1.0) {
                return Err(keys.wrong(PARTIAL, "a number above 0, at most 1"));
            }
            partial = factor;
        }
        let theta = match (config.number("rope_theta")?, nested.number("rope_theta")?) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(nested.wrong("rope_theta", &format!("{outer}, as the key of that name outside says")));
            }
            (outer, inner) => inner.or(outer).unwrap_or(default_theta),
        };
        if theta <= 0.0 {
            let holder = if nested.get("rope_theta").is_some() { nested } else { config };
            return Err(holder.wrong("rope_theta", "a number above 0"));
        }
        let scaling = scaling_from_keys(config, nested, max_position_embeddings)?;
        if matches!(scaling, RopeScaling::Yarn { .. }) && theta <= 1.0 {
            let holder = if nested.get("rope_theta").is_some() { nested } else { config };
            return Err(holder.wrong("rope_theta", "a number above 1, for rope type \"yarn\""));
        }
        Ok(Self { theta, scaling, partial })
    }

    /// `rope_theta` and `rope_scaling` of transformers v4.
    pub(super) fn to_json_v4(&self) -> (Value, Value) {
        let mut scaling = self.to_json();
        let theta = scaling.remove("rope_theta").unwrap_or(Value::Null);
        let default = self.scaling == RopeScaling::Default && self.partial == 1.0;
        (theta, if default { Value::Null } else { Value::Object(scaling) })
    }

    /// The v5 `rope_parameters` object.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let value = match &self.scaling {
            RopeScaling::Default => json!({"rope_type": "default"}),
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original,
            }),
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: original,
                attention_factor,
                truncate,
            } => json!({
                "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
                "original_max_position_embeddings": original, "attention_factor": attention_factor, "truncate": truncate,
            }),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings: original,
                attention_factor,
            } => json!({
                "rope_type": "longrope", "attention_factor": attention_factor,
                "short_factor": short_factor.iter().map(|&factor| shortest(factor)).collect::<Vec<_>>(),
                "long_factor": long_factor.iter().map(|&factor| shortest(factor)).collect::<Vec<_>>(),
                "original_max_position_embeddings": original,
            }),
        };
        let Value::Object(mut map) = value else { unreachable!("json! of braces is an object") };
        map.insert("rope_theta".to_owned(), json!(self.theta));
        if self.partial != 1.0 {
            map.insert("partial_rotary_factor".to_owned(), json!(self.partial));
        }
        map
    }
}

fn scaling_from_keys(config: &Keys, nested: &Keys, max_position_embeddings: usize) -> Result<RopeScaling> {
    let (new, old) = (nested.text("rope_type")?, nested.text("type")?);
    if let (Some(new), Some(_)) = (new, old.filter(|old| Some(*old) != new)) {
        return Err(nested.wrong("type", &format!("{new:?}, as `rope_type` says")));
    }
    let key = if new.is_some() { "rope_type" } else { "type" };
    let needed = |key: &str| positive(nested, key)?.ok_or_else(|| nested.wrong(key, "a number above 0"));
    let (scaling, used): (RopeScaling, &[&str]) = match new.or(old).unwrap_or("default") {
        "default" => (RopeScaling::Default, &[]),
        "linear" => (RopeScaling::Linear { factor: needed("factor")? }, &["factor"]),
        "llama3" => {
            let scaling = RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_max_position_embeddings: original_context(config, nested, max_position_embeddings)?,
            };
            check_llama3(&scaling, nested)?;
            (scaling, &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
        }
        "yarn" => (yarn(config, nested, max_position_embeddings)?, &YARN_KEYS),
        "longrope" | "su" => (longrope(config, nested, max_position_embeddings)?, &LONGROPE_KEYS),
        _ => {
            let expected = "a supported rope type: \"default\", \"linear\", \"llama3\", \"yarn\" or \"longrope\"";
            return Err(nested.wrong(key, expected));
        }
    };
    for key in nested.map.keys().map(String::as_str) {
        if !used.contains(&key) && !OUTSIDE.contains(&key) {
            crate::report::warning!("{}: key `{key}` has no meaning for this rope type and is not used", nested.source);
        }
    }
    Ok(scaling)
}

/// The context that the model was trained with. transformers prefers the key outside, and falls back on the longest
/// position.
fn original_context(config: &Keys, nested: &Keys, max_position_embeddings: usize) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    let (outer, inner) = (config.whole(KEY)?, nested.whole(KEY)?);
    if let (Some(outer), Some(_)) = (outer, inner.filter(|inner| Some(*inner) != outer)) {
        return Err(nested.wrong(KEY, &format!("{outer}, as the key of that name outside says")));
    }
    match outer.or(inner).unwrap_or(max_position_embeddings) {
        0 => Err(if outer.is_some() { config } else { nested }.wrong(KEY, "a whole number above 0")),
        original => Ok(original),
    }
}

/// Keys of no rope type.
const OUTSIDE: [&str; 6] =
    ["rope_type", "type", "rope_theta", "partial_rotary_factor", QUERY_GROWTH, "max_position_embeddings"];

const YARN_KEYS: [&str; 8] = [
    "factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

/// A number above 0, where there is one.
fn positive(keys: &Keys, key: &str) -> Result<Option<f64>> {
    match keys.number(key)? {
        Some(x) if x > 0.0 => Ok(Some(x)),
        Some(_) => Err(keys.wrong(key, "a number above 0")),
        None => Ok(None),
    }
}

fn yarn(config: &Keys, nested: &Keys, max_position_embeddings: usize) -> Result<RopeScaling> {
    let original = original_context(config, nested, max_position_embeddings)?;
    let factor = positive(nested, "factor")?.unwrap_or(max_position_embeddings as f64 / original as f64);
    let (beta_fast, beta_slow) =
        (positive(nested, "beta_fast")?.unwrap_or(32.0), positive(nested, "beta_slow")?.unwrap_or(1.0));
    if nested.number(ATTENTION_FACTOR)?.is_some_and(|factor| factor != 1.0) {
        let expected = "1, or no such key: vLLM and llama.cpp multiply by it and transformers does not, so that the model \
                        would be another one there; `attention_factor` is the key that says it";
        return Err(nested.wrong(ATTENTION_FACTOR, expected));
    }
    if beta_fast < beta_slow {
        return Err(nested.wrong("beta_fast", &format!("a number of at least beta_slow ({beta_slow})")));
    }
    // transformers takes 0 for none.
    let optional = |key: &str| Ok::<_, crate::error::Error>(nested.number(key)?.filter(|&x| x != 0.0));
    let growth = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention_factor =
        match (positive(nested, "attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) => growth(mscale) / growth(all),
            (None, _, _) => growth(1.0),
        };
    if !(attention_factor > 0.0 && attention_factor.is_finite()) {
        return Err(
            nested.wrong("mscale", &format!("one that scales attention by a number above 0, not {attention_factor}"))
        );
    }
    let truncate = nested.flag("truncate")?.unwrap_or(true);
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_max_position_embeddings: original,
        attention_factor,
        truncate,
    })
}

const LONGROPE_KEYS: [&str; 5] =
    ["short_factor", "long_factor", "factor", "attention_factor", "original_max_position_embeddings"];

fn longrope(config: &Keys, nested: &Keys, max_position_embeddings: usize) -> Result<RopeScaling> {
    let factors = |key: &str| {
        let expected = "a list of numbers above 0, one for every two elements of a head that are rotated";
        let one = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_normal() && *x > 0.0);
        let list = nested.get(key).and_then(Value::as_array);
        let factors = list.and_then(|list| list.iter().map(one).collect::<Option<Vec<f32>>>());
        factors.ok_or_else(|| nested.wrong(key, expected))
    };
    let original = original_context(config, nested, max_position_embeddings)?;
    let factor = positive(nested, "factor")?.unwrap_or(max_position_embeddings as f64 / original as f64);
    let attention_factor = match positive(nested, "attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        // The logarithm of one trained position is 0.
        None => (1.0 + factor.ln() / (original.max(2) as f64).ln()).sqrt(),
    };
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?.into(),
        long_factor: factors("long_factor")?.into(),
        original_max_position_embeddings: original,
        attention_factor,
    })
}

fn check_llama3(scaling: &RopeScaling, nested: &Keys) -> Result<()> {
    if let &RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(nested.wrong("high_freq_factor", &format!("a number above low_freq_factor ({low_freq_factor})")));
    }
    Ok(())
}
