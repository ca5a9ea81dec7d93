//! The linear layers of a block and the tensors that a Llama checkpoint must hold.

use super::LlamaConfig;

/// The seven linear layers of a block, in this order everywhere: Q, K, V, O, Gate, Up, Down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name that PEFT's `target_modules` uses: "q_proj" …
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The path inside a block: "self_attn.q_proj" …
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.path() == path)
    }

    /// `(n_out, k_in)`: the weight is stored row-major with these dimensions.
    pub fn shape(self, config: &LlamaConfig) -> (usize, usize) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match self {
            Self::Q => (config.q_dim(), hidden),
            Self::K | Self::V => (config.kv_dim(), hidden),
            Self::O => (hidden, config.q_dim()),
            Self::Gate | Self::Up => (inner, hidden),
            Self::Down => (hidden, inner),
        }
    }

    pub fn has_bias(self, config: &LlamaConfig) -> bool {
        match self {
            Self::Q | Self::K | Self::V | Self::O => config.attention_bias,
            Self::Gate | Self::Up | Self::Down => config.mlp_bias,
        }
    }

    /// Checkpoint name of the weight in one block.
    pub fn weight_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.path())
    }

    /// Checkpoint name of the bias in one block.
    pub fn bias_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.bias", self.path())
    }
}

/// Name and shape of every tensor that a checkpoint of this config holds, in the order of the forward pass. `lm_head`
/// is there unless it is tied to the embedding.
pub fn expected_tensors(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_layers {
        let norm = |name: &str| (format!("model.layers.{layer}.{name}.weight"), vec![hidden]);
        tensors.push(norm("input_layernorm"));
        for module in Module::ALL {
            if module == Module::Gate {
                tensors.push(norm("post_attention_layernorm"));
            }
            let (n_out, k_in) = module.shape(config);
            tensors.push((module.weight_name(layer), vec![n_out, k_in]));
            if module.has_bias(config) {
                tensors.push((module.bias_name(layer), vec![n_out]));
            }
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}
