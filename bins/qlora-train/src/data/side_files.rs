//! The files beside `tokenizer.json` and `tokenizer_config.json` in which older models keep their special tokens
//! (`special_tokens_map.json`) and the tokens that were added to the vocabulary (`added_tokens.json`).
//!
//! As in transformers: they count where `tokenizer_config.json` has no `added_tokens_decoder`, and then win over it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::guard::guarded;
use super::json;
use crate::error::{Context, Result};
use crate::refuse;

const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
const MAX_BYTES: u64 = 64 << 20;

/// Puts the special tokens of `special_tokens_map.json` into the settings of the tokenizer, where they count.
pub(super) fn merge(dir: &Path, config: &mut Map<String, Value>) -> Result<()> {
    if config.contains_key(DECODER) {
        return Ok(());
    }
    for (name, token) in read(&dir.join(SPECIAL_TOKENS_MAP))?.unwrap_or_default() {
        if !token.is_null() {
            config.insert(name, token);
        }
    }
    Ok(())
}

/// Adds the tokens that `tokenizer.json` lacks: those of `added_tokens_decoder`, else of `added_tokens.json`. Refused:
/// a token that does not get the id that the file gives it.
pub(super) fn add_tokens(dir: &Path, config: &Map<String, Value>, tokenizer: &mut Tokenizer) -> Result<()> {
    let (path, mut tokens) = match config.get(DECODER) {
        Some(Value::Object(entries)) => {
            let path = dir.join("tokenizer_config.json");
            let entry = |(id, entry): (&String, &Value)| Some((id.parse().ok()?, decoded(entry)?));
            let tokens: Option<Vec<(u32, AddedToken)>> = entries.iter().map(entry).collect();
            let Some(tokens) = tokens else {
                refuse!("{}: {DECODER}: expected token ids with {{\"content\": …}}", path.display())
            };
            (path, tokens)
        }
        _ => {
            let path = dir.join(ADDED_TOKENS);
            let special = |token: &str| config.values().any(|value| names(value, token));
            let mut tokens = Vec::new();
            for (token, id) in read(&path)?.unwrap_or_default() {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    refuse!("{}: {token:?} is {}; expected a token id", path.display(), json::describe(&id))
                };
                let special = special(&token);
                tokens.push((id, AddedToken::from(token, special).normalized(!special)));
            }
            (path, tokens)
        }
    };
    tokens.retain(|(_, token)| tokenizer.token_to_id(&token.content).is_none() && !token.content.is_empty());
    tokens.sort_by_key(|(id, _)| *id);
    for (id, token) in tokens {
        let content = token.content.clone();
        let added = guarded(|| match token.special {
            true => tokenizer.add_special_tokens(&[token]),
            false => tokenizer.add_tokens(&[token]),
        });
        let got = tokenizer.token_to_id(&content);
        if added.is_none() || got != Some(id) {
            let got = got.map_or("none".to_owned(), |got| got.to_string());
            refuse!(
                "{}: the token {content:?} has the id {id} there, but added to tokenizer.json it gets {got}; are both files \
                 of the same model?",
                path.display()
            );
        }
    }
    Ok(())
}

/// Whether a setting names this token: a string, an object with `content`, or a list of these.
fn names(value: &Value, token: &str) -> bool {
    match value {
        Value::String(text) => text == token,
        Value::Object(map) => map.get("content").and_then(Value::as_str) == Some(token),
        Value::Array(items) => items.iter().any(|item| names(item, token)),
        _ => false,
    }
}

fn decoded(entry: &Value) -> Option<AddedToken> {
    let flag = |key: &str| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
    let special = flag("special");
    let token = AddedToken::from(entry.get("content")?.as_str()?, special)
        .lstrip(flag("lstrip"))
        .rstrip(flag("rstrip"))
        .single_word(flag("single_word"));
    Some(token.normalized(entry.get("normalized").and_then(Value::as_bool).unwrap_or(!special)))
}

/// A JSON object; None where there is no such file.
fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let name = path.display();
    if !path.is_file() {
        return Ok(None);
    }
    if fs::metadata(path).usage_context(|| format!("{name}: cannot read"))?.len() > MAX_BYTES {
        refuse!("{name}: more than {} MiB", MAX_BYTES >> 20);
    }
    let text = fs::read_to_string(path).usage_context(|| format!("{name}: cannot read"))?;
    match serde_json::from_str(&text).usage_context(|| name.to_string())? {
        Value::Object(map) => Ok(Some(map)),
        other => refuse!("{name}: expected a JSON object, found {}", json::describe(&other)),
    }
}
