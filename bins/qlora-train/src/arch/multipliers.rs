//! Scalars that a family multiplies by (Granite), and where the model applies them: each is folded into a number that is
//! there anyway, so that no operation but the embedding knows of them.
//!
//! - The residual stream is held divided by the residual multiplier m: what a branch adds is then added as it is. A norm
//!   reads x / m instead of x, and RMSNorm of that with eps / m² is RMSNorm of x with eps.
//! - The embedding begins that stream, times its multiplier over m.
//! - Scores q·k·s with s other than 1 / √D: queries and keys are each multiplied by √(s·√D) as they turn, by the tables
//!   of cosines and sines.
//! - Logits are linear in the weight of the last norm, which is divided by their divisor.

use super::Arch;
use super::config::shortest;
use crate::error::Result;
use crate::files::json::Keys;
use serde_json::{Map, Value};

/// Scalars that some families multiply by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    pub embedding: f32,
    /// The scale of the scores; `None`: 1 / √head_dim.
    pub attention: Option<f32>,
    /// Both branches are multiplied by it before the residual is added.
    pub residual: f32,
    /// Logits are divided by it.
    pub logits_scaling: f32,
}

impl Multipliers {
    pub const NONE: Self = Self { embedding: 1.0, attention: None, residual: 1.0, logits_scaling: 1.0 };

    /// The keys of Granite's config.json, each 1 where it is absent. Refused: what is not above 0, and what f32 cannot
    /// hold.
    pub(super) fn from_keys(keys: &Keys) -> Result<Self> {
        let read = |key: &str| match keys.number(key)?.unwrap_or(1.0) as f32 {
            x if x.is_normal() && x > 0.0 => Ok(x),
            _ => Err(keys.wrong(key, "a number above 0 that f32 can hold")),
        };
        let multipliers = Self {
            embedding: read("embedding_multiplier")?,
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

impl Arch {
    /// What the rows of the embedding are multiplied by, to begin the residual stream as the model holds it.
    pub fn stream_scale(&self) -> f32 {
        self.multipliers.embedding / self.multipliers.residual
    }

    /// eps of the norms of the residual stream as the model holds it.
    pub fn stream_eps(&self) -> f32 {
        self.norm.eps / (self.multipliers.residual * self.multipliers.residual)
    }

    /// What queries and keys are multiplied by as they turn.
    pub fn rope_scale(&self) -> f64 {
        let of = |scale: f32| (f64::from(scale) * (self.head_dim as f64).sqrt()).sqrt();
        self.multipliers.attention.map_or(1.0, of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::synthetic::tiny_arch;

    #[test]
    fn without_multipliers_nothing_changes_a_bit() {
        let arch = tiny_arch();
        assert_eq!((arch.stream_scale(), arch.stream_eps(), arch.rope_scale()), (1.0, arch.norm.eps, 1.0));
    }

    #[test]
    fn multipliers_are_folded_into_the_stream_the_norms_and_the_rotation() {
        let multipliers = Multipliers { embedding: 12.0, attention: Some(0.125), residual: 0.25, logits_scaling: 8.0 };
        let arch = Arch { multipliers, head_dim: 16, ..tiny_arch() };
        assert_eq!((arch.stream_scale(), arch.stream_eps()), (48.0, arch.norm.eps * 16.0));
        assert_eq!(arch.rope_scale(), 0.5f64.sqrt());
    }
}
