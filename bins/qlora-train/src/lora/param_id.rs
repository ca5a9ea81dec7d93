//! The name of a trainable tensor: one for model, checkpoint and adapter.

use std::fmt;
use std::sync::Arc;

/// PEFT's prefix of the names of the base's modules.
const PEFT_PREFIX: &str = "base_model.model.";

/// A trainable tensor: its module's path in the model and its kind. It prints as its name in a checkpoint,
/// "model.layers.0.self_attn.q_proj.lora_A.weight".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId {
    module: Arc<str>,
    kind: ParamKind,
}

/// Kind of a trainable tensor of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParamKind {
    /// `[r, K]`
    LoraA,
    /// `[N, r]`
    LoraB,
    /// DoRA's magnitude of each output, `[N]`
    Magnitude,
    /// The weight of a module that is trained whole
    Whole,
    /// Rows of single tokens of embedding or output layer, `[tokens, H]`: values, not differences
    Tokens,
    /// AdaLoRA's factor of each rank, `[r]`; in an adapter it is part of A
    LoraE,
}

impl ParamKind {
    /// Kinds in an adapter. The suffix of a whole module comes last because it also ends those of low-rank terms.
    const OF_ADAPTERS: [Self; 5] = [Self::LoraA, Self::LoraB, Self::Magnitude, Self::Tokens, Self::Whole];

    /// The end of a tensor's name, after its module and a dot.
    fn suffix(self) -> &'static str {
        match self {
            Self::LoraA => "lora_A.weight",
            Self::LoraB => "lora_B.weight",
            Self::Magnitude => "lora_magnitude_vector",
            Self::Whole => "weight",
            Self::Tokens => "token_adapter.trainable_tokens_delta",
            Self::LoraE => "lora_E.weight",
        }
    }
}

impl ParamId {
    pub fn new(module: impl Into<Arc<str>>, kind: ParamKind) -> Self {
        Self { module: module.into(), kind }
    }

    pub fn a(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::LoraA)
    }

    pub fn b(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::LoraB)
    }

    pub fn magnitude(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::Magnitude)
    }

    /// AdaLoRA's factors of the ranks of a module's term.
    pub fn e(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::LoraE)
    }

    /// The weight of a module that is trained whole.
    pub fn whole(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::Whole)
    }

    /// The rows of single tokens of a module.
    pub fn tokens(module: impl Into<Arc<str>>) -> Self {
        Self::new(module, ParamKind::Tokens)
    }

    /// The weight of a module, by the name that a checkpoint stores it under.
    pub fn of_weight(name: &str) -> Self {
        Self::whole(name.strip_suffix(".weight").unwrap_or(name))
    }

    /// "model.layers.0.self_attn.q_proj"
    pub fn module(&self) -> &str {
        &self.module
    }

    pub fn kind(&self) -> ParamKind {
        self.kind
    }

    /// The tensor's key in an adapter: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".
    pub fn peft_key(&self) -> String {
        format!("{PEFT_PREFIX}{self}")
    }

    /// The reverse of [`peft_key`](Self::peft_key).
    pub fn from_peft_key(key: &str) -> Option<Self> {
        let name = key.strip_prefix(PEFT_PREFIX)?;
        ParamKind::OF_ADAPTERS.into_iter().find_map(|kind| {
            let module = name.strip_suffix(kind.suffix())?.strip_suffix('.')?;
            let is_path = !module.split('.').any(|part| part.is_empty() || part.starts_with("lora_"));
            is_path.then(|| Self::new(module, kind))
        })
    }
}

impl fmt::Display for ParamId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.kind.suffix())
    }
}

#[cfg(test)]
mod tests;
