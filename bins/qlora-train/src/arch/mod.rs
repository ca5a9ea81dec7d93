//! Families of models as data. A family is one file that turns its config.json into an [`Arch`]; the model and the
//! backends read the `Arch` and never a config.

mod config;
mod family;
mod llama;
mod names;
mod projection;
mod qwen2;
mod rope;
pub mod shapes;

pub use family::Family;
pub use names::{LLAMA_NAMES, TensorNames};
pub use projection::{Input, Projection};
pub use rope::{Rope, RopeScaling};

use crate::error::Result;
use crate::refuse;
use std::collections::BTreeSet;

/// Every family that can be trained.
pub static FAMILIES: [&Family; 2] = [&llama::FAMILY, &qwen2::FAMILY];

/// What a model computes, and what its tensors are called. Some of it exists so that a family can say what it needs:
/// [`Arch::check_computed`] refuses what no operation computes yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// The entry of [`FAMILIES`] that it came from.
    pub family: &'static Family,
    pub names: &'static TensorNames,
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
    /// What differs between layers, from the first on; a list that is shorter than the model repeats.
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

/// RMSNorm around the two branches of a block, and before the output layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub eps: f32,
    pub weight: NormWeight,
    pub place: NormPlace,
}

impl Norm {
    /// x / rms(x) · w before each branch, as Llama has it.
    pub fn llama(eps: f32) -> Self {
        Self { eps, weight: NormWeight::Plain, place: NormPlace::Before }
    }
}

/// How a norm's weight enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    /// The normalized value is rounded to the activations' type, then multiplied by w.
    Plain,
    /// The normalized value is multiplied by 1 + w in f32, then rounded (Gemma).
    OnePlus,
    /// The normalized value is multiplied by w in f32, then rounded (OLMo 2).
    PlainF32,
}

/// Where the norms of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// On a branch's input
    Before,
    /// On a branch's output, before the residual is added (OLMo 2)
    After,
    /// On both (Gemma)
    Both,
}

/// RMSNorm of the queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Over head_dim, before the rotation (Qwen3)
    Head,
    /// Over the whole width, before the rotation (OLMo 2)
    Width,
    /// Over head_dim, after the rotation (Hunyuan)
    HeadAfterRope,
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// The MLP between its projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate) · up
    GatedSilu,
    /// gelu_tanh(gate) · up
    GatedGeluTanh,
    /// relu(up)², without a gate
    SquaredRelu,
}

/// Scalars that some families multiply by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    pub embedding: f32,
    /// The scale of the scores; `None`: 1 / √head_dim.
    pub attention: Option<f32>,
    /// Both branches are multiplied by it before the residual is added.
    pub residual: f32,
    pub logits: f32,
}

impl Multipliers {
    pub const NONE: Self = Self { embedding: 1.0, attention: None, residual: 1.0, logits: 1.0 };
}

impl Arch {
    /// Width of q and of the attention's output: `num_heads · head_dim`.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of k and of v: `num_kv_heads · head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    pub fn layer(&self, index: usize) -> &LayerArch {
        &self.layers[index % self.layers.len()]
    }

    /// The rotary positions of every layer. [`check_computed`](Self::check_computed) saw to it that there is one kind.
    pub fn rope(&self) -> Rope {
        self.layers[0].rope.expect("an architecture without rotary positions is refused when it is read")
    }

    /// Refuses, by name, what no operation computes. `source` is what errors call the config.
    pub fn check_computed(&self, source: &str) -> Result<()> {
        let rope = self.layers[0].rope;
        let lacking = [
            (self.layers.iter().any(|layer| layer.window.is_some()), "sliding-window attention"),
            (self.layers.iter().any(|layer| layer.rope.is_none()), "layers without rotary positions"),
            (self.layers.iter().any(|layer| layer.rope != rope), "rotary positions that differ between layers"),
            (
                !matches!(self.qk_norm, QkNorm::None | QkNorm::Head),
                "RMSNorm of queries and keys over their whole width or after the rotation",
            ),
            (self.norm.weight != NormWeight::Plain, "RMSNorm that multiplies by 1 + w or in f32"),
            (self.norm.place != NormPlace::Before, "RMSNorm on the output of attention and MLP"),
            (self.activation != Activation::GatedSilu, "another activation than silu(gate) · up"),
            (self.multipliers != Multipliers::NONE, "multipliers of embedding, attention, residual or logits"),
            (self.attention_soft_cap.is_some(), "a soft cap on attention scores"),
            (self.logits_soft_cap.is_some(), "a soft cap on logits"),
        ];
        if let Some((_, what)) = lacking.iter().find(|(lacking, _)| *lacking) {
            refuse!("{source}: a model of type {:?} with {what} is not supported yet", self.family.model_type);
        }
        Ok(())
    }

    /// The names in a layer of the weights `[head_dim]` that normalize queries and keys; `None`: nothing does.
    pub fn qk_norm_names(&self) -> Option<[&'static str; 2]> {
        (self.qk_norm != QkNorm::None).then_some([self.names.q_norm, self.names.k_norm])
    }

    /// Name and shape of every tensor that a checkpoint of this model holds, in the order of the forward pass.
    /// `lm_head` is there unless it is tied to the embedding.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (names, hidden) = (self.names, self.hidden_size);
        let mut tensors = vec![(names.embedding.to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_layers {
            tensors.push((self.layer_tensor(layer, names.input_norm), vec![hidden]));
            for projection in Projection::ALL {
                if projection == Projection::O {
                    let norms = self.qk_norm_names().into_iter().flatten();
                    tensors.extend(norms.map(|name| (self.layer_tensor(layer, name), vec![self.head_dim])));
                }
                if projection == Projection::Gate {
                    tensors.push((self.layer_tensor(layer, names.post_attention_norm), vec![hidden]));
                }
                let (n_out, k_in) = projection.shape(self);
                tensors.push((self.weight_name(layer, projection), vec![n_out, k_in]));
                if self.biases.contains(&projection) {
                    tensors.push((self.bias_name(layer, projection), vec![n_out]));
                }
            }
        }
        tensors.push((names.final_norm.to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push((names.head.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// Parameters of the model, tied ones counted once; `None` where the count overflows 64 bits.
    pub fn num_parameters(&self) -> Option<u64> {
        let one_layer = Self { num_layers: 1, ..self.clone() };
        let (mut layer, mut rest) = (0u64, 0u64);
        for (name, shape) in one_layer.tensors() {
            let in_layer = name.starts_with(&self.layer_tensor(0, ""));
            let sum = if in_layer { &mut layer } else { &mut rest };
            *sum = sum.checked_add(shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?)?;
        }
        layer.checked_mul(self.num_layers as u64)?.checked_add(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::synthetic::tiny_arch;

    #[test]
    fn what_no_operation_computes_is_refused_by_name() {
        let tiny = tiny_arch();
        let (rope, norm) = (tiny.rope(), tiny.norm);
        let first = LayerArch { window: None, rope: Some(rope) };
        let layers = |window, rope| vec![first, LayerArch { window, rope }];
        let other = Rope { theta: 7.0, ..rope };
        let multipliers = Multipliers { residual: 0.5, ..Multipliers::NONE };
        let cases = [
            (Arch { layers: layers(Some(8), Some(rope)), ..tiny.clone() }, "sliding-window"),
            (Arch { layers: layers(None, None), ..tiny.clone() }, "without rotary"),
            (Arch { layers: layers(None, Some(other)), ..tiny.clone() }, "differ between layers"),
            (Arch { qk_norm: QkNorm::Width, ..tiny.clone() }, "queries and keys"),
            (Arch { qk_norm: QkNorm::HeadAfterRope, ..tiny.clone() }, "after the rotation"),
            (Arch { norm: Norm { weight: NormWeight::OnePlus, ..norm }, ..tiny.clone() }, "1 + w"),
            (Arch { norm: Norm { place: NormPlace::Both, ..norm }, ..tiny.clone() }, "on the output"),
            (Arch { activation: Activation::GatedGeluTanh, ..tiny.clone() }, "activation"),
            (Arch { multipliers, ..tiny.clone() }, "multipliers"),
            (Arch { attention_soft_cap: Some(50.0), ..tiny.clone() }, "attention scores"),
            (Arch { logits_soft_cap: Some(30.0), ..tiny.clone() }, "on logits"),
        ];
        tiny.check_computed("x").unwrap();
        for (arch, what) in cases {
            let error = arch.check_computed("config.json").unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("config.json") && error.contains("llama"), "{error}");
        }
    }

    #[test]
    fn a_list_of_layers_that_is_shorter_than_the_model_repeats() {
        let local = LayerArch { window: Some(4), rope: None };
        let full = LayerArch { window: None, rope: None };
        let arch = Arch { layers: vec![local, local, full], ..tiny_arch() };
        let windows: Vec<_> = (0..7).map(|layer| arch.layer(layer).window).collect();
        assert_eq!(windows, [Some(4), Some(4), None, Some(4), Some(4), None, Some(4)]);
    }
}
