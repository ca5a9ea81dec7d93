//! The files beside `tokenizer.json` and `tokenizer_config.json` in which older models keep their special tokens
//! (`special_tokens_map.json`) and the tokens that were added to the vocabulary (`added_tokens.json`).
//!
//! They count as in transformers: if `tokenizer_config.json` has no `added_tokens_decoder`, they win over it. If it has
//! one, its flags (`lstrip`, `rstrip`, `single_word`, `normalized`) win over those of `tokenizer.json`. Named special
//! tokens (`additional_special_tokens`, `extra_special_tokens`, `…_token`) become added tokens too, with the id that
//! the vocabulary has for them, or the next free one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::json;
use super::patterns::Tokenizer;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;

const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
const SPLIT: &str = "split_special_tokens";
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

/// Tokens that the files beside `tokenizer.json` add to the vocabulary.
pub(super) struct AddedTokens {
    path: PathBuf,
    /// By id.
    tokens: Vec<(u32, AddedToken)>,
    /// True if the flags of `tokens` win over those of `tokenizer.json`.
    flags_win: bool,
    /// Tokens of the vocabulary that the settings make special, such as `eos_token`.
    named: Vec<AddedToken>,
    /// Special tokens without a name of their own, in their order.
    extra: Vec<AddedToken>,
}

/// The tokens of `added_tokens_decoder`, or of `added_tokens.json`. Refused: settings under which texts of special
/// tokens, such as those of a chat template, are not read as tokens.
pub(super) fn added_tokens(dir: &Path, config: &Map<String, Value>) -> Result<AddedTokens> {
    if config.get(SPLIT).and_then(Value::as_bool) == Some(true) {
        bail_usage!(
            "{}: `{SPLIT}` is true: by it the texts of special tokens are split into ordinary tokens, and so are those \
             that the chat template writes, which no model is trained on; set it to false there",
            dir.join("tokenizer_config.json").display()
        );
    }
    let flags_win = matches!(config.get(DECODER), Some(Value::Object(_)));
    let (path, mut tokens) = match config.get(DECODER) {
        Some(Value::Object(entries)) => {
            let path = dir.join("tokenizer_config.json");
            let entry = |(id, entry): (&String, &Value)| Some((id.parse().ok()?, decoded(entry)?));
            let tokens: Option<Vec<(u32, AddedToken)>> = entries.iter().map(entry).collect();
            let Some(tokens) = tokens else {
                bail_usage!("{}: {DECODER}: expected token ids with {{\"content\": …}}", path.display())
            };
            (path, tokens)
        }
        _ => {
            let path = dir.join(ADDED_TOKENS);
            let special = |token: &str| config.values().any(|value| names(value, token));
            let mut tokens = Vec::new();
            for (token, id) in read(&path)?.unwrap_or_default() {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    bail_usage!("{}: {token:?} is {}; expected a token id", path.display(), json::describe(&id))
                };
                let special = special(&token);
                tokens.push((id, AddedToken::from(token, special).normalized(!special)));
            }
            (path, tokens)
        }
    };
    tokens.retain(|(_, token)| !token.content.is_empty());
    tokens.sort_by_key(|(id, _)| *id);
    let named = config.iter().filter(|(name, _)| name.ends_with("_token")).filter_map(|(_, value)| special(value));
    Ok(AddedTokens { path, tokens, flags_win, named: named.collect(), extra: extra(dir, config)? })
}

/// The tokens of `extra_special_tokens`, a list or an object of names, or of `additional_special_tokens`.
fn extra(dir: &Path, config: &Map<String, Value>) -> Result<Vec<AddedToken>> {
    let names_any = |value: &&Value| value.as_array().is_none_or(|items| !items.is_empty()) && !value.is_null();
    let lists = ["extra_special_tokens", "additional_special_tokens"];
    let Some((name, value)) = lists.iter().find_map(|name| Some((*name, config.get(*name).filter(names_any)?))) else {
        return Ok(Vec::new());
    };
    let tokens: Option<Vec<AddedToken>> = match value {
        Value::Array(items) => items.iter().map(special).collect(),
        Value::Object(named) => named.values().map(special).collect(),
        _ => None,
    };
    match tokens {
        Some(tokens) => Ok(tokens.into_iter().filter(|token| !token.content.is_empty()).collect()),
        None => bail_usage!("{}: {name}: expected a list of tokens, found {}", dir.display(), json::describe(value)),
    }
}

/// A special token: its text, or an object with `content`.
fn special(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), true)),
        object => decoded(object).map(|token| {
            let normalized = object.get("normalized").and_then(Value::as_bool).unwrap_or(false);
            AddedToken { special: true, normalized, ..token }
        }),
    }
}

/// An entry of the added tokens of `tokenizer.json`.
#[derive(Deserialize)]
struct Listed {
    id: u32,
    content: String,
}

/// The part of `tokenizer.json` that numbers tokens.
#[derive(Deserialize)]
struct Numbered {
    #[serde(default)]
    added_tokens: Vec<Listed>,
}

impl AddedTokens {
    /// `tokenizer.json` (its bytes, and the tokenizer that they make) with the tokens that it lacks, and the flags that
    /// win over its own. None: it has all.
    pub fn merged(&self, tokenizer: &Tokenizer, path: &Path, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let lacks = |token: &AddedToken| tokenizer.token_to_id(&token.content).is_none();
        let decoder = tokenizer.get_added_tokens_decoder();
        let mut known: BTreeSet<&str> = decoder.values().map(|token| token.content.as_str()).collect();
        let mut missing: Vec<(u32, &AddedToken)> = Vec::new();
        for (id, token) in &self.tokens {
            if known.insert(&token.content) {
                missing.push((*id, token));
            }
        }
        let ids = tokenizer.get_vocab(true).into_values().chain(missing.iter().map(|(id, _)| *id));
        let mut free = ids.max().map_or(0, |last| last.saturating_add(1));
        let in_vocabulary = self.named.iter().filter(|token| !lacks(token));
        for token in in_vocabulary.chain(&self.extra) {
            if known.insert(&token.content) {
                let id = tokenizer.token_to_id(&token.content).unwrap_or_else(|| {
                    free = free.saturating_add(1);
                    free - 1
                });
                missing.push((id, token));
            }
        }
        let listed: BTreeMap<&str, &AddedToken> =
            decoder.values().map(|token| (token.content.as_str(), token)).collect();
        let differs = |token: &&AddedToken| {
            listed.get(token.content.as_str()).is_some_and(|listed| flags(listed) != flags(token))
        };
        let winning = self.tokens.iter().map(|(_, token)| token).filter(|token| self.flags_win && differs(token));
        let others: BTreeMap<&str, &AddedToken> = winning.map(|token| (token.content.as_str(), token)).collect();
        if missing.is_empty() && others.is_empty() {
            return Ok(None);
        }
        let name = || path.display().to_string();
        let mut whole: Value = serde_json::from_slice(bytes).usage_context(name)?;
        let Some(Value::Array(listed)) = whole.get_mut("added_tokens") else {
            bail_usage!("{}: `added_tokens` is missing; expected a list", path.display())
        };
        for entry in listed.iter_mut() {
            let token = entry.get("content").and_then(Value::as_str).and_then(|content| others.get(content));
            for (name, set) in token.map(|token| flags(token)).into_iter().flatten() {
                entry[name] = set.into();
            }
        }
        for (id, token) in missing {
            let mut entry = serde_json::to_value(token).usage_context(name)?;
            entry["id"] = id.into();
            listed.push(entry);
        }
        // Each gets the next id that is free.
        listed.sort_by_key(|entry| entry.get("id").and_then(Value::as_u64));
        Ok(Some(serde_json::to_vec(&whole).usage_context(name)?))
    }

    /// Refuses a tokenizer in which a token has another id than a file says.
    pub fn check(&self, tokenizer: &Tokenizer, path: &Path, bytes: &[u8]) -> Result<()> {
        let listed: Numbered = serde_json::from_slice(bytes).usage_context(|| path.display().to_string())?;
        let listed = listed.added_tokens.iter().map(|token| (path, token.id, token.content.as_str()));
        let beside = self.tokens.iter().map(|(id, token)| (self.path.as_path(), *id, token.content.as_str()));
        for (file, id, content) in listed.chain(beside).filter(|(_, _, content)| !content.is_empty()) {
            let got = tokenizer.token_to_id(content);
            if got != Some(id) {
                let got = got.map_or("none".to_owned(), |got| got.to_string());
                bail_usage!(
                    "{}: the token {content:?} has the id {id} there, and would be read with the id {got}: the token ids of {} \
                     and the files beside it do not go together, or leave gaps; are all files of the same model?",
                    file.display(),
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// Flags for finding a token in a text, by their names in `tokenizer.json`.
fn flags(token: &AddedToken) -> [(&'static str, bool); 4] {
    [
        ("lstrip", token.lstrip),
        ("rstrip", token.rstrip),
        ("single_word", token.single_word),
        ("normalized", token.normalized),
    ]
}

/// True if a setting names this token: a string, an object with `content`, or a list of these.
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
    let bytes = read_bounded(path, MAX_BYTES)?;
    match serde_json::from_slice(&bytes).usage_context(|| name.to_string())? {
        Value::Object(map) => Ok(Some(map)),
        other => bail_usage!("{name}: expected a JSON object, found {}", json::describe(&other)),
    }
}
