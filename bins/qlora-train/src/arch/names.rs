//! Names of a family's tensors.

use super::{Arch, Projection};

/// Names of tensors in a checkpoint. Those of a layer are below `<layers>.<index>.`.
#[derive(Debug, PartialEq, Eq)]
pub struct TensorNames {
    pub embedding: &'static str,
    pub layers: &'static str,
    pub input_norm: &'static str,
    pub post_attention_norm: &'static str,
    /// The weights of [`QkNorm`](super::QkNorm), where a family has one.
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    /// The module of each projection, below its layer.
    pub projections: [(Projection, &'static str); 7],
    pub final_norm: &'static str,
    pub head: &'static str,
}

/// The names of Llama, Mistral and Qwen.
pub static LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    input_norm: "input_layernorm.weight",
    post_attention_norm: "post_attention_layernorm.weight",
    q_norm: "self_attn.q_norm.weight",
    k_norm: "self_attn.k_norm.weight",
    projections: [
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

impl TensorNames {
    /// The path below a layer: "self_attn.q_proj" …
    pub fn path(&self, projection: Projection) -> &'static str {
        let entry = self.projections.iter().find(|(named, _)| *named == projection);
        entry.expect("a family names every projection").1
    }

    /// The last part of the path, which PEFT's `target_modules` uses: "q_proj" …
    pub fn short(&self, projection: Projection) -> &'static str {
        let path = self.path(projection);
        path.rsplit_once('.').map_or(path, |(_, name)| name)
    }
}

impl Arch {
    /// "model.layers.0."
    pub(super) fn layer_path(&self, layer: usize) -> String {
        format!("{}.{layer}.", self.names.layers)
    }

    /// A tensor of one layer by its name there.
    pub fn layer_tensor(&self, layer: usize, name: &str) -> String {
        self.layer_path(layer) + name
    }

    /// The module of a projection: "model.layers.0.self_attn.q_proj".
    pub fn module(&self, layer: usize, projection: Projection) -> String {
        self.layer_path(layer) + self.names.path(projection)
    }

    pub fn weight_name(&self, layer: usize, projection: Projection) -> String {
        self.module(layer, projection) + ".weight"
    }

    pub fn bias_name(&self, layer: usize, projection: Projection) -> String {
        self.module(layer, projection) + ".bias"
    }

    /// The layer and projection of a module's path, the reverse of [`module`](Self::module).
    pub fn find(&self, module: &str) -> Option<(usize, Projection)> {
        let (layer, path) = module.strip_prefix(self.names.layers)?.strip_prefix('.')?.split_once('.')?;
        let (projection, _) = self.names.projections.iter().find(|(_, named)| *named == path)?;
        let layer = layer.parse().ok().filter(|&layer| layer < self.num_layers)?;
        // "+1" and "01" parse as numbers but name no layer.
        (self.module(layer, *projection) == module).then_some((layer, *projection))
    }

    /// The modules of every projection, layer by layer.
    pub fn modules(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.num_layers).flat_map(|layer| Projection::ALL.map(|projection| self.module(layer, projection)))
    }
}

#[cfg(test)]
mod tests {
    use crate::base::synthetic::tiny_arch;

    #[test]
    fn a_module_is_found_by_the_path_that_it_has() {
        let arch = tiny_arch();
        for layer in 0..arch.num_layers {
            for projection in super::Projection::ALL {
                assert_eq!(arch.find(&arch.module(layer, projection)), Some((layer, projection)));
            }
        }
        for path in ["model.layers.2.mlp.up_proj", "model.layers.01.mlp.up_proj", "model.layers.1.mlp.x", "lm_head"] {
            assert_eq!(arch.find(path), None, "{path}");
        }
    }
}
