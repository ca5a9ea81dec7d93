//! Bounds on the text that the parts of a `tokenizer.json` make, and on the memory that its library reserves: a few
//! bytes of a stranger's file may ask for any amount.

use crate::files::json::UniqueMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{DecoderWrapper, ModelWrapper};

/// Times its length that a text may become before it is cut into pieces. Compatibility forms of one character have up
/// to 33 bytes, and text is not made of those alone.
const TIMES: usize = 12;
/// Bytes beside that, for short texts.
const BESIDE: usize = 64 << 10;
/// Bytes that a table of characters may replace one character by.
const MAX_FORM_BYTES: usize = 128;
/// Times its length that decoding may make of a token.
const MAX_DECODED: usize = 64;
/// Bytes of a token's own text. The longest known are runs of some hundred blanks.
const MAX_TOKEN_BYTES: usize = 4 << 10;
/// Texts up to this many bytes are not checked before a table replaces their characters.
const SHORT: usize = 1 << 10;

/// Refuses a text that has grown beyond the bound. `original`: bytes of the text as it was given.
pub(super) fn within(original: usize, made: usize, part: &str) -> tokenizers::Result<()> {
    match made <= original.saturating_mul(TIMES).saturating_add(BESIDE) {
        true => Ok(()),
        false => Err(format!(
            "a part of tokenizer.json ({part}) makes more than {TIMES} times as much of a text of {original} bytes"
        )
        .into()),
    }
}

/// Upper bound of the bytes that a part of the library adds to a text, for parts that may add many.
pub(super) fn added_by(part: &NormalizerWrapper, text: &str) -> usize {
    match part {
        NormalizerWrapper::Prepend(prepend) => prepend.prepend.len(),
        NormalizerWrapper::Precompiled(table) if text.len() > SHORT => {
            table.normalize_string(text).len().saturating_sub(text.len())
        }
        _ => 0,
    }
}

/// Refuses tables of characters that would harm the library, before it reads them: a table of another size than it
/// claims, or one that replaces characters by long texts.
pub(super) fn check_normalizer(written: &Value) -> Result<(), String> {
    match written {
        Value::Array(parts) => parts.iter().try_for_each(check_normalizer),
        Value::Object(part) => match part.get("precompiled_charsmap").and_then(Value::as_str) {
            Some(table) => check_table(table),
            None => part.values().try_for_each(check_normalizer),
        },
        _ => Ok(()),
    }
}

fn check_table(table: &str) -> Result<(), String> {
    // The library refuses text that is no base64.
    let Some(bytes) = base64(table) else { return Ok(()) };
    let broken = || "`precompiled_charsmap` is broken: its size does not match its content".to_owned();
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let forms = rest.get(u32::from_le_bytes(*size) as usize..).ok_or_else(broken)?;
    match forms.split(|&byte| byte == 0).map(<[u8]>::len).max() {
        Some(longest) if longest > MAX_FORM_BYTES => Err(format!(
            "`precompiled_charsmap` puts {longest} bytes in the place of a character, expected at most {MAX_FORM_BYTES}"
        )),
        _ => Ok(()),
    }
}

/// The bytes of a text in base64, up to its padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for c in text.bytes().take_while(|&c| c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

/// Refuses a model whose tokens are drawn at random, so that no two runs would have the same rows.
pub(super) fn check_model(model: &ModelWrapper) -> Result<(), String> {
    match model {
        ModelWrapper::BPE(model) if model.dropout.is_some_and(|dropout| dropout != 0.0) => {
            Err("`model.dropout` has tokens drawn at random, and others each time: set it to null".to_owned())
        }
        _ => Ok(()),
    }
}

/// Refuses added tokens of too much text before the library finds them by a table that has a row for each of their
/// bytes.
pub(super) fn check_added(file: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Added {
        content: String,
    }
    let Ok(UniqueMap(parts)) = serde_json::from_slice::<UniqueMap<&RawValue>>(file) else {
        // The library takes the last of two parts of a name, and refuses whatever else is no such file.
        return match serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(file) {
            Ok(_) => Err("has a part twice, expected each once; get the file again".to_owned()),
            Err(_) => Ok(()),
        };
    };
    let Some((_, added)) = parts.iter().find(|(name, _)| name == "added_tokens") else { return Ok(()) };
    let Ok(added) = serde_json::from_str::<Vec<Added>>(added.get()) else { return Ok(()) };
    check_tokens(added.iter().map(|token| &token.content))
}

/// Refuses tokens of so much text that a row of them is more than any memory holds.
pub(super) fn check_tokens<'a>(tokens: impl Iterator<Item = &'a String>) -> Result<(), String> {
    match tokens.map(String::len).max() {
        Some(longest) if longest > MAX_TOKEN_BYTES => {
            Err(format!("a token has {longest} bytes of text, expected at most {MAX_TOKEN_BYTES}"))
        }
        _ => Ok(()),
    }
}

/// Refuses a decoder that makes far longer texts of tokens.
pub(super) fn check_decoder(decoder: &DecoderWrapper) -> Result<(), String> {
    let written = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
    let times = decoded_times(&written);
    match times <= MAX_DECODED {
        true => Ok(()),
        false => {
            Err(format!("`decoder` replaces text by up to {times} times as much, expected at most {MAX_DECODED} times"))
        }
    }
}

/// Times its length that a token becomes, at most.
fn decoded_times(part: &Value) -> usize {
    match part {
        Value::Array(parts) => parts.iter().map(decoded_times).fold(1, usize::saturating_mul),
        Value::Object(part) => match (part.get("pattern"), part.get("content").and_then(Value::as_str)) {
            (Some(pattern), Some(content)) => match pattern.get("String").and_then(Value::as_str) {
                Some(text) if !text.is_empty() => content.len().div_ceil(text.len()).max(1),
                // An expression may find nothing beside each character.
                _ => content.len().saturating_add(1),
            },
            _ => part.values().map(decoded_times).fold(1, usize::saturating_mul),
        },
        _ => 1,
    }
}

#[cfg(test)]
mod tests;
