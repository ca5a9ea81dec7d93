//! The tokenizer, with regular expressions that report when a search gives up.
//!
//! The engine of the expressions stops a search that keeps more than a million places to go back to, or that has gone
//! back a million times. The library treats that as the end of the text: the rest becomes one piece, with other tokens.
//! Here the parts of a `tokenizer.json` that search (`Split` and `ByteLevel` before tokenizing, `Replace` in
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
    AddedToken, DecoderWrapper, Encoding, ModelWrapper, NormalizerWrapper, Offsets, PostProcessorWrapper,
    PreTokenizedString, PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl,
};

use super::{growth, json};

pub(super) type Tokenizer = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// The expression of byte-level tokenizers that name none, which is GPT-2's.
static BYTE_LEVEL: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(OF_WORDS[0]).expect("the expression compiles"));

/// Expressions that start a new piece between words, whatever the context (see `cuts`): those of GPT-2, Llama 3 and
/// Qwen, of Mistral's Tekken and of o200k.
const OF_WORDS: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Limit on parts that write bytes as characters; real models have one.
const MAX_BYTE_LEVELS: usize = 4;

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

/// The error for a text in which a search gave up at byte `from`.
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

    /// Number of parts that write each byte of a text as a character of up to two bytes.
    fn byte_levels(&self) -> usize {
        match self {
            Self::ByteLevel(_) | Self::Other(PreTokenizerWrapper::ByteLevel(_)) => 1,
            Self::Sequence(parts) => parts.iter().map(Self::byte_levels).sum(),
            Self::Split { .. } | Self::Other(_) => 0,
        }
    }

    /// Its effect at the places where texts are cut.
    fn at_cuts(&self) -> AtCuts {
        use SplitDelimiterBehavior::{Isolated, Removed};
        match self {
            Self::Split { pattern, behavior, invert }
                if OF_WORDS.contains(&pattern.0.as_str())
                    && matches!((behavior, invert), (Isolated, false) | (Removed, true)) =>
            {
                AtCuts::Splits
            }
            Self::ByteLevel(byte_level) if !byte_level.add_prefix_space => AtCuts::Splits,
            Self::Sequence(parts) => parts.iter().map(Self::at_cuts).fold(AtCuts::Nothing, |all, part| match part {
                AtCuts::Unknown => AtCuts::Unknown,
                _ if all == AtCuts::Unknown => AtCuts::Unknown,
                AtCuts::Nothing => all,
                AtCuts::Splits => AtCuts::Splits,
            }),
            Self::Other(PreTokenizerWrapper::ByteLevel(byte_level)) if !byte_level.add_prefix_space => AtCuts::Nothing,
            Self::Other(PreTokenizerWrapper::Digits(_)) => AtCuts::Nothing,
            Self::Other(PreTokenizerWrapper::Punctuation(punctuation)) if punctuation.behavior == Isolated => {
                AtCuts::Nothing
            }
            Self::Other(
                PreTokenizerWrapper::Whitespace(_)
                | PreTokenizerWrapper::WhitespaceSplit(_)
                | PreTokenizerWrapper::BertPreTokenizer(_),
            ) => AtCuts::Splits,
            Self::Split { .. } | Self::ByteLevel(_) | Self::Other(_) => AtCuts::Unknown,
        }
    }
}

/// Effect of a part at the places that `cuts` finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtCuts {
    /// It starts a new piece there, and neither side affects the other.
    Splits,
    /// It neither begins a piece there nor looks across.
    Nothing,
    Unknown,
}

/// True if a text that is cut where `cuts` says so has the tokens of the whole.
pub(super) fn may_cut(tokenizer: &Tokenizer) -> bool {
    let normalizer = tokenizer.get_normalizer().is_none_or(Normalizer::keeps_cuts);
    let pre_tokenizer = tokenizer.get_pre_tokenizer().map_or(AtCuts::Unknown, PreTokenizer::at_cuts);
    // Added tokens that reach across a place, or take the blanks beside them.
    let across = |token: &AddedToken| {
        let with_blank = token.content.contains(char::is_whitespace) && !token.content.trim().is_empty();
        with_blank || token.lstrip || token.rstrip
    };
    let added = tokenizer.get_added_tokens_decoder();
    normalizer && pre_tokenizer == AtCuts::Splits && !added.values().any(across)
}

impl<'de> Deserialize<'de> for PreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let part = Self::from_library(PreTokenizerWrapper::deserialize(deserializer)?).map_err(D::Error::custom)?;
        match part.byte_levels() {
            count if count > MAX_BYTE_LEVELS => Err(D::Error::custom(format!(
                "`pre_tokenizer` has {count} parts `ByteLevel`, each of which may double a text; expected at most \
                 {MAX_BYTE_LEVELS}"
            ))),
            _ => Ok(part),
        }
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
    Replace {
        pattern: Pattern,
        content: String,
    },
    /// The library's own, for a text and not an expression.
    ReplaceText {
        text: String,
        content: String,
        part: NormalizerWrapper,
    },
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
                    None => {
                        let text = written.pointer("/pattern/String").and_then(Value::as_str).unwrap_or_default();
                        let (text, content) = (text.to_owned(), replace.content.clone());
                        Self::ReplaceText { text, content, part: NormalizerWrapper::Replace(replace) }
                    }
                }
            }
            NormalizerWrapper::Sequence(parts) => {
                Self::Sequence(parts.into_iter().map(Self::from_library).collect::<Result<_, _>>()?)
            }
            other => Self::Other(other),
        })
    }
}

impl Normalizer {
    /// True if it leaves letters, blanks and line ends what they are, one by one.
    fn keeps_cuts(&self) -> bool {
        match self {
            Self::Sequence(parts) => parts.iter().all(Self::keeps_cuts),
            Self::Other(part) => matches!(
                part,
                NormalizerWrapper::NFC(_)
                    | NormalizerWrapper::NFD(_)
                    | NormalizerWrapper::NFKC(_)
                    | NormalizerWrapper::NFKD(_)
                    | NormalizerWrapper::Lowercase(_)
            ),
            Self::Replace { .. } | Self::ReplaceText { .. } => false,
        }
    }
}

impl<'de> Deserialize<'de> for Normalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Looked at before the library makes anything of it.
        let written = Value::deserialize(deserializer)?;
        growth::check_normalizer(&written).map_err(D::Error::custom)?;
        let part = NormalizerWrapper::deserialize(&written).map_err(D::Error::custom)?;
        Self::from_library(part).map_err(D::Error::custom)
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let done = match self {
            Self::Replace { pattern, content } => {
                let count = |text: &str| -> tokenizers::Result<usize> {
                    let pieces = pattern::Pattern::find_matches(&pattern, text)?;
                    Ok(pieces.into_iter().filter(|(_, found)| *found).count())
                };
                replaces_within(text, content, &json::shorten(pattern.0.as_str()), count)
                    .and_then(|()| text.replace(pattern, content))
            }
            Self::ReplaceText { text: replaced, content, part } => {
                let count = |text: &str| -> tokenizers::Result<usize> { Ok(text.matches(replaced.as_str()).count()) };
                replaces_within(text, content, &json::shorten(replaced), count).and_then(|()| part.normalize(text))
            }
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.normalize(text)),
            Self::Other(part) => {
                let made = text.get().len().saturating_add(growth::added_by(part, text.get()));
                growth::within(text.get_original().len(), made, "normalizer").and_then(|()| part.normalize(text))
            }
        };
        if let Err(error) = &done {
            NOT_NORMALIZED.set(Some(error.to_string()));
        }
        done
    }
}

/// Refuses to replace so many matches by `content` that the text would fill the memory.
fn replaces_within(
    text: &NormalizedString,
    content: &str,
    name: &str,
    matches: impl FnOnce(&str) -> tokenizers::Result<usize>,
) -> tokenizers::Result<()> {
    let (original, present) = (text.get_original().len(), text.get());
    let made = |matches: usize| present.len().saturating_add(matches.saturating_mul(content.len()));
    // Most texts are far from it, and their matches are not counted.
    match growth::within(original, made(present.len() + 1), name) {
        Ok(()) => Ok(()),
        Err(_) => growth::within(original, made(matches(present)?), name),
    }
}

thread_local! {
    /// The reason why the text that this thread tokenizes could not be normalized. The library has no way to return it.
    static NOT_NORMALIZED: Cell<Option<String>> = const { Cell::new(None) };
}

/// The result of `encode`, or the reason why the text could not be normalized.
pub(super) fn checked(encode: impl FnOnce() -> tokenizers::Result<Encoding>) -> tokenizers::Result<Encoding> {
    NOT_NORMALIZED.set(None);
    let encoding = encode()?;
    match NOT_NORMALIZED.take() {
        Some(why) => Err(why.into()),
        None => Ok(encoding),
    }
}

#[cfg(test)]
mod tests;
