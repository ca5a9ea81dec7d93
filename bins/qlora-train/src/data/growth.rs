//! Bounds on what the parts of a `tokenizer.json` make of a text, and on what its library reserves for them: a few
//! bytes of a stranger's file may stand for any number.

use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{DecoderWrapper, ModelWrapper};

/// Times its length that a text may become before it is cut into pieces. Compatibility forms of one character have up
/// to 33 bytes, and text is not made of those alone.
const TIMES: usize = 12;
/// Bytes beside that, for short texts.
const BESIDE: usize = 64 << 10;
/// Bytes that a table of characters may put in the place of one.
const MAX_FORM_BYTES: usize = 128;
/// Times its length that decoding may make of a token.
const MAX_DECODED: usize = 64;
/// Bytes of a token's own text. The longest known are runs of some hundred blanks.
const MAX_TOKEN_BYTES: usize = 4 << 10;
/// Texts of so few bytes are not looked at before a table replaces their characters.
const SHORT: usize = 1 << 10;

/// Refuses to make more of a text than it may become. `original`: bytes of the text as it was given.
pub(super) fn within(original: usize, made: usize, part: &str) -> tokenizers::Result<()> {
    match made <= original.saturating_mul(TIMES).saturating_add(BESIDE) {
        true => Ok(()),
        false => Err(format!(
            "a part of tokenizer.json ({part}) makes more than {TIMES} times as much of a text of {original} bytes"
        )
        .into()),
    }
}

/// Bytes that a part of the library makes of a text beyond what it has, at most, where they may be many.
pub(super) fn added_by(part: &NormalizerWrapper, text: &str) -> usize {
    match part {
        NormalizerWrapper::Prepend(prepend) => prepend.prepend.len(),
        NormalizerWrapper::Precompiled(table) if text.len() > SHORT => {
            table.normalize_string(text).len().saturating_sub(text.len())
        }
        _ => 0,
    }
}

/// Refuses tables of characters that no library should take as they are, before it does: one whose size is not that of
/// what follows, and one that puts long texts in the place of characters.
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
    let broken = || "`precompiled_charsmap` is broken: its size is not that of what follows".to_owned();
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

/// Refuses tokens of so much text that a row of them is more than any memory holds.
pub(super) fn check_tokens<'a>(tokens: impl Iterator<Item = &'a String>) -> Result<(), String> {
    match tokens.map(String::len).max() {
        Some(longest) if longest > MAX_TOKEN_BYTES => {
            Err(format!("a token has {longest} bytes of text, expected at most {MAX_TOKEN_BYTES}"))
        }
        _ => Ok(()),
    }
}

/// Refuses a decoder that makes far more of tokens than they are.
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
mod tests {
    use super::*;
    use serde_json::json;

    fn encoded(bytes: &[u8]) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let of = |group: &[u8]| {
            let bits = group.iter().fold(0u32, |bits, &byte| (bits << 8) | u32::from(byte)) << (8 * (3 - group.len()));
            let letters = (0..=group.len()).map(|at| char::from(LETTERS[((bits >> (18 - 6 * at)) & 63) as usize]));
            letters.chain("=".repeat(3 - group.len()).chars()).collect::<String>()
        };
        bytes.chunks(3).map(of).collect()
    }

    /// A table of no characters, which says that it has `size` bytes, and forms.
    fn table(size: u32, forms: &[u8]) -> Value {
        let bytes = [&size.to_le_bytes()[..], &[0; 8], forms].concat();
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"},
            {"type": "Precompiled", "precompiled_charsmap": encoded(&bytes)}]})
    }

    #[test]
    fn base64_is_read_as_it_is_written() {
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).map(|at: u8| at.wrapping_mul(97)).collect();
            assert_eq!(base64(&encoded(&bytes)), Some(bytes));
        }
        assert_eq!(base64("a b"), None);
    }

    #[test]
    fn tables_are_looked_at_before_they_are_used() {
        assert_eq!(check_normalizer(&table(8, &[&[b'a'; MAX_FORM_BYTES][..], &[0, b'b']].concat())), Ok(()));
        let why = check_normalizer(&table(8, &[b'a'; MAX_FORM_BYTES + 1])).unwrap_err();
        assert!(why.contains("129 bytes in the place of a character"), "{why}");
        for size in [13, 1 << 20, u32::MAX] {
            let why = check_normalizer(&table(size, b"abcd")).unwrap_err();
            assert!(why.contains("its size is not that of what follows"), "{size}: {why}");
        }
        assert!(check_normalizer(&json!({"precompiled_charsmap": ""})).is_err());
        assert_eq!(check_normalizer(&json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, null]})), Ok(()));
    }

    #[test]
    fn decoders_that_multiply_are_refused() {
        let decoder = |parts: Value| -> Result<(), String> {
            check_decoder(&serde_json::from_value(json!({"type": "Sequence", "decoders": parts})).unwrap())
        };
        let replace = |by: &str| json!({"type": "Replace", "pattern": {"String": "▁"}, "content": by});
        assert_eq!(decoder(json!([replace(" "), {"type": "ByteFallback"}, {"type": "Fuse"}])), Ok(()));
        assert_eq!(decoder(json!([replace("twelve bytes")])), Ok(()));
        assert!(decoder(json!([replace(&"x".repeat(200))])).unwrap_err().contains("by up to 67 times as much"));
        // Each makes two of one.
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        assert_eq!(decoder(json!([double, double, double])), Ok(()));
        assert!(decoder(json!(vec![double; 70])).is_err());
        let each = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(64)});
        assert!(decoder(json!([each])).is_err());
    }

    #[test]
    fn long_tokens_are_refused() {
        let of = |length: usize| check_tokens(["a".to_owned(), "b".repeat(length)].iter());
        assert_eq!(of(MAX_TOKEN_BYTES), Ok(()));
        assert!(of(MAX_TOKEN_BYTES + 1).unwrap_err().contains("a token has 4097 bytes"));
    }
}
