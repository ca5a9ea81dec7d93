//! The tokenizer of a model's directory and its chat template.
//!
//! Text is always tokenized without the special tokens that a tokenizer would add by itself: the chat template writes
//! them, and a second BOS would be one too many.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use regex::Regex;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokenizers::PostProcessorWrapper;

use super::cuts;
use super::growth;
use super::guard::guarded;
use super::habits::{Habits, OwnTokens, TURN_ENDS};
use super::json;
use super::messages::{Conversation, Message};
use super::patterns::{Tokenizer, checked, may_cut};
use super::side_files;
use super::template::{Builtin, ChatTemplate, MAX_SOURCE_BYTES, MAX_TEXT_BYTES, Vocabulary};
use crate::bail_usage;
use crate::config::FALLBACK_TEMPLATE;
use crate::error::{Context, Error, Result};
use crate::files::hash::hex;
use crate::files::home::expand_home;
use crate::files::json::read_bounded;
use crate::files::regular::read_at_most;

/// The names under which templates know the special tokens, as in `tokenizer_config.json`.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The largest known is 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Settings of a tokenizer; some list each of a hundred thousand tokens.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// A token that was added to a vocabulary: its text is found in a text as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub text: String,
    /// It is a special token, which decoding leaves out.
    pub special: bool,
}

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
    /// Texts of the tokens that end a text or a turn by the model's settings.
    pub(super) ends: Vec<String>,
    template: Option<ChatTemplate>,
    /// The model's own template for conversations with tools, where it has another one for them.
    tool_template: Option<ChatTemplate>,
    template_origin: String,
    /// The template is not the model's own.
    chosen: bool,
    builtin: Option<Builtin>,
    /// The built-in template that keeps text that the template in use cuts.
    training: Option<Builtin>,
    /// The tokenizer itself puts a BOS before plain text.
    begins_with_bos: bool,
    /// Long texts are tokenized part by part.
    may_cut: bool,
}

impl ChatTokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat template of a Hugging Face directory.
    ///
    /// `chat_template` is the setting of that name: `chatml`, `alpaca` or a file, or one of these after
    /// `tokenizer_default_fallback_` for a model without a template. It wins over the model's own template;
    /// [`template_origin`](Self::template_origin) names the one in use, to be printed. Among the model's own,
    /// `chat_template.jinja` wins over the one in the config, as in transformers.
    pub fn open(dir: &Path, chat_template: Option<&str>) -> Result<Self> {
        match chat_template {
            None => Self::open_with(dir, None),
            Some(setting) if setting.starts_with(FALLBACK_TEMPLATE) => {
                let own = Self::open_with(dir, None)?;
                let fallback = setting.trim_start_matches(FALLBACK_TEMPLATE);
                if own.template.is_some() { Ok(own) } else { Self::open(dir, Some(fallback)) }
            }
            Some(setting) => {
                // The text of a named template depends on the vocabulary.
                let named = Templates { default: None, tool_use: None, origin: setting.to_owned() };
                Self::open_with(dir, Some(named))
            }
        }
    }

    /// `templates` in place of the model's own; without a source, the one that their origin names.
    fn open_with(dir: &Path, templates: Option<Templates>) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            bail_usage!(
                "{}: not found; expected the model's tokenizer (a `tokenizer.json` file; `tokenizer.model` alone is not supported)",
                path.display()
            );
        }
        let config_path = dir.join("tokenizer_config.json");
        let mut config = read_config(&config_path)?;
        side_files::merge(dir, &mut config)?;
        let mut tokenizer = read_tokenizer(&path, &side_files::added_tokens(dir, &config)?)?;

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
                None => bail_usage!(
                    "{}: {name} is {token:?}, which is no token of {}; are both files of the same model?",
                    config_path.display(),
                    path.display()
                ),
            }
        };
        let (bos_token_id, eos_token_id) = (id("bos_token")?, id("eos_token")?);
        let first = first_of_plain_text(&tokenizer).ok_or_else(|| panicked(&path))?;
        let begins_with_bos = bos_token_id.is_some() && first == bos_token_id;
        let vocabulary = Vocabulary {
            begins_with_bos,
            has_eos: eos_token_id.is_some(),
            has: &|token| tokenizer.token_to_id(token).is_some(),
        };
        let chosen = templates.is_some();
        let Templates { default, tool_use, origin: template_origin } = match templates {
            Some(Templates { default: None, origin: setting, .. }) => {
                let (source, origin) = chosen_template(&setting, &vocabulary)?;
                Templates { default: Some(source), tool_use: None, origin }
            }
            Some(templates) => templates,
            None => own_templates(dir, &config_path, &config)?,
        };
        let compile = |source: Option<String>| match source {
            None => Ok(None),
            Some(source) => {
                let compiled = ChatTemplate::compile(&source, special.clone(), now());
                compiled.usage_context(|| template_origin.clone()).map(Some)
            }
        };
        let (template, tool_template) = (compile(default)?, compile(tool_use)?);
        let mut added: Vec<String> = tokenizer.get_added_tokens_decoder().values().map(|t| t.content.clone()).collect();
        added.extend(special.iter().filter(|(name, _)| name == "eos_token").map(|(_, token)| token.clone()));
        added.retain(|token| !token.trim().is_empty());

        let ends = special.iter().filter(|(name, _)| name == "eos_token").map(|(_, token)| token.clone()).collect();

        let builtin = template.as_ref().and_then(|template| Builtin::of_source(template.source(), &vocabulary));
        let training = template.as_ref().and_then(|template| Builtin::training(template.source(), &vocabulary));
        // Post-processors only add special tokens or trim offsets.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self {
            may_cut: may_cut(&tokenizer),
            tokenizer,
            dir: dir.to_path_buf(),
            special,
            bos_token_id,
            eos_token_id,
            added,
            ends,
            template,
            tool_template,
            template_origin,
            chosen,
            builtin,
            training,
            begins_with_bos,
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The added token that ends an answer in this template, if it ends with one that is trained on.
    fn end_of_example(&self) -> Option<u32> {
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

    /// True if rows begin with a BOS: the tokenizer puts one before plain text.
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

    /// Origin of the chat template, in words.
    pub fn template_origin(&self) -> &str {
        &self.template_origin
    }

    /// SHA-256 of the chat template's source, in hex.
    pub fn template_hash(&self) -> Option<String> {
        Some(hex(Sha256::digest(self.template.as_ref()?.source())))
    }

    /// The template's source, if it is not the model's own: it must be kept beside the adapter.
    pub fn chosen_template(&self) -> Option<&str> {
        self.template.as_ref().filter(|_| self.chosen).map(ChatTemplate::source)
    }

    /// True if the template was chosen by the setting.
    pub fn template_is_chosen(&self) -> bool {
        self.chosen
    }

    /// The model's tokenizer with the template that the tokenizer files of another directory hold (an adapter's). None:
    /// they hold none.
    pub fn open_with_template_of(dir: &Path, other: &Path) -> Result<Option<Self>> {
        let templates = templates_in(other)?;
        if templates.default.is_none() {
            return Ok(None);
        }
        Self::open_with(dir, Some(templates)).map(Some)
    }

    /// Place of the template that the tokenizer files of a directory hold, and its SHA-256 (hex). None: they hold none.
    pub fn template_in(dir: &Path) -> Result<Option<(String, String)>> {
        let Templates { default, origin, .. } = templates_in(dir)?;
        Ok(default.map(|source| (origin, hex(Sha256::digest(source)))))
    }

    /// True if a template writes the date, so that the text depends on when it is rendered.
    pub fn uses_date(&self) -> bool {
        [&self.template, &self.tool_template].into_iter().flatten().any(ChatTemplate::uses_date)
    }

    /// The special tokens by their names in `tokenizer_config.json`, those that there are.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special
    }

    /// SHA-256 (hex) over the tokens that were added to the vocabulary, by whichever file.
    pub fn added_tokens_hash(&self) -> String {
        let decoder = self.tokenizer.get_added_tokens_decoder();
        let mut added: Vec<String> = decoder.iter().map(|(id, token)| format!("{id} {token:?}\n")).collect();
        added.sort();
        hex(Sha256::digest(added.concat()))
    }

    /// SHA-256 (hex) of the template for conversations with tools, where it is another one.
    pub fn tool_template_hash(&self) -> Option<String> {
        self.tool_template.as_ref().map(|template| hex(Sha256::digest(template.source())))
    }

    /// Sets the time of `strftime_now` for templates that write the date (the time of `open` in UTC unless set), so
    /// that a resumed run renders the same rows. See [`ChatTemplate::uses_date`].
    pub fn set_now(&mut self, now: Zoned) -> Result<()> {
        for template in [&mut self.template, &mut self.tool_template].into_iter().flatten() {
            let compiled = ChatTemplate::compile(template.source(), self.special.clone(), now.clone());
            *template = compiled.usage_context(|| self.template_origin.clone())?;
        }
        Ok(())
    }

    /// Replaces the model's own template, for the fuzz targets.
    pub(super) fn set_template(&mut self, source: &str) -> Result<()> {
        let compiled = ChatTemplate::compile(source, self.special.clone(), now());
        self.template = Some(compiled.usage_context(|| self.template_origin.clone())?);
        Ok(())
    }

    /// Takes the template of another tokenizer as it was compiled, for the fuzz targets.
    pub(super) fn take_template(&mut self, other: &Self) {
        self.template.clone_from(&other.template);
    }

    /// Token ids of text as it stands: nothing is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let encoded = self.encode_each(text, &mut |id, _| {
            ids.push(id);
            Ok(())
        });
        encoded.map_err(|why| Error::Refused(format!("tokenizer.json does not fit this text: {why}")))?;
        Ok(ids)
    }

    /// Calls `each` with the id of every token and the byte range of the text that it stands for, in order.
    pub(super) fn encode_each(
        &self,
        text: &str,
        each: &mut dyn FnMut(u32, Range<usize>) -> Result<(), String>,
    ) -> Result<(), String> {
        let too_long = |bytes: usize, most: usize, what: &str| {
            format!(
                "{bytes} bytes of text{what}, more than the {} MiB that are tokenized at once; split it",
                most >> 20
            )
        };
        if text.len() > MAX_TEXT_BYTES {
            return Err(too_long(text.len(), MAX_TEXT_BYTES, ""));
        }
        let between = if self.may_cut { " without an end of a word" } else { "" };
        let parts = cuts::parts(text, self.may_cut);
        for part in parts.map_err(|bytes| too_long(bytes, cuts::MAX_PART_BYTES, between))? {
            let encode = || guarded(|| checked(|| self.tokenizer.encode(&text[part.clone()], false)));
            let encoding = cuts::in_turn(part.len(), encode).ok_or_else(|| self.panicked().to_string())?;
            let encoding = encoding.map_err(|error| format!("cannot tokenize: {error}"))?;
            for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
                each(id, part.start + start..part.start + end)?;
            }
        }
        Ok(())
    }

    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let text = guarded(|| self.tokenizer.decode(ids, skip_special_tokens)).ok_or_else(|| self.panicked())?;
        text.usage_context(|| "tokenizer.json cannot turn these tokens into text".into())
    }

    fn panicked(&self) -> Error {
        panicked(&self.dir.join("tokenizer.json"))
    }

    /// A token as the vocabulary spells it; `<id>` for an id without a token.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_else(|| format!("<{id}>"))
    }

    /// The tokens that were added to the vocabulary, by id.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let decoder = self.tokenizer.get_added_tokens_decoder();
        let added = |(&id, token): (&u32, &tokenizers::AddedToken)| AddedToken {
            id,
            text: token.content.clone(),
            special: token.special,
        };
        let mut tokens: Vec<AddedToken> = decoder.iter().map(added).collect();
        tokens.sort_by_key(|token| token.id);
        tokens
    }

    /// Every token as the vocabulary spells it, by its id; `None` for an id without a token.
    pub fn vocabulary(&self) -> Vec<Option<String>> {
        let mut tokens = vec![None; self.vocab_size()];
        for (token, id) in self.tokenizer.get_vocab(true) {
            tokens[id as usize] = Some(token);
        }
        tokens
    }

    /// The text of a conversation up to the beginning of an answer. Errors: no template, or the template's own error.
    pub fn prompt(&self, messages: &[Message]) -> Result<String> {
        self.render(messages, true)
    }

    /// The text of a conversation, with the beginning of an answer where `open` says so. Errors: as of
    /// [`prompt`](Self::prompt).
    pub fn render(&self, messages: &[Message], open: bool) -> Result<String> {
        let Some(template) = &self.template else { bail_usage!("{}", self.no_template()) };
        let turns: Vec<_> = messages.iter().map(Message::to_jinja).collect();
        template.render(&turns, open).usage_context(|| self.template_origin.clone())
    }

    /// The template that renders a conversation.
    pub(super) fn template_for(&self, conversation: &Conversation) -> Result<&ChatTemplate, String> {
        let tools = self.tool_template.as_ref().filter(|_| !conversation.tools.is_empty());
        tools.or(self.template.as_ref()).ok_or_else(|| self.no_template())
    }

    pub(super) fn habits<'a>(&self, template: &'a ChatTemplate) -> Option<&'a Habits> {
        let bos = self.special.iter().find(|(name, _)| name == "bos_token").map(|(_, token)| token.as_str());
        template.habits(&OwnTokens { all: &self.added, ends: &self.ends, bos })
    }

    /// The training template (a value of `chat_template`) that keeps text that the model's own template cuts.
    pub(super) fn training_template(&self) -> Option<&'static str> {
        self.training.map(Builtin::name)
    }

    /// The reason why a template renders nothing any more, whatever the conversation.
    pub(super) fn given_up(&self) -> Option<&str> {
        [&self.template, &self.tool_template].into_iter().flatten().find_map(ChatTemplate::given_up)
    }

    pub(super) fn no_template(&self) -> String {
        format!(
            "{}: the model has no chat template; set `chat_template` to chatml, alpaca or a Jinja file",
            self.dir.display()
        )
    }

    /// True if the text ends with a token of its own, like an end-of-turn or end-of-text mark.
    pub(super) fn ends_with_added_token(&self, text: &str) -> bool {
        self.added.iter().any(|token| text.ends_with(token.as_str()))
    }

    /// True if the text ends with a token that ends a text or a turn: the EOS, one that the template closes turns with,
    /// or one that models are known to stop at. A template with unknown habits may close turns with any added token.
    pub(super) fn ends_turn(&self, template: Option<&ChatTemplate>, text: &str) -> bool {
        let last = |text: &str| {
            self.added.iter().filter(|token| text.ends_with(token.as_str())).max_by_key(|token| token.len())
        };
        let Some(token) = last(text) else { return false };
        if self.ends.contains(token) || TURN_ENDS.contains(&token.as_str()) {
            return true;
        }
        template.is_some_and(|template| match self.habits(template) {
            None => true,
            Some(habits) => [&habits.closing, &habits.inner].iter().any(|end| last(end.trim_end()) == Some(token)),
        })
    }

    /// Ids of all added tokens: special ones, and those that end turns.
    pub fn added_token_ids(&self) -> Vec<u32> {
        self.added.iter().filter_map(|token| self.tokenizer.token_to_id(token)).collect()
    }

    /// Ids of the tokens that end a turn under the chat template; none if that is not known.
    pub fn turn_end_ids(&self) -> Vec<u32> {
        let Some(template) = &self.template else { return Vec::new() };
        let Some(habits) = self.habits(template) else { return self.end_of_example().into_iter().collect() };
        let ids = [&habits.closing, &habits.inner].map(|closing| {
            let last = self.added.iter().filter(|token| closing.trim_end().ends_with(token.as_str()));
            last.max_by_key(|token| token.len()).and_then(|token| self.tokenizer.token_to_id(token))
        });
        ids.into_iter().flatten().collect()
    }

    /// A warning about the chat template, for before conversations are rendered by it.
    pub fn template_warning(&self) -> Option<String> {
        let differs = self.habits(self.template.as_ref()?)?.prompt_differs()?;
        Some(match self.training_template() {
            Some(name) => format!("{differs} (`chat_template: {name}`)"),
            None => differs,
        })
    }

    /// Marks of a chosen template that are no tokens of the tokenizer, which then reads them letter by letter. Zephyr's
    /// are plain text by design.
    pub fn foreign_marks(&self) -> Vec<String> {
        static MARK: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<(?:start|end)_of_turn>")
                .expect("it is well-formed")
        });
        let template = self.template.as_ref().filter(|_| self.chosen && self.builtin != Some(Builtin::Zephyr));
        let Some(habits) = template.and_then(|template| self.habits(template)) else { return Vec::new() };
        let mut marks: Vec<String> = [&habits.asked, &habits.closing, &habits.inner]
            .into_iter()
            .flat_map(|text| MARK.find_iter(text))
            .map(|mark| mark.as_str().to_owned())
            .filter(|mark| self.tokenizer.token_to_id(mark).is_none())
            .collect();
        marks.sort();
        marks.dedup();
        marks
    }

    /// End of the last added token inside the text.
    pub(super) fn end_of_last_added_token(&self, text: &str) -> Option<usize> {
        self.added.iter().filter_map(|token| text.rfind(token.as_str()).map(|at| at + token.len())).max()
    }
}

/// The time in UTC: the time zone of a machine changes no row.
fn now() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::UTC)
}

fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let name = path.display();
    if !path.is_file() {
        bail_usage!("{name}: not found; expected the model's tokenizer settings (bos_token, eos_token, chat_template)");
    }
    match serde_json::from_slice(&read_bounded(path, MAX_CONFIG_BYTES)?).usage_context(|| name.to_string())? {
        Value::Object(map) => Ok(map),
        other => bail_usage!("{name}: expected a JSON object, found {}", json::describe(&other)),
    }
}

/// A special token is a string or an object with `content`.
fn special_token(path: &Path, config: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(token) => Ok(Some(token.to_owned())),
            None => bail_usage!(
                "{}: {name} is {}; expected a string or an object with `content`",
                path.display(),
                json::describe(other)
            ),
        },
    }
}

/// The text of a chat template.
fn read_template(path: &Path) -> Result<String> {
    let Some(bytes) = read_at_most(path, MAX_SOURCE_BYTES as u64)? else {
        let most = MAX_SOURCE_BYTES >> 10;
        bail_usage!("{}: more than the {most} KiB that a chat template may have", path.display());
    };
    String::from_utf8(bytes).usage_context(|| format!("{}: cannot read", path.display()))
}

/// The error for a tokenizer that its own library cannot work with.
fn panicked(path: &Path) -> Error {
    Error::Refused(format!("{}: the tokenizer is broken (its library fails on it); get the file again", path.display()))
}

/// Reads `tokenizer.json`, with the tokens of the files beside it that it lacks. Padding and truncation saved in it
/// never change rows. Refused: an added token that does not have the id which its file gives it. The library numbers
/// added tokens by itself, one behind the other.
fn read_tokenizer(path: &Path, beside: &side_files::AddedTokens) -> Result<Tokenizer> {
    let Some(bytes) = read_at_most(path, MAX_TOKENIZER_BYTES)? else {
        bail_usage!("{}: more than the {} MiB that a tokenizer has at most", path.display(), MAX_TOKENIZER_BYTES >> 20);
    };
    let parse = |bytes: &[u8]| -> Result<Tokenizer> {
        if let Err(why) = growth::check_added(bytes) {
            bail_usage!("{}: {why}", path.display());
        }
        let tokenizer = guarded(|| Tokenizer::from_bytes(bytes)).ok_or_else(|| panicked(path))?;
        tokenizer.usage_context(|| format!("{}: not a tokenizer", path.display()))
    };
    let mut tokenizer = parse(&bytes)?;
    if let Some(whole) = beside.merged(&tokenizer, path, &bytes)? {
        tokenizer = parse(&whole)?;
    }
    beside.check(&tokenizer, path, &bytes)?;
    let checked = growth::check_model(tokenizer.get_model())
        .and_then(|()| tokenizer.get_decoder().map_or(Ok(()), growth::check_decoder))
        .and_then(|()| growth::check_tokens(tokenizer.get_vocab(true).keys()));
    if let Err(why) = checked {
        bail_usage!("{}: {why}", path.display());
    }
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).usage_context(|| format!("{}: truncation", path.display()))?;
    Ok(tokenizer)
}

/// The token that the tokenizer itself puts before plain text, if any. None: it panicked.
fn first_of_plain_text(tokenizer: &Tokenizer) -> Option<Option<u32>> {
    guarded(|| {
        let with = tokenizer.encode_fast("a", true).ok()?;
        let without = tokenizer.encode_fast("a", false).ok()?;
        let added = with.len() > without.len() && with.get_ids().first() != without.get_ids().first();
        added.then(|| with.get_ids()[0])
    })
}

/// The template that the setting names, and its origin in words.
fn chosen_template(setting: &str, vocabulary: &Vocabulary) -> Result<(String, String)> {
    if let Some(builtin) = Builtin::from_name(setting) {
        let source = builtin.source(vocabulary).usage_context(|| format!("chat_template: {setting}"))?;
        return Ok((source, format!("the built-in template `{setting}`")));
    }
    let path = expand_home(Path::new(setting));
    if !path.is_file() {
        bail_usage!(
            "chat_template: {setting:?} is neither a template's name ({}) nor a file; leave it out for the model's own",
            Builtin::offered()
        );
    }
    Ok((read_template(&path)?, setting.to_owned()))
}

/// The sources of a model's templates.
struct Templates {
    default: Option<String>,
    /// For conversations with tools, where it is another one.
    tool_use: Option<String>,
    /// Origin of the default one, in words.
    origin: String,
}

/// The templates that the tokenizer files of a directory hold, which may be those of an adapter.
fn templates_in(dir: &Path) -> Result<Templates> {
    let config_path = dir.join("tokenizer_config.json");
    let config = if config_path.is_file() { read_config(&config_path)? } else { Map::new() };
    own_templates(dir, &config_path, &config)
}

/// The model's own templates, if it has any.
fn own_templates(dir: &Path, config_path: &Path, config: &Map<String, Value>) -> Result<Templates> {
    let read = |file: &Path| match file.is_file() {
        true => read_template(file).map(Some),
        false => Ok(None),
    };
    let file = dir.join("chat_template.jinja");
    if let Some(source) = read(&file)? {
        let tool_use = read(&dir.join("additional_chat_templates").join("tool_use.jinja"))?;
        return Ok(Templates { default: Some(source), tool_use, origin: file.display().to_string() });
    }
    let origin = format!("{}: chat_template", config_path.display());
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Templates { default: None, tool_use: None, origin: "none".into() }),
        Some(Value::String(source)) => Ok(Templates { default: Some(source.clone()), tool_use: None, origin }),
        Some(Value::Array(named)) => {
            let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            let find = |name: &str| {
                let entry = named.iter().find(|entry| text(entry, "name").as_deref() == Some(name));
                entry.and_then(|entry| text(entry, "template"))
            };
            let Some(default) = find("default") else {
                let names: Vec<String> = named.iter().filter_map(|entry| text(entry, "name")).collect();
                bail_usage!("{origin}: expected a template named default, found {names:?}; set `chat_template`")
            };
            Ok(Templates { default: Some(default), tool_use: find("tool_use"), origin })
        }
        Some(other) => bail_usage!("{origin} is {}; expected a string or named templates", json::describe(other)),
    }
}
