//! The tokenizer, with regular expressions that say so where they give up.
//!
//! The engine of the expressions stops a search that keeps more than a million places to go back to, or that has gone
//! back a million times. The library takes that for the end of the text: what is left becomes one piece, and other
//! tokens. Here the parts of a `tokenizer.json` that search (`Split` and `ByteLevel` before tokenizing, `Replace` in
//! normalizing) do it through [`Pattern`], whose error reaches the row. Every other part is the library's own.

use std::cell::Cell;
use std::sync::LazyLock;

use fancy_regex::Regex;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokenizers::normalizer::NormalizedString;
use tokenizers::pattern::{self, Invert};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    DecoderWrapper, Encoding, ModelWrapper, NormalizerWrapper, Offsets, PostProcessorWrapper, PreTokenizedString,
    PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl,
};

use super::json;

pub(super) type Tokenizer = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// The expression of byte-level tokenizers that name none, which is GPT-2's.
static BYTE_LEVEL: LazyLock<Pattern> = LazyLock::new(|| {
    Pattern::new(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        .expect("the expression compiles")
});

/// An expression that fails where its search gives up.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    fn new(source: &str) -> Result<Self, String> {
        Regex::new(source).map(Self).map_err(|error| format!("{}: {error}", json::shorten(source)))
    }
}

impl pattern::Pattern for &Pattern {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let mut end = 0;
        for found in self.0.find_iter(inside) {
            let found = found.map_err(|_| gave_up(&self.0, inside, end))?;
            if end != found.start() {
                pieces.push(((end, found.start()), false));
            }
            pieces.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != inside.len() {
            pieces.push(((end, inside.len()), false));
        }
        Ok(pieces)
    }
}

/// Why a text cannot be tokenized whose rest, from a byte on, a search gave up on.
fn gave_up(regex: &Regex, text: &str, from: usize) -> String {
    let rest = text.get(from..).unwrap_or_default();
    format!(
        "a pattern of tokenizer.json ({}) gives up on {} bytes of text that begin with {:?}: shorten such a run of \
         characters, or split the row",
        json::shorten(regex.as_str()),
        rest.len(),
        json::shorten(rest)
    )
}

/// Parts that cut a text into pieces before it is tokenized.
#[derive(Debug)]
pub(super) enum PreTokenizer {
    Split {
        pattern: Pattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// With the expression of its own.
    ByteLevel(ByteLevel),
    Sequence(Vec<PreTokenizer>),
    Other(PreTokenizerWrapper),
}

impl PreTokenizer {
    fn from_library(part: PreTokenizerWrapper) -> Result<Self, String> {
        Ok(match part {
            PreTokenizerWrapper::Split(Split { pattern: SplitPattern::Regex(source), behavior, invert, .. }) => {
                Self::Split { pattern: Pattern::new(&source)?, behavior, invert }
            }
            PreTokenizerWrapper::ByteLevel(byte_level) if byte_level.use_regex => Self::ByteLevel(byte_level),
            PreTokenizerWrapper::Sequence(parts) => {
                Self::Sequence(parts.into_iter().map(Self::from_library).collect::<Result<_, _>>()?)
            }
            other => Self::Other(other),
        })
    }
}

impl<'de> Deserialize<'de> for PreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_library(PreTokenizerWrapper::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Split { pattern, behavior, invert: true } => {
                text.split(|_, piece| piece.split(Invert(pattern), *behavior))
            }
            Self::Split { pattern, behavior, invert: false } => text.split(|_, piece| piece.split(pattern, *behavior)),
            Self::ByteLevel(byte_level) => {
                text.split(|_, mut piece| {
                    if byte_level.add_prefix_space && !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    piece.split(&*BYTE_LEVEL, SplitDelimiterBehavior::Isolated)
                })?;
                byte_level.add_prefix_space(false).use_regex(false).pre_tokenize(text)
            }
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Other(part) => part.pre_tokenize(text),
        }
    }
}

/// Parts that rewrite a text before it is cut.
#[derive(Debug)]
pub(super) enum Normalizer {
    Replace { pattern: Pattern, content: String },
    Sequence(Vec<Normalizer>),
    Other(NormalizerWrapper),
}

impl Normalizer {
    fn from_library(part: NormalizerWrapper) -> Result<Self, String> {
        Ok(match part {
            // The library keeps the expression to itself, and writes it out.
            NormalizerWrapper::Replace(replace) => {
                let written = serde_json::to_value(&replace).map_err(|error| error.to_string())?;
                match written.pointer("/pattern/Regex").and_then(Value::as_str) {
                    Some(source) => Self::Replace { pattern: Pattern::new(source)?, content: replace.content },
                    None => Self::Other(NormalizerWrapper::Replace(replace)),
                }
            }
            NormalizerWrapper::Sequence(parts) => {
                Self::Sequence(parts.into_iter().map(Self::from_library).collect::<Result<_, _>>()?)
            }
            other => Self::Other(other),
        })
    }
}

impl<'de> Deserialize<'de> for Normalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_library(NormalizerWrapper::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let done = match self {
            Self::Replace { pattern, content } => text.replace(pattern, content),
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.normalize(text)),
            Self::Other(part) => part.normalize(text),
        };
        if let Err(error) = &done {
            NOT_NORMALIZED.set(Some(error.to_string()));
        }
        done
    }
}

thread_local! {
    /// Why the text that this thread tokenizes could not be normalized. The library does not ask.
    static NOT_NORMALIZED: Cell<Option<String>> = const { Cell::new(None) };
}

/// What `encode` makes of a text, or why the text could not be normalized.
pub(super) fn checked(encode: impl FnOnce() -> tokenizers::Result<Encoding>) -> tokenizers::Result<Encoding> {
    NOT_NORMALIZED.set(None);
    let encoding = encode()?;
    match NOT_NORMALIZED.take() {
        Some(why) => Err(why.into()),
        None => Ok(encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn file(normalizer: Value, pre_tokenizer: Value) -> Vec<u8> {
        let letters: serde_json::Map<String, Value> =
            (0..=255u8).map(|byte| (char::from(byte).to_string(), json!(byte))).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
            "decoder": null, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "model": {"type": "BPE", "vocab": letters, "merges": [], "unk_token": "?"},
        });
        file.to_string().into_bytes()
    }

    fn split(source: &str, behavior: &str, invert: bool) -> Value {
        json!({"type": "Split", "pattern": {"Regex": source}, "behavior": behavior, "invert": invert})
    }

    fn byte_level(prefix: bool, regex: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex})
    }

    /// Parts of every kind: alone, in a sequence, and in a sequence within one.
    fn parts() -> Vec<Value> {
        let mut parts = vec![
            split(LLAMA3, "Isolated", false),
            split(LLAMA3, "Removed", true),
            split(r"\s+(?!\S)", "MergedWithPrevious", false),
            byte_level(false, true),
            byte_level(true, true),
        ];
        let within = parts.clone();
        for part in within {
            let sequence = |parts: Vec<&Value>| json!({"type": "Sequence", "pretokenizers": parts});
            let inner = sequence(vec![&part, &byte_level(false, false)]);
            parts.extend([sequence(vec![&json!({"type": "Digits", "individual_digits": true}), &inner]), inner]);
        }
        parts
    }

    #[test]
    fn texts_get_the_tokens_and_offsets_of_the_library() {
        let texts = ["", "a", " Hello  world's\n\n 123456 x \t ", "é–ü 💡\r\n  ", &" ".repeat(900), "'LL it's 7\n"];
        for part in parts() {
            for normalizer in
                [Value::Null, json!({"type": "Replace", "pattern": {"Regex": r"\s(?=\d)"}, "content": "_"})]
            {
                let bytes = file(normalizer, part.clone());
                let ours = Tokenizer::from_bytes(&bytes).unwrap();
                let library = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
                for text in texts {
                    let (ours, library) = (ours.encode(text, true).unwrap(), library.encode(text, true).unwrap());
                    assert_eq!(ours, library, "{part} {text:?}");
                }
            }
        }
    }

    #[test]
    fn a_search_that_gives_up_is_an_error_in_every_part() {
        let long = format!("a{}b", " ".repeat(1_100_000));
        for part in parts() {
            let tokenizer = Tokenizer::from_bytes(file(Value::Null, part.clone())).unwrap();
            let why = tokenizer.encode(long.as_str(), false).unwrap_err().to_string();
            assert!(why.contains("gives up on") && why.contains("bytes of text that begin with"), "{part}: {why}");
        }
        let replace = json!({"type": "Replace", "pattern": {"Regex": r"\s+(?!\S)"}, "content": ""});
        for normalizer in [replace.clone(), json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]})] {
            let tokenizer = Tokenizer::from_bytes(file(normalizer, Value::Null)).unwrap();
            let encode = |text: &str| checked(|| tokenizer.encode(text, false));
            assert_eq!(encode("x  y ").unwrap().get_ids().len(), 3);
            let why = encode(&long).unwrap_err().to_string();
            assert!(why.contains(r"(\s+(?!\S))") && why.contains("1100002 bytes"), "{why}");
            // It is of that text alone.
            assert!(encode("x").is_ok());
        }
    }
}
