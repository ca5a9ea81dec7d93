//! The tokenizer of a model's directory and its chat template.
//!
//! Text is always tokenised without the special tokens that a tokenizer would add by itself: the chat template writes
//! them, and a second BOS would be one too many.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use jiff::Zoned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::json;
use super::messages::Message;
use super::template::{Builtin, ChatTemplate, Vocabulary};
use crate::error::{Context, Result};
use crate::refuse;

/// The names under which templates know the special tokens, as in `tokenizer_config.json`.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokens of a text take some fifty times its room.
const MAX_TEXT_BYTES: usize = 32 << 20;

#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    dir: PathBuf,
    /// (name, text), of those that the config names.
    special: Vec<(String, String)>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    /// Texts of all added tokens: one of them ends a turn.
    added: Vec<String>,
    template: Option<ChatTemplate>,
    template_origin: String,
    builtin: Option<Builtin>,
    /// The tokenizer itself puts a BOS before plain text.
    begins_with_bos: bool,
}

impl ChatTokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat template of a Hugging Face directory.
    ///
    /// `chat_template` is the setting of that name: `chatml`, `alpaca` or a file. It wins over the model's own
    /// template; which one is used is told by [`template_origin`](Self::template_origin), to be printed. Of the
    /// model's own, `chat_template.jinja` wins over the one in the config, as in transformers.
    pub fn open(dir: &Path, chat_template: Option<&str>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            refuse!(
                "{}: not found; expected the model's tokenizer (a `tokenizer.json` file; `tokenizer.model` alone is not supported)",
                path.display()
            );
        }
        let bytes = fs::read(&path).or_refuse(|| format!("{}: cannot read", path.display()))?;
        let mut tokenizer =
            Tokenizer::from_bytes(bytes).or_refuse(|| format!("{}: not a tokenizer", path.display()))?;
        let config_path = dir.join("tokenizer_config.json");
        let config = read_config(&config_path)?;

        let mut special = Vec::new();
        for name in SPECIAL_TOKENS {
            if let Some(token) = special_token(&config_path, &config, name)? {
                special.push((name.to_owned(), token));
            }
        }
        let id = |name: &str| -> Result<Option<u32>> {
            let Some((_, token)) = special.iter().find(|(key, _)| key == name) else { return Ok(None) };
            match tokenizer.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => refuse!(
                    "{}: {name} is {token:?}, which is no token of {}; are both files of the same model?",
                    config_path.display(),
                    path.display()
                ),
            }
        };
        let (bos_token_id, eos_token_id) = (id("bos_token")?, id("eos_token")?);
        let begins_with_bos = bos_token_id.is_some() && first_of_plain_text(&tokenizer) == bos_token_id;
        let vocabulary = Vocabulary {
            begins_with_bos,
            has_eos: eos_token_id.is_some(),
            has: &|token| tokenizer.token_to_id(token).is_some(),
        };
        let (source, template_origin) = match chat_template {
            Some(setting) => {
                let (source, origin) = chosen_template(setting, &vocabulary)?;
                (Some(source), origin)
            }
            None => own_template(dir, &config_path, &config)?,
        };
        let template = match source {
            None => None,
            Some(source) => {
                let compiled = ChatTemplate::compile(&source, special.clone(), Zoned::now());
                Some(compiled.or_refuse(|| template_origin.clone())?)
            }
        };
        let mut added: Vec<String> = tokenizer.get_added_tokens_decoder().values().map(|t| t.content.clone()).collect();
        added.extend(special.iter().filter(|(name, _)| name == "eos_token").map(|(_, token)| token.clone()));
        added.retain(|token| !token.trim().is_empty());

        // Truncation and padding are ours to do, and post-processors only add special tokens or trim offsets.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).or_refuse(|| format!("{}: truncation", path.display()))?;
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            tokenizer,
            dir: dir.to_path_buf(),
            special,
            bos_token_id,
            eos_token_id,
            added,
            template,
            template_origin,
            builtin: chat_template.and_then(Builtin::from_name),
            begins_with_bos,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The added token that ends an answer in this template, if it ends with one that is trained on.
    pub fn end_of_turn(&self) -> Option<u32> {
        let turns = [Message::new("user", "x"), Message::new("assistant", "y")];
        let tokens = self.encode_chat(&turns).ok()?;
        let last = tokens.labels.iter().rposition(|&label| label >= 0)?;
        let id = tokens.input_ids[last];
        self.tokenizer.id_to_token(id).filter(|text| self.added.contains(text)).map(|_| id)
    }

    /// Text of a special token by its name in `tokenizer_config.json`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special.iter().find(|(key, _)| key == name).map(|(_, token)| token.as_str())
    }

    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token_id
    }

    /// Whether rows begin with a BOS: the tokenizer puts one before plain text.
    pub fn begins_with_bos(&self) -> bool {
        self.begins_with_bos
    }

    /// The built-in template, if `chat_template` named one.
    pub fn builtin_template(&self) -> Option<Builtin> {
        self.builtin
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// None when the model has no chat template and none was chosen.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Where the chat template comes from, in words.
    pub fn template_origin(&self) -> &str {
        &self.template_origin
    }

    /// SHA-256 of the chat template's source, in hex.
    pub fn template_hash(&self) -> Option<String> {
        let digest = Sha256::digest(self.template.as_ref()?.source().as_bytes());
        Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Sets what `strftime_now` tells templates that write the date (the time of `open` unless set), so that a
    /// resumed run renders the same rows. See [`ChatTemplate::uses_date`].
    pub fn set_now(&mut self, now: Zoned) -> Result<()> {
        if let Some(template) = &self.template {
            let compiled = ChatTemplate::compile(template.source(), self.special.clone(), now);
            self.template = Some(compiled.or_refuse(|| self.template_origin.clone())?);
        }
        Ok(())
    }

    /// Token ids of text as it stands: nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).or_fail(|| "cannot tokenise".into())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids with the byte range of the text that each stands for.
    pub(super) fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, String> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!(
                "the row has {} bytes of text, more than the {} MiB that are tokenised at once; split it",
                text.len(),
                MAX_TEXT_BYTES >> 20
            ));
        }
        let encoding = self.tokenizer.encode(text, false).map_err(|error| format!("cannot tokenise: {error}"))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens).or_fail(|| "cannot decode tokens".into())
    }

    /// A token as the vocabulary spells it; `<id>` for an id without a token.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_else(|| format!("<{id}>"))
    }

    /// The text of a conversation up to where the assistant answers. Errors: no template, or what it says.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        let Some(template) = &self.template else { refuse!("{}", self.no_template()) };
        let turns: Vec<_> = messages.iter().map(Message::to_jinja).collect();
        template.render(&turns, true).or_refuse(|| self.template_origin.clone())
    }

    pub(super) fn no_template(&self) -> String {
        format!(
            "{}: the model has no chat template; set `chat_template` to chatml, alpaca or a Jinja file",
            self.dir.display()
        )
    }

    /// Whether the text ends with a token of its own, like an end-of-turn or end-of-text mark.
    pub(super) fn ends_with_added_token(&self, text: &str) -> bool {
        self.added.iter().any(|token| text.ends_with(token.as_str()))
    }

    /// Ids of all added tokens: special ones, and those that end turns.
    pub fn added_token_ids(&self) -> Vec<u32> {
        self.added.iter().filter_map(|token| self.tokenizer.token_to_id(token)).collect()
    }

    /// Where the last added token inside the text ends.
    pub(super) fn end_of_last_added_token(&self, text: &str) -> Option<usize> {
        self.added.iter().filter_map(|token| text.rfind(token.as_str()).map(|at| at + token.len())).max()
    }
}

fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let name = path.display();
    if !path.is_file() {
        refuse!("{name}: not found; expected the model's tokenizer settings (bos_token, eos_token, chat_template)");
    }
    let text = fs::read_to_string(path).or_refuse(|| format!("{name}: cannot read"))?;
    match serde_json::from_str(&text).or_refuse(|| name.to_string())? {
        Value::Object(map) => Ok(map),
        other => refuse!("{name}: expected a JSON object, found {}", json::describe(&other)),
    }
}

/// A special token is a string or an object with `content`.
fn special_token(path: &Path, config: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(token) => Ok(Some(token.to_owned())),
            None => refuse!(
                "{}: {name} is {}; expected a string or an object with `content`",
                path.display(),
                json::describe(other)
            ),
        },
    }
}

/// What the tokenizer itself puts before plain text, if it puts anything there.
fn first_of_plain_text(tokenizer: &Tokenizer) -> Option<u32> {
    let with = tokenizer.encode_fast("a", true).ok()?;
    let without = tokenizer.encode_fast("a", false).ok()?;
    (with.len() > without.len()).then(|| with.get_ids()[0])
}

/// The template that the setting names, and its origin in words.
fn chosen_template(setting: &str, vocabulary: &Vocabulary) -> Result<(String, String)> {
    if let Some(builtin) = Builtin::from_name(setting) {
        let source = builtin.source(vocabulary).or_refuse(|| format!("chat_template: {setting}"))?;
        return Ok((source, format!("the built-in template `{setting}`")));
    }
    let path = Path::new(setting);
    if !path.is_file() {
        refuse!("chat_template: {setting:?} is neither a template's name ({}) nor a file", Builtin::offered());
    }
    let source = fs::read_to_string(path).or_refuse(|| format!("chat_template: {setting}: cannot read"))?;
    Ok((source, setting.to_owned()))
}

/// The model's own template, if it has one.
fn own_template(dir: &Path, config_path: &Path, config: &Map<String, Value>) -> Result<(Option<String>, String)> {
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        let source = fs::read_to_string(&file).or_refuse(|| format!("{}: cannot read", file.display()))?;
        return Ok((Some(source), file.display().to_string()));
    }
    let origin = format!("{}: chat_template", config_path.display());
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok((None, "none".into())),
        Some(Value::String(source)) => Ok((Some(source.clone()), origin)),
        Some(Value::Array(named)) => {
            let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            match named.iter().find(|entry| text(entry, "name").as_deref() == Some("default")) {
                Some(entry) if text(entry, "template").is_some() => Ok((text(entry, "template"), origin)),
                _ => {
                    let names: Vec<String> = named.iter().filter_map(|entry| text(entry, "name")).collect();
                    refuse!("{origin}: expected a template named default, found {names:?}; set `chat_template`")
                }
            }
        }
        Some(other) => refuse!("{origin} is {}; expected a string or named templates", json::describe(other)),
    }
}
