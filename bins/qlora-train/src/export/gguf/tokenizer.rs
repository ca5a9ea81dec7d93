//! The tokenizer of a model in the metadata of GGUF: byte-level BPE (`gpt2`), or the BPE of SentencePiece with bytes
//! for what has no token (`llama`).

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::pre_tokenizer;
use crate::arch::Arch;
use crate::bail_usage;
use crate::data::ChatTokenizer;
use crate::error::{Context, Error, Result};
use crate::files::json::read_bounded;
use crate::gguf::{Entries, Entry};

const MAX_BYTES: u64 = 256 << 20;

/// `tokenizer.ggml.token_type`
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// SentencePiece's mark of a space.
const SPACE: char = '▁';

/// The parts of tokenizer.json that are not read through its library.
#[derive(Deserialize)]
struct Source {
    model: Model,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    unk_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Text(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair([left, right]) => Some((left, right)),
            Self::Text(text) => text.split_once(' '),
        }
    }
}

/// The entries of the tokenizer, and notes, one sentence each. `dir` holds its tokenizer.json. Refused: one that
/// llama.cpp has no way to read, or that is larger than the model's embedding.
pub(super) fn entries(dir: &Path, tokenizer: &ChatTokenizer, arch: &Arch) -> Result<(Entries, Vec<String>)> {
    let path = dir.join("tokenizer.json");
    let shown = path.display();
    let source: Source =
        serde_json::from_slice(&read_bounded(&path, MAX_BYTES)?).usage_context(|| format!("{shown}: not read"))?;
    if source.model.r#type.as_deref().is_some_and(|kind| kind != "BPE") {
        bail_usage!("{shown}: found a model of type {:?}, expected BPE", source.model.r#type.unwrap_or_default());
    }
    let own = tokenizer.vocabulary();
    if own.len() > arch.vocab_size {
        bail_usage!(
            "{shown}: found {} tokens, expected at most the {} rows of the model's embedding: are both of one model?",
            own.len(),
            arch.vocab_size
        );
    }
    let mut notes = Vec::new();
    let spm = source.model.byte_fallback;
    let mut tokens = tokens(&own, tokenizer, &source, arch.vocab_size);
    let mut entries = Vec::new();
    let merges = match spm {
        false => {
            let Some(pre) = pre_tokenizer::name(tokenizer, &source.pre_tokenizer, source.model.ignore_merges)? else {
                bail_usage!(
                    "{shown}: llama.cpp is not known to cut text as its `pre_tokenizer` does, so it would read other \
                     tokens; serve the 16-bit model that `merge` writes"
                );
            };
            if pre == pre_tokenizer::GPT4O_NAME {
                notes.push(format!(
                    "{shown}: llama.cpp cuts words with combining marks, as Hindi has them, otherwise than this tokenizer, \
                     and reads other tokens there"
                ));
            }
            entries.push(("model", Entry::Text("gpt2".to_owned())));
            entries.push(("pre", Entry::Text(pre.to_owned())));
            Some(merges(&source.model.merges, &path)?)
        }
        true => {
            entries.push(("model", Entry::Text("llama".to_owned())));
            entries.push(("pre", Entry::Text("default".to_owned())));
            let Some(prefix) = space_prefix(&source) else {
                bail_usage!(
                    "{shown}: found a normalizer or pre_tokenizer that llama.cpp has not, expected that of SentencePiece: \
                     a space before the text, and {SPACE} for spaces"
                );
            };
            if prefix == Prefix::First {
                notes.push(format!(
                    "{shown}: puts a space before the first piece of text only; llama.cpp puts one behind every special \
                     token too"
                ));
            }
            entries.push(("add_space_prefix", Entry::Bool(prefix != Prefix::Never)));
            entries.push(("scores", Entry::F32s(scores(&tokens.texts, &source.model.merges))));
            None
        }
    };
    entries.push(("tokens", Entry::Texts(std::mem::take(&mut tokens.texts))));
    entries.push(("token_type", Entry::I32s(tokens.kinds)));
    entries.extend(merges.map(|merges| ("merges", Entry::Texts(merges))));
    entries.extend(special_ids(tokenizer, &own, arch, &path)?);
    entries.push(("add_bos_token", Entry::Bool(tokenizer.begins_with_bos())));
    entries.push(("add_eos_token", Entry::Bool(false)));
    let mut entries: Entries =
        entries.into_iter().map(|(key, entry)| (format!("tokenizer.ggml.{key}"), entry)).collect();
    if let Some(template) = tokenizer.template() {
        entries.push(("tokenizer.chat_template".to_owned(), Entry::Text(template.source().to_owned())));
    }
    Ok((entries, notes))
}

struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

/// A token for each row of the embedding.
fn tokens(own: &[Option<String>], tokenizer: &ChatTokenizer, source: &Source, rows: usize) -> Tokens {
    let spm = source.model.byte_fallback;
    let added: HashMap<u32, bool> =
        tokenizer.added_tokens().into_iter().map(|token| (token.id, token.special)).collect();
    let unknown = source.model.unk_token.as_deref();
    let mut tokens = Tokens { texts: Vec::with_capacity(rows), kinds: Vec::with_capacity(rows) };
    for id in 0..rows {
        let Some(text) = own.get(id).and_then(Option::as_deref) else {
            tokens.texts.push(format!("[PAD{id}]"));
            tokens.kinds.push(kind::UNUSED);
            continue;
        };
        let (kind, text) = match added.get(&(id as u32)) {
            _ if spm && unknown == Some(text) => (kind::UNKNOWN, text.to_owned()),
            Some(special) if *special || looks_special(text) => (kind::CONTROL, text.to_owned()),
            Some(_) => (kind::USER_DEFINED, if spm { text.replace(SPACE, " ") } else { text.to_owned() }),
            None if spm && is_byte(text) => (kind::BYTE, text.to_owned()),
            None => (kind::NORMAL, text.to_owned()),
        };
        tokens.texts.push(text);
        tokens.kinds.push(kind);
    }
    tokens
}

/// Marks that some tokenizers add as text; llama.cpp's converter treats them as special too.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// "<0x0A>"
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn merges(merges: &[Merge], path: &Path) -> Result<Vec<String>> {
    let one = |merge: &Merge| match merge.pair() {
        Some((left, right)) if !left.contains(' ') && !right.contains(' ') => Ok(format!("{left} {right}")),
        _ => bail_usage!("{}: found a merge that is no pair of tokens without spaces", path.display()),
    };
    merges.iter().map(one).collect()
}

/// The place of SentencePiece's space before a text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Prefix {
    Never,
    First,
    Always,
}

/// `None`: not SentencePiece's way to treat spaces.
fn space_prefix(source: &Source) -> Option<Prefix> {
    let is = |value: &Value, kind: &str| value.get("type").and_then(Value::as_str) == Some(kind);
    let replaces = |value: &Value| {
        is(value, "Replace")
            && value.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
            && value.get("content").and_then(Value::as_str) == Some("▁")
    };
    let prepends = |value: &Value| is(value, "Prepend") && value.get("prepend").and_then(Value::as_str) == Some("▁");
    let (normalizer, pre_tokenizer) = (&source.normalizer, &source.pre_tokenizer);
    // Gemma's cuts at spaces, of which its normalizer leaves none.
    let at_spaces = is(pre_tokenizer, "Split")
        && pre_tokenizer.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
        && replaces(normalizer);
    if pre_tokenizer.is_null() || at_spaces {
        let parts = match is(normalizer, "Sequence") {
            true => normalizer.get("normalizers").and_then(Value::as_array)?.iter().collect(),
            false => vec![normalizer],
        };
        return match parts[..] {
            [only] if replaces(only) => Some(Prefix::Never),
            [first, second] if prepends(first) && replaces(second) => Some(Prefix::Always),
            _ => None,
        };
    }
    if !normalizer.is_null()
        || !is(pre_tokenizer, "Metaspace")
        || pre_tokenizer.get("split").and_then(Value::as_bool) == Some(true)
    {
        return None;
    }
    match pre_tokenizer.get("prepend_scheme").and_then(Value::as_str) {
        Some("never") => Some(Prefix::Never),
        Some("first") => Some(Prefix::First),
        Some("always") => Some(Prefix::Always),
        _ => None,
    }
}

/// The earlier a token is merged, the higher: SentencePiece merges by score where tokenizer.json has an order.
fn scores(tokens: &[String], merges: &[Merge]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        if let Some((left, right)) = merge.pair() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
    }
    let last = merges.len();
    tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or(last) as f32)).collect()
}

fn special_ids(
    tokenizer: &ChatTokenizer,
    own: &[Option<String>],
    arch: &Arch,
    path: &Path,
) -> Result<Vec<(&'static str, Entry)>> {
    let id_of = |name: &str| -> Option<u32> {
        let text = tokenizer.special_token(name)?;
        own.iter().position(|token| token.as_deref() == Some(text)).map(|id| id as u32)
    };
    let turn_ends = tokenizer.turn_end_ids();
    let eos = tokenizer.eos_token_id().or_else(|| arch.eos_token_ids.first().copied());
    let Some(eos) = eos.or_else(|| turn_ends.first().copied()) else {
        return Err(Error::Refused(format!(
            "{}: found no token that ends a text, expected `eos_token` in tokenizer_config.json or `eos_token_id` in \
             config.json: llama.cpp would stop at another",
            path.display()
        )));
    };
    let bos = tokenizer.bos_token_id().or(arch.bos_token_id).filter(|&id| (id as usize) < arch.vocab_size);
    let roles = [
        ("bos_token_id", bos),
        ("eos_token_id", Some(eos)),
        ("eot_token_id", turn_ends.iter().copied().find(|&id| id != eos)),
        ("unknown_token_id", id_of("unk_token")),
        ("padding_token_id", id_of("pad_token")),
    ];
    Ok(roles.into_iter().filter_map(|(key, id)| Some((key, Entry::U32(id?)))).collect())
}

#[cfg(test)]
mod tests;
