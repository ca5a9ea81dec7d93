//! Rotary position settings of config.json, in the spelling of transformers v4 (`rope_theta` and `rope_scaling`) and
//! of v5 (`rope_parameters`).

pub use qlora_kernels::reference::RopeScaling;
use serde_json::{Map, Value, json};

use super::json::Keys;
use crate::error::Result;
use crate::refuse;

/// What transformers takes when a config names none.
const DEFAULT_THETA: f64 = 10_000.0;

/// Every key that some rope type of transformers reads. A key outside this list is an error; one that is in it but is
/// not read by the type at hand only warns, as it does there.
const KNOWN_KEYS: [&str; 16] = [
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
];

/// Base wavelength and how the frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

impl Rope {
    pub(super) fn from_keys(config: &Keys, max_position_embeddings: usize) -> Result<Self> {
        let (v4, v5) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
        let nested = match (v4, v5) {
            (Some(v4), Some(v5)) if v4.map != v5.map => refuse!(
                "{}: keys `rope_scaling` and `rope_parameters` contradict each other; expected one of them: remove \
                 the one that does not belong to this model",
                config.source
            ),
            (v4, v5) => v5.or(v4),
        };
        let empty = Map::new();
        let nested = nested.unwrap_or(Keys { source: config.source.clone(), map: &empty });
        if let Some(key) = nested.map.keys().find(|key| !KNOWN_KEYS.contains(&key.as_str())) {
            return Err(nested.wrong(key, "no such key: its effect on the rotary positions is not known"));
        }
        for keys in [config, &nested] {
            if keys.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
                return Err(keys.wrong("partial_rotary_factor", "1: partial rotary positions are not supported"));
            }
        }
        let theta = match (config.number("rope_theta")?, nested.number("rope_theta")?) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(nested.wrong("rope_theta", &format!("{outer}, as the key of that name outside says")));
            }
            (outer, inner) => inner.or(outer).unwrap_or(DEFAULT_THETA),
        };
        if theta <= 0.0 {
            let holder = if nested.get("rope_theta").is_some() { &nested } else { config };
            return Err(holder.wrong("rope_theta", "a number above 0"));
        }
        Ok(Self { theta, scaling: scaling_from_keys(config, &nested, max_position_embeddings)? })
    }

    /// The v5 `rope_parameters` object.
    pub(super) fn to_json(self) -> Map<String, Value> {
        let value = match self.scaling {
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
        };
        let Value::Object(mut map) = value else { unreachable!("json! of braces is an object") };
        map.insert("rope_theta".to_owned(), json!(self.theta));
        map
    }
}

fn scaling_from_keys(config: &Keys, nested: &Keys, max_position_embeddings: usize) -> Result<RopeScaling> {
    let (new, old) = (nested.text("rope_type")?, nested.text("type")?);
    if let (Some(new), Some(_)) = (new, old.filter(|old| Some(*old) != new)) {
        return Err(nested.wrong("type", &format!("{new:?}, as `rope_type` says")));
    }
    let key = if new.is_some() { "rope_type" } else { "type" };
    let positive = |key: &str| match nested.number(key)? {
        Some(x) if x > 0.0 => Ok(x),
        _ => Err(nested.wrong(key, "a number above 0")),
    };
    let (scaling, used): (RopeScaling, &[&str]) = match new.or(old).unwrap_or("default") {
        "default" => (RopeScaling::Default, &[]),
        "linear" => (RopeScaling::Linear { factor: positive("factor")? }, &["factor"]),
        "llama3" => {
            // transformers prefers the key outside, and falls back on the longest position.
            let outer = config.whole("original_max_position_embeddings")?;
            let inner = nested.whole("original_max_position_embeddings")?;
            let scaling = RopeScaling::Llama3 {
                factor: positive("factor")?,
                low_freq_factor: positive("low_freq_factor")?,
                high_freq_factor: positive("high_freq_factor")?,
                original_max_position_embeddings: outer.or(inner).unwrap_or(max_position_embeddings),
            };
            if let (Some(outer), Some(_)) = (outer, inner.filter(|inner| Some(*inner) != outer)) {
                let expected = format!("{outer}, as the key of that name outside says");
                return Err(nested.wrong("original_max_position_embeddings", &expected));
            }
            check_llama3(scaling, nested)?;
            let used = &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
            (scaling, used)
        }
        _ => return Err(nested.wrong(key, "a supported rope type: \"default\", \"linear\" or \"llama3\"")),
    };
    for key in nested.map.keys().map(String::as_str) {
        if !used.contains(&key) && !["rope_type", "type", "rope_theta", "partial_rotary_factor"].contains(&key) {
            tracing::warn!("{}: key `{key}` has no meaning for this rope type and is not used", nested.source);
        }
    }
    Ok(scaling)
}

fn check_llama3(scaling: RopeScaling, nested: &Keys) -> Result<()> {
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, original_max_position_embeddings, .. } = scaling {
        if high_freq_factor <= low_freq_factor {
            let expected = format!("a number above low_freq_factor ({low_freq_factor})");
            return Err(nested.wrong("high_freq_factor", &expected));
        }
        if original_max_position_embeddings == 0 {
            return Err(nested.wrong("original_max_position_embeddings", "a whole number above 0"));
        }
    }
    Ok(())
}
