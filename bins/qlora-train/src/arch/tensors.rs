//! Tensors of an architecture: names, shapes, and how many parameters they hold.

use super::{Arch, Input, Projection, QkNorm};

impl Arch {
    /// The names in a layer of the weights that normalize queries and keys, with their lengths; `None`: nothing does.
    pub fn qk_norms(&self) -> Option<[(&'static str, usize); 2]> {
        let lengths = match self.qk_norm {
            QkNorm::None => return None,
            QkNorm::Head | QkNorm::HeadRotated => [self.head_dim; 2],
            QkNorm::Width => [self.q_dim(), self.kv_dim()],
        };
        Some([(self.names.q_norm, lengths[0]), (self.names.k_norm, lengths[1])])
    }

    /// Name and shape of every tensor that a checkpoint of this model holds, in the order of the forward pass.
    /// `lm_head` is there unless it is tied to the embedding.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (names, hidden) = (self.names, self.hidden_size);
        let mut tensors = vec![(names.embedding.to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_layers {
            let norm = |name: Option<&str>| name.map(|name| (self.layer_tensor(layer, name), vec![hidden]));
            tensors.extend(norm(names.attention_norms.input));
            for projection in names.all() {
                if projection == Projection::O {
                    let norms = self.qk_norms().into_iter().flatten();
                    tensors.extend(norms.map(|(name, len)| (self.layer_tensor(layer, name), vec![len])));
                }
                if matches!(projection, Projection::Gate | Projection::GateUp) {
                    tensors.extend(norm(names.attention_norms.output));
                    tensors.extend(norm(names.mlp_norms.input));
                }
                let (n_out, k_in) = projection.shape(self);
                tensors.push((self.weight_name(layer, projection), vec![n_out, k_in]));
                if self.biases.contains(&projection) {
                    tensors.push((self.bias_name(layer, projection), vec![n_out]));
                }
            }
            tensors.extend(norm(names.mlp_norms.output));
        }
        tensors.push((names.final_norm.to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push((names.head.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// Modules of a weight that are no linear layer of a block, with the weight's shape: embedding, norms and output
    /// layer, the last also where it is the embedding.
    pub fn other_modules(&self) -> Vec<(String, Vec<usize>)> {
        let untied = Self { tie_word_embeddings: false, ..self.clone() };
        let module = |(name, shape): (String, Vec<usize>)| Some((name.strip_suffix(".weight")?.to_owned(), shape));
        untied.tensors().into_iter().filter_map(module).filter(|(module, _)| self.find(module).is_none()).collect()
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

    /// The weight of the first projection of an input, which stands for them in messages.
    pub fn first_weight(&self, layer: usize, input: Input) -> String {
        let first = self.names.of_input(input).next().expect("a family has a projection of every input");
        self.weight_name(layer, first)
    }

    pub fn bias_name(&self, layer: usize, projection: Projection) -> String {
        self.module(layer, projection) + ".bias"
    }

    /// The layer and projection of a module's path, the reverse of [`module`](Self::module).
    pub fn find(&self, module: &str) -> Option<(usize, Projection)> {
        let (layer, path) = module.strip_prefix(self.names.layers)?.strip_prefix('.')?.split_once('.')?;
        let (projection, _) = self.names.projections.iter().find(|(_, named)| *named == path)?;
        // "+1" and "01" parse as numbers but name no layer.
        let is_plain = layer == "0" || !layer.starts_with(['0', '+']);
        let layer = layer.parse().ok().filter(|&layer| is_plain && layer < self.num_layers)?;
        Some((layer, *projection))
    }

    /// The modules of every projection, layer by layer.
    pub fn modules(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.num_layers)
            .flat_map(move |layer| self.names.all().map(move |projection| self.module(layer, projection)))
    }
}

#[cfg(test)]
mod tests {
    use crate::base::synthetic::tiny_arch;

    #[test]
    fn other_modules_are_the_embedding_the_norms_and_the_output_layer() {
        for tie_word_embeddings in [false, true] {
            let arch = crate::arch::Arch { tie_word_embeddings, ..tiny_arch() };
            let modules = arch.other_modules();
            assert_eq!(modules.len(), 2 + 2 * arch.num_layers + 1);
            assert_eq!(modules[0], ("model.embed_tokens".to_owned(), vec![arch.vocab_size, arch.hidden_size]));
            assert_eq!(modules[1], ("model.layers.0.input_layernorm".to_owned(), vec![arch.hidden_size]));
            assert_eq!(modules.last().unwrap().0, "lm_head");
        }
    }

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
