//! Tokens at which an answer ends.

use crate::arch::Arch;
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::refuse;
use crate::report::status;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const FILE: &str = "generation_config.json";
const MAX_BYTES: u64 = 1 << 20;

/// The tokens that end an answer, by all who say so: config.json, generation_config.json, the tokenizer's EOS, and the
/// chat template, whose answers end with a token that was trained on.
pub fn stop_tokens(dir: &Path, arch: &Arch, tokenizer: &ChatTokenizer, chat: bool) -> Result<Vec<u32>> {
    let mut stop: BTreeSet<u32> = arch.eos_token_ids.iter().copied().collect();
    stop.extend(of_generation_config(dir, arch.vocab_size)?);
    stop.extend(tokenizer.eos_token_id());
    if chat {
        stop.extend(tokenizer.turn_end_ids());
    }
    Ok(stop.into_iter().collect())
}

/// `eos_token_id` of generation_config.json: one id or several; none where the file or the key is missing. Ids outside
/// the vocabulary can never be drawn and are left out.
fn of_generation_config(dir: &Path, vocab_size: usize) -> Result<Vec<u32>> {
    let path = dir.join(FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let shown = path.display();
    let config: Value = serde_json::from_slice(&read_bounded(&path, MAX_BYTES)?)
        .usage_context(|| format!("{shown}: not a JSON object"))?;
    let ids = match config.get("eos_token_id") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
    };
    let is_nothing = |texts: &Value| texts.is_null() || texts.as_array().is_some_and(Vec::is_empty);
    if config.get("stop_strings").is_some_and(|texts| !is_nothing(texts)) {
        status!(
            "{shown}: key `stop_strings` is not followed: answers end at tokens; `generate --stop TEXT` ends one at a text"
        );
    }
    let mut found = Vec::new();
    for id in ids {
        let Some(id) = id.as_i64() else {
            refuse!("{shown}: key `eos_token_id`: found {id}, expected a token id or a list of them");
        };
        found.extend(u32::try_from(id).ok().filter(|&id| (id as usize) < vocab_size));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_several_and_none_are_read_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            of_generation_config(dir.path(), 10)
        };
        assert_eq!(of_generation_config(Path::new("no/such"), 10).unwrap(), [0u32; 0]);
        assert_eq!(of(r#"{"eos_token_id": 3}"#).unwrap(), [3]);
        assert_eq!(of(r#"{"eos_token_id": [3, 9, 10, -1]}"#).unwrap(), [3, 9]);
        assert_eq!(of(r#"{"eos_token_id": null, "temperature": 0.6}"#).unwrap(), [0u32; 0]);
        for bad in [r#"{"eos_token_id": "x"}"#, "{"] {
            let error = of(bad).unwrap_err();
            assert!(error.to_string().contains(FILE) && error.exit_status() == 2, "{error}");
        }
    }
}
