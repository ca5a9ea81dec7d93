//! `trainable_token_indices` of PEFT: the tokens of which an adapter holds rows, as its config names them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::kind::ADAPTER_CONFIG;
use super::module_pattern::in_own_model;
use crate::arch::{LLAMA_NAMES, Wrapper};
use crate::error::Result;
use crate::files::json::{Keys, read_object};

/// PEFT's name of the key, and of the setting.
pub(super) const KEY: &str = "trainable_token_indices";

/// The modules that have an input or an output for each token.
pub(super) fn tables() -> [&'static str; 2] {
    [LLAMA_NAMES.embedding_module(), LLAMA_NAMES.head_module()]
}

/// Module → tokens, in the order in which an adapter's tensor has them: a list is for the embedding; an object has a
/// list for each module whose path ends with the key.
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

/// The rows that the config in an adapter's directory names, by module. Refused: a config that cannot be read, or whose
/// indices are no rows.
pub fn read_tokens(dir: &Path) -> Result<BTreeMap<String, Vec<u32>>> {
    let path = dir.join(ADAPTER_CONFIG);
    read_object(&path).and_then(|map| token_indices(&Keys::new(&path, &map)))
}

/// [`read_tokens`], or none where they cannot be read: loading the adapter gives the error.
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
