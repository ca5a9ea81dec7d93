//! Rows of single tokens (`trainable_token_indices` of PEFT): values that replace those of the embedding or the output
//! layer, not differences from them.

use std::collections::BTreeMap;

use super::in_memory::Adapter;
use super::token_indices::{KEY, tables};
use crate::arch::Arch;
use crate::bail_usage;
use crate::error::Result;
use crate::lora::{ParamId, ParamKind};

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
                // PEFT writes one of two modules that stay one tensor.
                if module == head && named.get(embedding) == Some(tokens) {
                    continue;
                }
                bail_usage!(
                    "adapter: found no tensor `{key}`, expected one as `{KEY}` of the adapter config names {module}"
                )
            };
            let columns = shape.last().copied().unwrap_or(0);
            let length = tokens.len().checked_mul(columns);
            if shape[..] != [tokens.len(), columns] || length != Some(values.len()) || values.is_empty() {
                bail_usage!(
                    "adapter: tensor `{key}`: found {} values in shape {shape:?}, expected {} rows as `{KEY}` of the \
                     adapter config names so many tokens",
                    values.len(),
                    tokens.len()
                );
            }
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                bail_usage!("adapter: tensor `{key}`: found {} at element {at}, expected finite numbers", values[at]);
            }
            if self.tensors.contains_key(&ParamId::whole(module.as_str()).peft_key()) {
                bail_usage!(
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

    /// True if a tensor holds rows of tokens that the config names.
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
            bail_usage!(
                "adapter: found no tensor `{}`, expected one as `{KEY}` of the adapter config names {head}, which is a tensor \
                 of its own in {name}",
                ParamId::tokens(head).peft_key()
            );
        }
        for (module, rows) in all {
            if arch.tie_word_embeddings && module == head {
                bail_usage!(
                    "adapter: `{KEY}`: found rows of {module} that are not those of the embedding, with which it is one \
                     tensor in {name}; expected rows of embed_tokens alone"
                );
            }
            if rows.columns != arch.hidden_size {
                bail_usage!(
                    "adapter: rows of {module}: found {} values each, expected {}: it was made for {own_base}, not for {name}",
                    rows.columns,
                    arch.hidden_size
                );
            }
            if let Some(token) = rows.tokens.iter().find(|&&token| token as usize >= arch.vocab_size) {
                bail_usage!(
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
mod tests;
