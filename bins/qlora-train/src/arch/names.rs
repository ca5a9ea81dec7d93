//! Names of a family's tensors.

use super::{Input, Projection};

/// Names of tensors in a checkpoint. Those of a layer are below `<layers>.<index>.`.
#[derive(Debug, PartialEq, Eq)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub attention_norms: BranchNorms<&'static str>,
    pub mlp_norms: BranchNorms<&'static str>,
    /// The weights of [`QkNorm`](super::QkNorm), where a family has one.
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// The module of each projection that the family has, below its layer, in the order of [`Projection`]: the
    /// projections of an input lie so in one operand.
    pub projections: &'static [(Projection, &'static str)],
    pub final_norm: &'static str,
    pub head: &'static str,
}

/// The norms of a branch: of its input, and of its output before the residual is added. Every branch has one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchNorms<T> {
    pub input: Option<T>,
    pub output: Option<T>,
}

/// The names of Llama, Mistral and Qwen.
pub static LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    attention_norms: BranchNorms { input: Some("input_layernorm.weight"), output: None },
    mlp_norms: BranchNorms { input: Some("post_attention_layernorm.weight"), output: None },
    q_norm: "self_attn.q_norm.weight",
    k_norm: "self_attn.k_norm.weight",
    projections: &[
        (Projection::Q, "self_attn.q_proj"),
        (Projection::K, "self_attn.k_proj"),
        (Projection::V, "self_attn.v_proj"),
        (Projection::O, "self_attn.o_proj"),
        (Projection::Gate, "mlp.gate_proj"),
        (Projection::Up, "mlp.up_proj"),
        (Projection::Down, "mlp.down_proj"),
    ],
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
};

/// The names of OLMo 2 and 3, which normalize what a branch gives.
pub static OLMO2_NAMES: TensorNames = TensorNames {
    attention_norms: BranchNorms { input: None, output: Some("post_attention_layernorm.weight") },
    mlp_norms: BranchNorms { input: None, output: Some("post_feedforward_layernorm.weight") },
    ..LLAMA_NAMES
};

/// The names of Gemma 2 and 3, which normalize what a branch reads and what it gives.
pub static GEMMA_NAMES: TensorNames = TensorNames {
    attention_norms: BranchNorms {
        input: Some("input_layernorm.weight"),
        output: Some("post_attention_layernorm.weight"),
    },
    mlp_norms: BranchNorms {
        input: Some("pre_feedforward_layernorm.weight"),
        output: Some("post_feedforward_layernorm.weight"),
    },
    ..LLAMA_NAMES
};

/// The names of Hunyuan, whose norms of queries and keys are called otherwise.
pub static HUNYUAN_NAMES: TensorNames =
    TensorNames { q_norm: "self_attn.query_layernorm.weight", k_norm: "self_attn.key_layernorm.weight", ..LLAMA_NAMES };

/// The names of Granite 4, which has gate and up in one tensor.
pub static GRANITE4_NAMES: TensorNames = TensorNames {
    projections: &[
        (Projection::Q, "self_attn.q_proj"),
        (Projection::K, "self_attn.k_proj"),
        (Projection::V, "self_attn.v_proj"),
        (Projection::O, "self_attn.o_proj"),
        (Projection::GateUp, "shared_mlp.input_linear"),
        (Projection::Down, "shared_mlp.output_linear"),
    ],
    ..LLAMA_NAMES
};

/// The names of Phi-3, which has q, k and v in one tensor, and gate and up.
pub static PHI3_NAMES: TensorNames = TensorNames {
    projections: &[
        (Projection::Qkv, "self_attn.qkv_proj"),
        (Projection::O, "self_attn.o_proj"),
        (Projection::GateUp, "mlp.gate_up_proj"),
        (Projection::Down, "mlp.down_proj"),
    ],
    ..LLAMA_NAMES
};

/// The module that a weight is of.
fn module_of(name: &'static str) -> &'static str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl TensorNames {
    /// The projections that the family has.
    pub fn all(&self) -> impl Iterator<Item = Projection> {
        self.projections.iter().map(|(projection, _)| *projection)
    }

    /// The projections that read one input.
    pub fn of_input(&self, input: Input) -> impl Iterator<Item = Projection> {
        self.all().filter(move |projection| projection.input() == input)
    }

    /// The norms of both branches.
    pub fn norms(&self) -> impl Iterator<Item = BranchNorms<&'static str>> {
        [self.attention_norms, self.mlp_norms].into_iter()
    }

    /// The module of the embedding: "model.embed_tokens".
    pub fn embedding_module(&self) -> &'static str {
        module_of(self.embedding)
    }

    /// The module of the output layer: "lm_head".
    pub fn head_module(&self) -> &'static str {
        module_of(self.head)
    }

    /// The path below a layer: "self_attn.q_proj" …
    pub fn path(&self, projection: Projection) -> &'static str {
        let entry = self.projections.iter().find(|(named, _)| *named == projection);
        entry.expect("a projection that the family has").1
    }

    /// The last parts of all paths, for messages: "q_proj, k_proj, …"
    pub fn short_names(&self) -> String {
        self.all().map(|projection| self.short(projection)).collect::<Vec<_>>().join(", ")
    }

    /// The last part of the path, which PEFT's `target_modules` uses: "q_proj" …
    pub fn short(&self, projection: Projection) -> &'static str {
        let path = self.path(projection);
        path.rsplit_once('.').map_or(path, |(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::FAMILIES;

    #[test]
    fn every_family_has_a_projection_of_every_input_and_norms_where_the_model_reads_them() {
        for names in [&LLAMA_NAMES, &OLMO2_NAMES, &GEMMA_NAMES, &GRANITE4_NAMES, &HUNYUAN_NAMES, &PHI3_NAMES] {
            let listed: Vec<Projection> = Input::ALL.iter().flat_map(|input| names.of_input(*input)).collect();
            assert_eq!(listed, names.all().collect::<Vec<_>>());
            assert!(listed.is_sorted() && Input::ALL.iter().all(|input| names.of_input(*input).count() > 0));
            // At least one norm lies between a branch and the next.
            let [attention, mlp] = [names.attention_norms, names.mlp_norms];
            assert!(attention.output.is_some() || mlp.input.is_some());
            assert!(mlp.output.is_some() || attention.input.is_some());
        }
        assert!(FAMILIES.len() > 1);
    }
}
