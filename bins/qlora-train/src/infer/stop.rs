//! Tokens and texts that end an answer.

use crate::arch::Arch;
use crate::bail_usage;
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use serde_json::Value;
use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

const FILE: &str = "generation_config.json";
const MAX_BYTES: u64 = 1 << 20;
/// Maximum number of a model's texts, and of bytes of one: each is searched for after every token.
const MAX_TEXTS: usize = 64;
const MAX_TEXT_BYTES: usize = 1024;

/// The ends of an answer: the tokens and texts of the model, and texts of the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    pub tokens: Vec<u32>,
    texts: Vec<StopText>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct StopText {
    text: String,
    /// The text is kept at the end of the answer, as in transformers; otherwise the answer ends before it.
    is_kept: bool,
}

impl Stop {
    /// The ends by config.json, generation_config.json with its `stop_strings`, the tokenizer's EOS, and the chat
    /// template, whose answers end with a token that was trained on.
    pub fn of_model(dir: &Path, arch: &Arch, tokenizer: &ChatTokenizer, chat: bool) -> Result<Self> {
        let Self { tokens, texts } = Self::of_generation_config(dir, arch.vocab_size)?;
        let mut all: BTreeSet<u32> = arch.eos_token_ids.iter().copied().chain(tokens).collect();
        all.extend(tokenizer.eos_token_id());
        if chat {
            all.extend(tokenizer.turn_end_ids());
        }
        Ok(Self { tokens: all.into_iter().collect(), texts })
    }

    /// These ends with the user's texts, which replace those of the model, as in transformers; answers end before them.
    /// Empty: no change.
    #[must_use]
    pub fn or_before(mut self, texts: &[String]) -> Self {
        if !texts.is_empty() {
            self.texts = texts.iter().map(|text| StopText { text: text.clone(), is_kept: false }).collect();
        }
        self
    }

    /// The texts of the model that end answers, in words. None: it has none.
    pub fn note(&self) -> Option<String> {
        const SHOWN: usize = 4;
        let mut shown: Vec<String> =
            self.texts.iter().filter(|stop| stop.is_kept).map(|stop| format!("{:?}", stop.text)).collect();
        let more = shown.len() > SHOWN;
        shown.truncate(SHOWN);
        let more = if more { " and others" } else { "" };
        (!shown.is_empty())
            .then(|| format!("answers end with {}{more} too: `stop_strings` of {FILE}", shown.join(" or ")))
    }

    pub fn has_texts(&self) -> bool {
        !self.texts.is_empty()
    }

    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|stop| stop.text.as_str())
    }

    /// `eos_token_id` of generation_config.json, one id or several, and its `stop_strings`; none where the file or the
    /// key is missing. Ids outside the vocabulary can never be sampled and are left out.
    fn of_generation_config(dir: &Path, vocab_size: usize) -> Result<Self> {
        let path = dir.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let shown = path.display();
        let config: Value = serde_json::from_slice(&read_bounded(&path, MAX_BYTES)?)
            .usage_context(|| format!("{shown}: not a JSON object"))?;
        let several = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items.clone(),
            Some(one) => vec![one.clone()],
        };
        let mut found = Self::default();
        for id in several("eos_token_id") {
            let Some(id) = id.as_i64() else {
                bail_usage!("{shown}: key `eos_token_id`: found {id}, expected a token id or a list of them");
            };
            found.tokens.extend(u32::try_from(id).ok().filter(|&id| (id as usize) < vocab_size));
        }
        let texts = several("stop_strings");
        if texts.len() > MAX_TEXTS {
            bail_usage!(
                "{shown}: key `stop_strings`: found {} texts, expected at most {MAX_TEXTS}; remove some",
                texts.len()
            );
        }
        for text in texts {
            match text {
                Value::String(text) if (1..=MAX_TEXT_BYTES).contains(&text.len()) => {
                    found.texts.push(StopText { text, is_kept: true });
                }
                Value::String(text) => bail_usage!(
                    "{shown}: key `stop_strings`: found a text of {} bytes, expected 1 to {MAX_TEXT_BYTES}; remove it",
                    text.len()
                ),
                other => {
                    bail_usage!(
                        "{shown}: key `stop_strings`: found {other:.80}, expected a text or a list of them; remove it"
                    )
                }
            }
        }
        Ok(found)
    }
}

/// Searches for the texts that end answers: in the tokens as they come, and in the text once it is complete.
pub struct StopWatch<'a> {
    texts: &'a [StopText],
    tokenizer: &'a ChatTokenizer,
    /// Tokens of each answer that a text may still begin in
    recent: Vec<VecDeque<u32>>,
}

impl<'a> StopWatch<'a> {
    pub fn new(stop: &'a Stop, tokenizer: &'a ChatTokenizer, answers: usize) -> Self {
        Self { texts: &stop.texts, tokenizer, recent: vec![VecDeque::new(); answers] }
    }

    /// True if an answer goes on after a token. A token that adds no text, or part of a character, counts too: a few
    /// tokens more are kept than the longest text has bytes.
    pub fn go_on(&mut self, answer: usize, id: u32) -> Result<bool> {
        let Some(longest) = self.texts.iter().map(|stop| stop.text.len()).max() else { return Ok(true) };
        let recent = &mut self.recent[answer];
        recent.push_back(id);
        if recent.len() > longest + 16 {
            recent.pop_front();
        }
        let text = self.tokenizer.decode(recent.make_contiguous(), true)?;
        Ok(!self.texts.iter().any(|stop| text.contains(stop.text.as_str())))
    }

    /// The answer up to its end.
    pub fn cut<'b>(&self, text: &'b str) -> &'b str {
        cut(self.texts, text)
    }
}

fn cut<'a>(texts: &[StopText], text: &'a str) -> &'a str {
    let end = |stop: &StopText| {
        let at = text.find(stop.text.as_str())?;
        Some((at, if stop.is_kept { at + stop.text.len() } else { at }))
    };
    // The first match; of two at one place, the shorter.
    let end = texts.iter().filter_map(end).min();
    &text[..end.map_or(text.len(), |(_, end)| end)]
}

#[cfg(test)]
mod tests;
