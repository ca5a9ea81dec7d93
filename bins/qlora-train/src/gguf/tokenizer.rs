//! The tokenizer of a GGUF file as Hugging Face's tokenizer.json: byte-level BPE from the file's own tokens and merges.

use super::ensure;
use super::read::{Gguf, Value, shown};
use crate::bail_usage;
use crate::error::Result;
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

/// `tokenizer.ggml.token_type` values.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Ids of the tokens with a role.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecialTokens {
    pub bos: u64,
    pub eos: u64,
    pub unknown: u64,
    pub pad: u64,
}

#[derive(Debug)]
pub struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
    merges: Vec<&'a str>,
    pub special: SpecialTokens,
    pub chat_template: Option<&'a str>,
}

impl<'a> Vocabulary<'a> {
    pub fn from_gguf(gguf: &'a Gguf) -> Result<Self> {
        let model = gguf.string("tokenizer.ggml.model")?;
        ensure!(model == "gpt2", "tokenizer.ggml.model is {} (expected \"gpt2\", byte-level BPE)", shown(model));
        let pre = gguf.string("tokenizer.ggml.pre")?;
        ensure!(
            pre == "smollm",
            "tokenizer.ggml.pre is {} (expected \"smollm\": other ways to split text are unknown)",
            shown(pre)
        );
        for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"] {
            match gguf.metadata.get(key) {
                None | Some(Value::Bool(false)) => {}
                Some(value) => bail_usage!("{key} is {} (expected false)", value.summary()),
            }
        }

        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let kinds = gguf.integers("tokenizer.ggml.token_type")?;
        let merges = gguf.strings("tokenizer.ggml.merges")?;
        ensure!(kinds.len() == tokens.len(), "{} tokens, but {} token types", tokens.len(), kinds.len());
        if let Some(kind) = kinds.iter().find(|kind| ![NORMAL, CONTROL, USER_DEFINED].contains(kind)) {
            bail_usage!("tokenizer.ggml.token_type holds {kind} (expected 1 normal, 3 control or 4 user-defined)");
        }
        let known: HashSet<&str> = tokens.iter().copied().collect();
        ensure!(known.len() == tokens.len(), "tokenizer.ggml.tokens holds a token twice");
        for merge in &merges {
            let valid = merge.split_once(' ').is_some_and(|(left, right)| {
                known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
            });
            ensure!(valid, "the merge {} does not join two tokens to a third one", shown(merge));
        }

        let role = |key: &str| -> Result<u64> {
            let id = gguf.integer(key)?;
            ensure!(id < tokens.len() as u64, "{key} is {id}, but there are {} tokens", tokens.len());
            Ok(id)
        };
        let special = SpecialTokens {
            bos: role("tokenizer.ggml.bos_token_id")?,
            eos: role("tokenizer.ggml.eos_token_id")?,
            unknown: role("tokenizer.ggml.unknown_token_id")?,
            pad: role("tokenizer.ggml.padding_token_id")?,
        };
        let chat_template = match gguf.metadata.get("tokenizer.chat_template") {
            None => None,
            Some(_) => Some(gguf.string("tokenizer.chat_template")?),
        };
        Ok(Self { tokens, kinds, merges, special, chat_template })
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    fn added_tokens(&self) -> impl Iterator<Item = (usize, &'a str, bool)> + '_ {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        all.filter(|(_, (_, kind))| **kind != NORMAL).map(|(id, (token, kind))| (id, *token, *kind == CONTROL))
    }

    /// Text is cut at every digit, then by GPT-2's rule; llama.cpp's `smollm` splits the same way.
    pub fn tokenizer_json(&self) -> Json {
        let added: Vec<Json> = self
            .added_tokens()
            .map(|(id, content, special)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                })
            })
            .collect();
        let vocab: Map<String, Json> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level],
            },
            "post_processor": null,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": self.merges,
            },
        })
    }

    pub fn tokenizer_config_json(&self, max_length: u64) -> Json {
        let decoder: Map<String, Json> = self
            .added_tokens()
            .map(|(id, content, special)| {
                let token = json!({
                    "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                    "special": special,
                });
                (id.to_string(), token)
            })
            .collect();
        let token = |id: u64| self.tokens[id as usize];
        json!({
            "add_bos_token": false,
            "add_prefix_space": false,
            "added_tokens_decoder": decoder,
            "bos_token": token(self.special.bos),
            "clean_up_tokenization_spaces": false,
            "eos_token": token(self.special.eos),
            "model_max_length": max_length,
            "pad_token": token(self.special.pad),
            // This class takes tokenizer.json as it is; GPT-2's class would replace the way to split text by its own.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": token(self.special.unknown),
        })
    }
}
