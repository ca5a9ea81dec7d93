//! config.json of a Llama, as transformers v4 and v5 write it. A key that is absent has the default of transformers'
//! `LlamaConfig`; a key that would change the arithmetic in a way this trainer does not know is an error.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::expected_tensors;
use super::rope::{Rope, RopeScaling};
use crate::error::Result;
use crate::files::json::{Keys, read_object};
use crate::refuse;

/// Kernels index the rows and columns of a matrix with 32 bits.
const MAX_DIMENSION: usize = i32::MAX as usize;
const MAX_LAYERS: usize = 10_000;
const SUPPORTED: &str = "\"llama\" (LlamaForCausalLM: Llama 2, 3, 3.1, 3.2, 3.3 and models of the same shape)";

#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f32,
    pub rope: Rope,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    pub tie_word_embeddings: bool,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    /// In the file's order; empty where config.json says null.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads and checks a config.json. Everything wrong with it is [`Error::Refused`](crate::error::Error::Refused).
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_json(path, &read_object(path)?)
    }

    /// As [`from_file`](Self::from_file), of a parsed object; `path` is what errors call it.
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        let keys = Keys::new(path, map);
        check_architecture(&keys)?;
        check_neutral(&keys)?;
        let at_least_one = |key: &str, default: usize| match keys.whole(key)?.unwrap_or(default) {
            n if (1..=MAX_DIMENSION).contains(&n) => Ok(n),
            _ => Err(keys.wrong(key, &format!("a whole number from 1 to {MAX_DIMENSION}"))),
        };
        let hidden_size = at_least_one("hidden_size", 4096)?;
        let num_heads = at_least_one("num_attention_heads", 32)?;
        if keys.get("head_dim").is_none() && !hidden_size.is_multiple_of(num_heads) {
            let expected = format!("a multiple of num_attention_heads ({num_heads}), or a key `head_dim`");
            return Err(keys.wrong("hidden_size", &expected));
        }
        let max_position_embeddings = at_least_one("max_position_embeddings", 2048)?;
        let vocab_size = at_least_one("vocab_size", 32_000)?;
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size: at_least_one("intermediate_size", 11_008)?,
            num_layers: at_least_one("num_hidden_layers", 32)?,
            num_heads,
            num_kv_heads: at_least_one("num_key_value_heads", num_heads)?,
            head_dim: at_least_one("head_dim", hidden_size / num_heads)?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: Rope::from_keys(&keys, max_position_embeddings)?,
            attention_bias: keys.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings,
            bos_token_id: token_ids(&keys, "bos_token_id", 1, vocab_size)?.first().copied(),
            eos_token_ids: token_ids(&keys, "eos_token_id", 2, vocab_size)?,
        };
        config.check(&keys)?;
        Ok(config)
    }

    fn check(&self, keys: &Keys) -> Result<()> {
        if self.num_layers > MAX_LAYERS {
            return Err(keys.wrong("num_hidden_layers", &format!("at most {MAX_LAYERS}")));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.num_heads);
            return Err(keys.wrong("num_key_value_heads", &expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = format!("an even head dimension, found {}: rotary positions turn pairs", self.head_dim);
            return Err(keys.wrong("head_dim", &expected));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(keys.wrong("rms_norm_eps", "a number above 0 that f32 can hold"));
        }
        if self.num_heads.checked_mul(self.head_dim).is_none_or(|n| n > MAX_DIMENSION) {
            refuse!(
                "{}: keys `num_attention_heads` and `head_dim`: found {} x {}, expected a product of at most {MAX_DIMENSION}",
                keys.source,
                self.num_heads,
                self.head_dim
            );
        }
        let bytes = self.num_parameters().and_then(|n| n.checked_mul(4));
        if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
            refuse!(
                "{}: the sizes give more parameters than can be addressed; expected those of a real model",
                keys.source
            );
        }
        Ok(())
    }

    /// Width of q and of the attention's output: `num_heads · head_dim`.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of k and of v: `num_kv_heads · head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Parameters of the model, tied ones counted once; `None` where the count overflows 64 bits.
    pub fn num_parameters(&self) -> Option<u64> {
        let one_layer = Self { num_layers: 1, ..self.clone() };
        let (mut layer, mut rest) = (0u64, 0u64);
        for (name, shape) in expected_tensors(&one_layer) {
            let sum = if name.starts_with("model.layers.") { &mut layer } else { &mut rest };
            *sum = sum.checked_add(shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))?)?;
        }
        layer.checked_mul(self.num_layers as u64)?.checked_add(rest)
    }

    /// config.json in the spelling of transformers v5 (`rope_parameters`, `dtype`); `dtype` is torch's name of the
    /// stored type, such as "bfloat16".
    pub fn to_json(&self, dtype: &str) -> Map<String, Value> {
        let mut map = self.common_json();
        map.insert("rope_parameters".into(), Value::Object(self.rope.to_json()));
        map.insert("dtype".into(), dtype.into());
        map
    }

    /// config.json in the spelling of transformers v4 (`rope_theta`, `rope_scaling`, `torch_dtype`).
    pub fn to_json_v4(&self, dtype: &str) -> Map<String, Value> {
        let mut map = self.common_json();
        let mut scaling = self.rope.to_json();
        map.insert("rope_theta".into(), scaling.remove("rope_theta").unwrap_or(Value::Null));
        let default = self.rope.scaling == RopeScaling::Default;
        map.insert("rope_scaling".into(), if default { Value::Null } else { Value::Object(scaling) });
        map.insert("torch_dtype".into(), dtype.into());
        map
    }

    fn common_json(&self) -> Map<String, Value> {
        let eos = match self.eos_token_ids[..] {
            [] => Value::Null,
            [id] => id.into(),
            _ => json!(self.eos_token_ids),
        };
        // The shortest decimal that reads back as the same f32: 1e-5, not 9.999999747378752e-6.
        let eps: f64 = self.rms_norm_eps.to_string().parse().unwrap_or(f64::from(self.rms_norm_eps));
        let value = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": eps,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
        });
        let Value::Object(map) = value else { unreachable!("json! of braces is an object") };
        map
    }
}

fn check_architecture(keys: &Keys) -> Result<()> {
    if keys.text("model_type")? != Some("llama") {
        return Err(keys.wrong("model_type", SUPPORTED));
    }
    let llama = |list: &Vec<Value>| list.iter().all(|name| name == "LlamaForCausalLM") && !list.is_empty();
    if keys.get("architectures").is_some_and(|value| !value.as_array().is_some_and(llama)) {
        return Err(keys.wrong("architectures", "[\"LlamaForCausalLM\"], the one architecture that is supported"));
    }
    Ok(())
}

/// Keys that some configs carry and that change the arithmetic: only their neutral value is supported.
fn check_neutral(keys: &Keys) -> Result<()> {
    let number = |key: &str, neutral: f64| match keys.number(key)? {
        Some(x) if x != neutral => Err(keys.wrong(key, &format!("{neutral}, the only supported value"))),
        _ => Ok(()),
    };
    number("pretraining_tp", 1.0)?;
    number("attention_dropout", 0.0)?;
    if keys.text("hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(keys.wrong("hidden_act", "\"silu\", the only supported activation"));
    }
    for key in ["rope_interleaved", "use_sliding_window", "add_cross_attention"] {
        if keys.flag(key)? == Some(true) {
            return Err(keys.wrong(key, "false, the only supported value"));
        }
    }
    if keys.get("sliding_window").is_some() {
        return Err(keys.wrong("sliding_window", "null: sliding-window attention is not supported"));
    }
    let full = |list: &Vec<Value>| list.iter().all(|kind| kind == "full_attention");
    if keys.get("layer_types").is_some_and(|value| !value.as_array().is_some_and(full)) {
        return Err(keys.wrong("layer_types", "only \"full_attention\""));
    }
    Ok(())
}

/// One id or a list of ids. Absent: the default of transformers where the vocabulary has it; null: none.
fn token_ids(keys: &Keys, key: &str, default: u32, vocab_size: usize) -> Result<Vec<u32>> {
    let Some(value) = keys.map.get(key) else {
        return Ok(if (default as usize) < vocab_size { vec![default] } else { vec![] });
    };
    let expected = || keys.wrong(key, &format!("token ids below vocab_size ({vocab_size})"));
    let id = |value: &Value| {
        let id = value.as_u64().filter(|&id| id < vocab_size as u64);
        id.and_then(|id| u32::try_from(id).ok()).ok_or_else(expected)
    };
    match value {
        Value::Null => Ok(vec![]),
        Value::Array(list) => list.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}
