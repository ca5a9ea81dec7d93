//! Scalars that a family multiplies by (Granite), and where the model applies them: each is folded into a number that
//! is there anyway, so that no operation but the embedding knows of them.
//!
//! - The residual stream is held divided by the residual multiplier m: what a branch adds is then added as it is. A
//!   norm reads x / m instead of x, and RMSNorm of that with eps / m² is RMSNorm of x with eps.
//! - The embedding begins that stream, times its multiplier over m.
//! - Scores q·k·s with s other than 1 / √D: queries and keys are each multiplied by √(s·√D) as they are rotated, by the
//!   tables of cosines and sines.
//! - Logits are linear in the weight of the last norm, which is divided by their divisor.

use crate::error::Result;
use crate::files::json::{Keys, shortest};
use serde_json::{Map, Value};

/// Scalars that some families multiply by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    pub embedding: f32,
    /// That multiplier is rounded to the activations' type before it is used (Gemma).
    pub embedding_is_rounded: bool,
    /// The scale of the scores; `None`: 1 / √head_dim.
    pub attention: Option<f32>,
    /// Both branches are multiplied by it before the residual is added.
    pub residual: f32,
    /// Logits are divided by it.
    pub logits_scaling: f32,
}

impl Multipliers {
    pub const NONE: Self =
        Self { embedding: 1.0, embedding_is_rounded: false, attention: None, residual: 1.0, logits_scaling: 1.0 };

    /// The factor of the embedding's rows at the beginning of the residual stream, as the model holds it; `rounded`
    /// rounds a number to the activations' type.
    pub fn stream_scale(&self, rounded: impl Fn(f32) -> f32) -> f32 {
        let embedding = if self.embedding_is_rounded { rounded(self.embedding) } else { self.embedding };
        embedding / self.residual
    }

    /// The eps of the norms of the residual stream as the model holds it, where the family's is `eps`.
    pub fn stream_eps(&self, eps: f32) -> f32 {
        eps / (self.residual * self.residual)
    }

    /// The factor of queries and keys as they are rotated.
    pub fn rope_scale(&self, head_dim: usize) -> f64 {
        let of = |scale: f32| (f64::from(scale) * (head_dim as f64).sqrt()).sqrt();
        self.attention.map_or(1.0, of)
    }

    /// The keys of Granite's config.json, each 1 where it is absent. Refused: a value that is not above 0, or that
    /// overflows f32.
    pub(super) fn from_keys(keys: &Keys) -> Result<Self> {
        let read = |key: &str| match keys.number(key)?.unwrap_or(1.0) as f32 {
            x if x.is_normal() && x > 0.0 => Ok(x),
            _ => Err(keys.wrong(key, "a number above 0 that f32 can hold")),
        };
        let multipliers = Self {
            embedding: read("embedding_multiplier")?,
            embedding_is_rounded: false,
            attention: Some(read("attention_multiplier")?),
            residual: read("residual_multiplier")?,
            logits_scaling: read("logits_scaling")?,
        };
        Ok(multipliers)
    }

    /// The keys that [`from_keys`](Self::from_keys) reads.
    pub(super) fn insert_into(self, map: &mut Map<String, Value>) {
        for (key, value) in [
            ("embedding_multiplier", self.embedding),
            ("attention_multiplier", self.attention.unwrap_or(1.0)),
            ("residual_multiplier", self.residual),
            ("logits_scaling", self.logits_scaling),
        ] {
            map.insert(key.into(), shortest(value).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_multipliers_nothing_changes_a_bit() {
        let none = Multipliers::NONE;
        assert_eq!((none.stream_scale(f32::round), none.stream_eps(1e-5), none.rope_scale(16)), (1.0, 1e-5, 1.0));
    }

    #[test]
    fn multipliers_are_folded_into_the_stream_the_norms_and_the_rotation() {
        let attention = Some(0.125);
        let multipliers =
            Multipliers { embedding: 12.0, attention, residual: 0.25, logits_scaling: 8.0, ..Multipliers::NONE };
        assert_eq!((multipliers.stream_scale(f32::round), multipliers.stream_eps(1e-5)), (48.0, 16e-5));
        assert_eq!(multipliers.rope_scale(16), 0.5f64.sqrt());
        let rounded = Multipliers { embedding: 25.3, embedding_is_rounded: true, ..multipliers };
        assert_eq!(rounded.stream_scale(f32::round), 100.0);
    }
}
