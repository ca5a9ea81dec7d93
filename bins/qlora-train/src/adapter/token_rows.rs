//! Rows of single tokens (`trainable_token_indices` of PEFT): values that take the place of those of the embedding or
//! the output layer, and no differences.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Adapter;
use super::kind::ADAPTER_CONFIG;
use super::module_pattern::in_own_model;
use crate::arch::{Arch, LLAMA_NAMES, Wrapper};
use crate::error::Result;
use crate::files::json::{Keys, read_object};
use crate::lora::{ParamId, ParamKind};
use crate::refuse;

/// PEFT's name of the key, and of the setting.
pub(super) const KEY: &str = "trainable_token_indices";

/// The rows that an adapter holds of embedding or output layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRows {
    /// In order, each once
    pub tokens: Vec<u32>,
    /// Values of a row
    pub columns: usize,
    /// `[tokens, columns]`
    pub values: Vec<f32>,
}

/// The modules that have an input or an output for each token.
fn tables() -> [&'static str; 2] {
    [LLAMA_NAMES.embedding_module(), LLAMA_NAMES.head_module()]
}

/// Module → tokens, in the order in which an adapter's tensor has them: a list is of the embedding, an object has one
/// for each module that a key ends.
pub(super) fn token_indices(keys: &Keys) -> Result<BTreeMap<String, Vec<u32>>> {
    let wrong = || {
        let expected = "null, a list of token ids, each once, or an object of such lists for embed_tokens and lm_head";
        keys.wrong(KEY, expected)
    };
    let tokens = |list: &Value| -> Result<Vec<u32>> {
        let list = list.as_array().ok_or_else(wrong)?;
        let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
        let ids = list.iter().map(id).collect::<Result<Vec<u32>>>()?;
        if ids.iter().collect::<BTreeSet<_>>().len() == ids.len() { Ok(ids) } else { Err(wrong()) }
    };
    let mut indices = BTreeMap::new();
    match keys.get(KEY) {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Object(map)) => {
            for (name, list) in map {
                let name = in_own_model(name);
                let module = tables().into_iter().find(|table| table.ends_with(&name) && !name.is_empty());
                let module = module.ok_or_else(wrong)?;
                if indices.insert(module.to_owned(), tokens(list)?).is_some() {
                    return Err(wrong());
                }
            }
        }
        Some(list) => drop(indices.insert(tables()[0].to_owned(), tokens(list)?)),
    }
    indices.retain(|_, tokens| !tokens.is_empty());
    Ok(indices)
}

/// The rows that the config in an adapter's directory names, by module. Refused: a config that cannot be read, or names
/// what are no rows.
pub fn read_tokens(dir: &Path) -> Result<BTreeMap<String, Vec<u32>>> {
    let path = dir.join(ADAPTER_CONFIG);
    read_object(&path).and_then(|map| token_indices(&Keys::new(&path, &map)))
}

/// Like [`read_tokens`], with none where they cannot be read, which whoever loads the adapter is told.
pub fn tokens_of_adapter(dir: &Path) -> BTreeMap<String, Vec<u32>> {
    read_tokens(dir).unwrap_or_default()
}

/// The value of PEFT's key; none where no module has rows of its own. `wrapped`: the class that serves the adapter is
/// one around the text model.
pub(super) fn to_json(indices: &BTreeMap<String, Vec<u32>>, wrapped: bool) -> Option<Value> {
    match indices.iter().collect::<Vec<_>>()[..] {
        [] => None,
        // PEFT finds the embedding itself.
        [(module, tokens)] if module == tables()[0] => Some(json!(tokens)),
        _ => {
            let name = |module: &str| match wrapped {
                true => Wrapper::path(module),
                false => module.rsplit('.').next().unwrap_or(module).to_owned(),
            };
            Some(Value::Object(indices.iter().map(|(module, of)| (name(module), json!(of))).collect::<Map<_, _>>()))
        }
    }
}

impl Adapter {
    /// The rows that `trainable_token_indices` names, by module. Refused: a tensor that is not there, or is not of so
    /// many rows; a value that is not finite; a module that is there whole as well.
    pub fn token_rows(&self) -> Result<BTreeMap<String, TokenRows>> {
        let named = &self.config.trainable_token_indices;
        let [embedding, head] = tables();
        let mut rows = BTreeMap::new();
        for (module, tokens) in named {
            let key = ParamId::tokens(module.as_str()).peft_key();
            let Some((shape, values)) = self.tensors.get(&key) else {
                // Of two that stay one tensor PEFT writes one.
                if module == head && named.get(embedding) == Some(tokens) {
                    continue;
                }
                refuse!(
                    "adapter: found no tensor `{key}`, expected one as `{KEY}` of the adapter config names {module}"
                )
            };
            let columns = shape.last().copied().unwrap_or(0);
            let length = tokens.len().checked_mul(columns);
            if shape[..] != [tokens.len(), columns] || length != Some(values.len()) || values.is_empty() {
                refuse!(
                    "adapter: tensor `{key}`: found {} values in shape {shape:?}, expected {} rows as `{KEY}` of the \
                     adapter config names so many tokens",
                    values.len(),
                    tokens.len()
                );
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                refuse!("adapter: tensor `{key}`: found {} at element {at}, expected finite numbers", values[at]);
            }
            if self.tensors.contains_key(&ParamId::whole(module.as_str()).peft_key()) {
                refuse!(
                    "adapter: found {module} whole (`modules_to_save`) and single rows of it (`{KEY}`), expected one"
                );
            }
            let mut order: Vec<usize> = (0..tokens.len()).collect();
            order.sort_unstable_by_key(|&at| tokens[at]);
            let values = order.iter().flat_map(|&at| &values[at * columns..][..columns]).copied().collect();
            let tokens = order.iter().map(|&at| tokens[at]).collect();
            rows.insert(module.clone(), TokenRows { tokens, columns, values });
        }
        Ok(rows)
    }

    /// Whether a tensor holds rows of tokens that the config names.
    pub(super) fn is_token_rows(&self, key: &str) -> bool {
        let id = ParamId::from_peft_key(key).filter(|id| id.kind() == ParamKind::Tokens);
        id.is_some_and(|id| self.config.trainable_token_indices.contains_key(id.module()))
    }

    /// Refused: rows of another width or of tokens that the base does not have, and rows of an output layer that is the
    /// embedding. `own_base` and `name` are those of the adapter's base and of this one.
    pub(super) fn check_token_rows(&self, arch: &Arch, own_base: &str, name: &str) -> Result<()> {
        let (all, head) = (self.token_rows()?, arch.names.head_module());
        if !arch.tie_word_embeddings
            && self.config.trainable_token_indices.contains_key(head)
            && !all.contains_key(head)
        {
            refuse!(
                "adapter: found no tensor `{}`, expected one as `{KEY}` of the adapter config names {head}, which is a tensor \
                 of its own in {name}",
                ParamId::tokens(head).peft_key()
            );
        }
        for (module, rows) in all {
            if arch.tie_word_embeddings && module == head {
                refuse!(
                    "adapter: `{KEY}`: found rows of {module} that are not those of the embedding, with which it is one \
                     tensor in {name}; expected rows of embed_tokens alone"
                );
            }
            if rows.columns != arch.hidden_size {
                refuse!(
                    "adapter: rows of {module}: found {} values each, expected {}: it was made for {own_base}, not for {name}",
                    rows.columns,
                    arch.hidden_size
                );
            }
            if let Some(token) = rows.tokens.iter().find(|&&token| token as usize >= arch.vocab_size) {
                refuse!(
                    "adapter: `{KEY}`: found token {token}, expected tokens below {}, the vocabulary of {name}: it was made \
                     for {own_base}, or the vocabulary was resized, which is not supported; merge the adapter with PEFT",
                    arch.vocab_size
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterConfig;

    fn read(value: Value) -> Result<AdapterConfig> {
        let value = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "trainable_token_indices": value,
        });
        AdapterConfig::from_json(Path::new("adapter_config.json"), value.as_object().unwrap())
    }

    fn adapter(value: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Adapter {
        let tensor = |(module, shape, values): &(&str, Vec<usize>, Vec<f32>)| {
            (ParamId::tokens(*module).peft_key(), (shape.clone(), values.clone()))
        };
        let tensors = tensors.iter().map(tensor).collect();
        Adapter { config: read(value).unwrap(), tensors, metadata: BTreeMap::new() }
    }

    #[test]
    fn a_list_is_of_the_embedding_and_an_object_names_modules() {
        for none in [json!(null), json!([]), json!({}), json!({"embed_tokens": []})] {
            let config = read(none.clone()).unwrap();
            assert!(config.trainable_token_indices.is_empty() && !config.to_json().contains_key(KEY), "{none}");
        }
        let list = read(json!([9, 3])).unwrap();
        assert_eq!(list.trainable_token_indices, [("model.embed_tokens".to_owned(), vec![9, 3])].into());
        assert_eq!(list.to_json()[KEY], json!([9, 3]));
        for names in [["embed_tokens", "lm_head"], ["model.language_model.embed_tokens", "lm_head"]] {
            let value = json!({names[0]: [5], names[1]: [7, 1]});
            let both = read(value).unwrap();
            assert_eq!(both.to_json()[KEY], json!({"embed_tokens": [5], "lm_head": [7, 1]}));
            let wrapped = AdapterConfig { wrapped: true, ..both }.to_json();
            assert_eq!(wrapped[KEY], json!({"model.language_model.embed_tokens": [5], "lm_head": [7, 1]}));
        }
        for wrong in [json!(3), json!(["a"]), json!([-1]), json!([1, 1]), json!({"q_proj": [1]}), json!({"": [1]})] {
            let error = read(wrong.clone()).unwrap_err().to_string();
            assert!(error.contains("`trainable_token_indices`") && error.contains("token ids"), "{wrong}: {error}");
        }
    }

    #[test]
    fn rows_are_put_in_order_and_have_to_be_there() {
        let one = adapter(json!([9, 3]), &[("model.embed_tokens", vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])]);
        let rows = one.token_rows().unwrap().remove("model.embed_tokens").unwrap();
        assert_eq!(rows, TokenRows { tokens: vec![3, 9], columns: 2, values: vec![3.0, 4.0, 1.0, 2.0] });
        // PEFT writes those of a tied output layer once.
        let tied = json!({"embed_tokens": [9, 3], "lm_head": [9, 3]});
        let tensors = [("model.embed_tokens", vec![2, 2], vec![1.0; 4])];
        assert_eq!(adapter(tied, &tensors).token_rows().unwrap().len(), 1);
        let refused = |value: Value, tensors: &[(&str, Vec<usize>, Vec<f32>)]| {
            adapter(value, tensors).token_rows().unwrap_err().to_string()
        };
        assert!(refused(json!({"lm_head": [9]}), &tensors).contains("found no tensor"));
        assert!(refused(json!([9]), &tensors).contains("expected 1 rows"));
        let not_finite = [("model.embed_tokens", vec![1, 2], vec![1.0, f32::NAN])];
        assert!(refused(json!([9]), &not_finite).contains("found NaN at element 1"));
        let mut both = one.clone();
        both.insert(&ParamId::whole("model.embed_tokens"), vec![1, 2], vec![0.0; 2]);
        assert!(both.token_rows().unwrap_err().to_string().contains("expected one"));
    }

    #[test]
    fn rows_have_to_be_those_of_the_base() {
        let arch = crate::base::synthetic::tiny_arch();
        let check = |arch: &Arch, value: Value, module: &str, columns: usize| {
            let rows = adapter(value, &[(module, vec![1, columns], vec![0.5; columns])]);
            rows.check_token_rows(arch, "own", "this").map_err(|error| error.to_string())
        };
        let hidden = arch.hidden_size;
        check(&arch, json!([3]), "model.embed_tokens", hidden).unwrap();
        check(&arch, json!({"lm_head": [3]}), "lm_head", hidden).unwrap();
        assert!(check(&arch, json!([3]), "model.embed_tokens", 3).unwrap_err().contains("made for own"));
        let beyond = check(&arch, json!([arch.vocab_size]), "model.embed_tokens", hidden).unwrap_err();
        assert!(beyond.contains("expected tokens below"), "{beyond}");
        // Rows that both share are those of a base in which both are one tensor.
        let both = || json!({"embed_tokens": [3], "lm_head": [3]});
        let lacks = check(&arch, both(), "model.embed_tokens", hidden).unwrap_err();
        assert!(lacks.contains("lm_head.token_adapter") && lacks.contains("of its own in this"), "{lacks}");
        let tied = Arch { tie_word_embeddings: true, ..arch };
        check(&tied, both(), "model.embed_tokens", hidden).unwrap();
        let error = check(&tied, json!({"lm_head": [3]}), "lm_head", hidden).unwrap_err();
        assert!(error.contains("one tensor"), "{error}");
    }
}
