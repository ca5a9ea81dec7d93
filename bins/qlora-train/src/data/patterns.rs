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
    AddedToken, DecoderWrapper, Encoding, ModelWrapper, NormalizerWrapper, Offsets, PostProcessorWrapper,
    PreTokenizedString, PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl,
};

use super::{growth, json};

pub(super) type Tokenizer = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// The expression of byte-level tokenizers that name none, which is GPT-2's.
static BYTE_LEVEL: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(OF_WORDS[0]).expect("the expression compiles"));

/// Expressions that begin a piece anew between words, whatever stands around (see `cuts`): those of GPT-2, Llama 3 and
/// Qwen, of Mistral's Tekken and of o200k.
const OF_WORDS: [&str; 5] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Those of models have one.
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

    /// Parts that write each byte of a text as a character, which has up to two.
    fn byte_levels(&self) -> usize {
        match self {
            Self::ByteLevel(_) | Self::Other(PreTokenizerWrapper::ByteLevel(_)) => 1,
            Self::Sequence(parts) => parts.iter().map(Self::byte_levels).sum(),
            Self::Split { .. } | Self::Other(_) => 0,
        }
    }

    /// What it does at the places where texts are cut.
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

/// What a part does with a text at the places that `cuts` finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtCuts {
    /// It begins a piece there, and what stands on one side changes nothing on the other.
    Splits,
    /// It neither begins a piece there nor looks across.
    Nothing,
    Unknown,
}

/// Whether a text that is cut where `cuts` says so has the tokens of the whole.
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
    /// The library's own, of a text and not of an expression.
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
    /// Whether it leaves letters, blanks and line ends what they are, one by one.
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

/// Refuses to put `content` in the place of so many matches that no memory holds the text.
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

    /// Where a text is cut, the pieces of its parts are those of the whole.
    #[test]
    fn texts_that_are_cut_have_the_pieces_of_the_whole() {
        use super::super::cuts::is_place;
        use qlora_kernels::rng::Stream;
        use tokenizers::{Normalizer as _, OffsetReferential, OffsetType, PreTokenizer as _};
        let words = [
            "a", "b", "Z", "'s", "'LL", " ", " ", "  ", "\n", "\n", "\r", "\t", ".", "!\n", "。", "第", "一", "é",
            "e\u{301}", "\u{301}", "7", "42", "\u{3000}", "/", "_", "🙂", "ß", "İ", "_x", "か", "д", "가", "ि", "'",
            "/\n",
        ];
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let punctuation = json!({"type": "Punctuation", "behavior": "Isolated"});
        let mut cuttable: Vec<Value> = OF_WORDS.iter().map(|source| split(source, "Isolated", false)).collect();
        cuttable.extend(OF_WORDS.iter().map(|source| split(source, "Removed", true)));
        cuttable.extend(["Whitespace", "WhitespaceSplit", "BertPreTokenizer"].map(|name| json!({"type": name})));
        cuttable.push(byte_level(false, true));
        cuttable.push(sequence(vec![digits.clone(), byte_level(false, true)]));
        cuttable.push(sequence(vec![punctuation, split(OF_WORDS[1], "Isolated", false), byte_level(false, false)]));
        let normalizers = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"].map(|name| json!({"type": name}));
        let pieces = |tokenizer: &Tokenizer, text: &str, from: usize| -> Vec<(String, usize, usize)> {
            let mut text = NormalizedString::from(text);
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut text).unwrap();
            }
            let mut text = PreTokenizedString::from(text);
            tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut text).unwrap();
            let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.into_iter().map(|(piece, (start, end), _)| (piece.to_owned(), start + from, end + from)).collect()
        };
        let mut stream = Stream::new(1, 2);
        let mut cuts = 0;
        for (at, part) in cuttable.iter().enumerate() {
            let normalizer = if at % 2 == 0 { Value::Null } else { normalizers[at % normalizers.len()].clone() };
            let tokenizer = Tokenizer::from_bytes(file(normalizer, part.clone())).unwrap();
            assert!(may_cut(&tokenizer), "{part}");
            for _ in 0..1500 {
                let text: String = (0..16).map(|_| words[stream.below(words.len() as u32) as usize]).collect();
                let whole = pieces(&tokenizer, &text, 0);
                for cut in (1..text.len()).filter(|&at| text.is_char_boundary(at) && is_place(&text, at)) {
                    let (left, right) = text.split_at(cut);
                    let parts = [pieces(&tokenizer, left, 0), pieces(&tokenizer, right, cut)].concat();
                    assert_eq!(parts, whole, "{part} {left:?} {right:?}");
                    cuts += 1;
                }
            }
        }
        assert!(cuts > 4000, "{cuts}");
    }

    #[test]
    fn tokenizers_that_look_across_words_are_not_cut() {
        let prefix = json!({"type": "Prepend", "prepend": "_"});
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
        let words = split(OF_WORDS[1], "Isolated", false);
        for (normalizer, part) in [
            (Value::Null, Value::Null),
            (prefix, words.clone()),
            (Value::Null, metaspace),
            (Value::Null, byte_level(true, true)),
            (Value::Null, byte_level(false, false)),
            (Value::Null, split(r"\s+", "Isolated", false)),
            (Value::Null, split(OF_WORDS[1], "MergedWithNext", false)),
        ] {
            let tokenizer = Tokenizer::from_bytes(file(normalizer.clone(), part.clone())).unwrap();
            assert!(!may_cut(&tokenizer), "{normalizer} {part}");
        }
        let with_token = |token: AddedToken| {
            let mut tokenizer = Tokenizer::from_bytes(file(Value::Null, words.clone())).unwrap();
            tokenizer.add_tokens(&[token]);
            may_cut(&tokenizer)
        };
        assert!(with_token(AddedToken::from("<|im_end|>", true)) && with_token(AddedToken::from("  ", false)));
        assert!(!with_token(AddedToken::from("<mask>", true).lstrip(true)));
        assert!(
            !with_token(AddedToken::from("new york", false)) && !with_token(AddedToken::from("x", false).rstrip(true))
        );
    }

    #[test]
    fn what_a_normalizer_makes_is_bounded() {
        let replace = json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "y".repeat(1 << 20)});
        let tokenizer = Tokenizer::from_bytes(file(replace, split(OF_WORDS[1], "Isolated", false))).unwrap();
        let encode = |text: &str| checked(|| tokenizer.encode(text, false));
        let why = encode(&"a".repeat(100)).unwrap_err().to_string();
        assert!(why.contains("(a) makes more than 12 times as much of a text of 100 bytes"), "{why}");
        assert!(encode(&"b".repeat(100)).is_ok());
    }

    /// Parts that multiply a text, each in its own way, and those that do so together.
    #[test]
    fn no_part_of_a_normalizer_makes_much_of_a_text() {
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        let text = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let prepend = |text: &str| json!({"type": "Prepend", "prepend": text});
        let long = "y".repeat(1 << 20);
        let words = || split(OF_WORDS[1], "Isolated", false);
        for normalizer in [
            text("a", &long),
            text("", &long),
            prepend(&long),
            sequence(vec![text("a", "aa"); 40]),
            sequence(vec![prepend(&long[..1000]); 1000]),
            sequence(vec![json!({"type": "ByteLevel"}); 40]),
        ] {
            let tokenizer = Tokenizer::from_bytes(file(normalizer.clone(), words())).unwrap();
            let encode = |text: &str| checked(|| tokenizer.encode(text, false));
            let why = encode(&"aé".repeat(100)).unwrap_err().to_string();
            assert!(why.contains("times as much of a text of 300 bytes"), "{why}");
        }
        // Those of models.
        for normalizer in [
            text(" ", "▁"),
            sequence(vec![prepend("▁"), text(" ", "▁")]),
            sequence(vec![json!({"type": "NFKC"}), text("\n", "▁▁▁")]),
        ] {
            let tokenizer = Tokenizer::from_bytes(file(normalizer, words())).unwrap();
            assert!(checked(|| tokenizer.encode("ﷺ \n".repeat(5000), false)).is_ok());
        }
        let huge = json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="});
        let why = Tokenizer::from_bytes(file(huge, words())).unwrap_err().to_string();
        assert!(why.contains("precompiled_charsmap"), "{why}");
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
