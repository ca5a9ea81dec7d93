//! An architecture: what a model computes and how large it is, as data.

use super::{Activation, Input, Multipliers, Projection, Rope, TensorNames, Wrapper};
use crate::bail_usage;
use crate::error::Result;
use crate::files::json::Keys;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// Models that share a config.json and what it means.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of config.json
    pub model_type: &'static str,
    /// The entry of `architectures`
    pub architecture: &'static str,
    /// For messages: the models that people know.
    pub models: &'static str,
    pub(crate) read: fn(&Keys) -> Result<Arch>,
    pub(crate) layer_keys: LayerKeys,
    /// It reads `partial_rotary_factor`.
    pub(crate) rotates_a_part: bool,
    /// The key that changes, in a way that is not implemented here, how rows longer than `max_position_embeddings` are
    /// computed.
    pub(crate) beyond_positions: Option<&'static str>,
    /// Adds to config.json what [`config::write`] leaves to the family.
    pub(crate) write: fn(&Arch, &mut Map<String, Value>),
}

/// The kinds of layers that config.json describes.
#[derive(Clone, Copy, Debug)]
pub enum LayerKeys {
    /// Rotary positions are of one kind. The family itself reads other differences between layers.
    Alike,
    /// Some layers have the window `sliding_window`: those that `layer_types` lists, or all but each `full_each`th,
    /// which may have a key. They have rotary positions of their own, below the names of the two kinds of layers in
    /// `rope_parameters`. In transformers v4 these are not scaled, and have the theta of other layers, or one with the
    /// key and the default of `local_theta`.
    ByWindow { full_each: usize, full_each_key: Option<&'static str>, local_theta: Option<(&'static str, f64)> },
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// The arithmetic of a model and the names of its tensors. Some of it exists so that a family can name what it needs:
/// [`Arch::check_computed`] refuses what no operation computes yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// The entry of [`FAMILIES`](super::FAMILIES) that it came from.
    pub family: &'static Family,
    pub names: &'static TensorNames,
    /// The class around it, where it is the text model of a larger one.
    pub wrapper: Option<&'static Wrapper>,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub norm: Norm,
    pub qk_norm: QkNorm,
    /// Projections that add a bias.
    pub biases: BTreeSet<Projection>,
    /// The properties of each layer, from the first on; a list that is shorter than the model repeats.
    pub layers: Vec<LayerArch>,
    pub activation: Activation,
    pub multipliers: Multipliers,
    /// Attention scores are bounded by `cap · tanh(score / cap)`.
    pub attention_soft_cap: Option<f32>,
    /// Logits are bounded by `cap · tanh(logit / cap)`.
    pub logits_soft_cap: Option<f32>,
    /// The output layer is the embedding.
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    /// In the file's order; empty where config.json says null.
    pub eos_token_ids: Vec<u32>,
}

/// RMSNorm around the two branches of a block and before the output layer. Which of them a family has, its
/// [`TensorNames`] say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub eps: f32,
    pub weight: NormWeight,
}

/// The use of a norm's weight. The product is computed in f32 and rounded once, also where transformers rounds before
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    /// x / rms(x) · w
    Plain,
    /// x / rms(x) · (1 + w) (Gemma)
    OnePlus,
}

/// RMSNorm of the queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Over head_dim, before the rotation (Qwen3)
    Head,
    /// Over head_dim, after the rotation (Hunyuan)
    HeadRotated,
    /// Over the whole width, before the rotation (OLMo 2)
    Width,
}

/// The properties of one layer that may differ from those of others.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerArch {
    /// Keys that a query sees, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// `None`: a layer without rotary positions.
    pub rope: Option<Rope>,
}

impl LayerArch {
    /// Full attention with one kind of rotary positions in every layer.
    pub fn uniform(rope: Rope) -> Vec<Self> {
        vec![Self { window: None, rope: Some(rope) }]
    }
}

impl Arch {
    /// Width of q and of the attention's output: `num_heads · head_dim`.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Refuses rows of more tokens than this model is computed for.
    pub fn check_positions(&self, longest: usize) -> Result<()> {
        let most = self.max_position_embeddings;
        match self.family.beyond_positions.filter(|_| longest > most) {
            Some(key) => bail_usage!(
                "rows reach {longest} tokens, expected at most {most}, the trained context: what a {} model does beyond it \
                 (`{key}`) is not computed here; set `max_length` to {most}, and `too_long` to what happens to longer rows",
                self.family.model_type
            ),
            None => Ok(()),
        }
    }

    /// Width of k and of v: `num_kv_heads · head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub fn layer(&self, index: usize) -> &LayerArch {
        &self.layers[index % self.layers.len()]
    }

    /// The rotary positions of the first layer that has them. [`check_computed`](Self::check_computed) saw to it that
    /// one has.
    pub fn rope(&self) -> Rope {
        let first = self.layers.iter().find_map(|layer| layer.rope.clone());
        first.expect("an architecture without rotary positions is refused when it is read")
    }

    /// Every kind of rotary positions that a layer has, each once, in the order of the layers.
    pub fn ropes(&self) -> Vec<Rope> {
        let mut ropes = Vec::new();
        for rope in self.layers.iter().filter_map(|layer| layer.rope.as_ref()) {
            if !ropes.contains(rope) {
                ropes.push(rope.clone());
            }
        }
        ropes
    }

    /// Refuses, by name, what no operation computes. `source` is what errors call the config.
    pub fn check_computed(&self, source: &str) -> Result<()> {
        let not_rotated = |layer: &LayerArch| layer.rope.is_none();
        let lacking = [
            (self.layers.iter().all(not_rotated), "no layer with rotary positions"),
            (
                self.multipliers.attention.is_some() && self.layers.iter().any(not_rotated),
                "a multiplier of attention in layers without rotary positions",
            ),
            (
                self.multipliers.attention.is_some() && self.ropes().iter().any(|rope| rope.partial != 1.0),
                "a multiplier of attention in heads that are rotated in part",
            ),
            (
                self.multipliers.attention.is_some() && self.qk_norm == QkNorm::HeadRotated,
                "a multiplier of attention in heads that are normalized after the rotation",
            ),
            (
                self.multipliers.residual != 1.0 && self.names.norms().any(|norm| norm.input.is_none()),
                "a multiplier of branches whose input is not normalized",
            ),
        ];
        if let Some((_, what)) = lacking.iter().find(|(lacking, _)| *lacking) {
            bail_usage!("{source}: a model of type {:?} with {what} is not supported yet", self.family.model_type);
        }
        Ok(())
    }
}

impl Input {
    pub fn width(self, arch: &Arch) -> usize {
        match self {
            Self::Attention | Self::Mlp => arch.hidden_size,
            Self::Heads => arch.q_dim(),
            Self::Activated => arch.intermediate_size,
        }
    }
}

impl Projection {
    /// `(n_out, k_in)`: the weight is stored row-major with these dimensions.
    pub fn shape(self, arch: &Arch) -> (usize, usize) {
        let n_out = match self {
            Self::Q => arch.q_dim(),
            Self::K | Self::V => arch.kv_dim(),
            Self::Qkv => arch.q_dim() + 2 * arch.kv_dim(),
            Self::O | Self::Down => arch.hidden_size,
            Self::Gate | Self::Up => arch.intermediate_size,
            Self::GateUp => 2 * arch.intermediate_size,
        };
        (n_out, self.input().width(arch))
    }
}

#[cfg(test)]
mod tests;
