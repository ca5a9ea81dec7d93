//! Finds what the assistant says in a rendered conversation, and labels its tokens.
//!
//! Stock templates do not mark the assistant's text, so the conversation is rendered in growing prefixes: what lies
//! between "all turns before, and the prompt to answer" and "all turns up to the answer" is supervised, the
//! end-of-turn token included. White space after the end-of-turn token is not: generation stops at the token, so
//! nothing has to be learnt behind it.
//!
//! Some templates write earlier turns otherwise than the last one (dropping their reasoning, or closing only the last
//! turn), so that a rendered prefix is no prefix of the whole. There the turn is found by rendering the whole
//! conversation with two other contents in its place: what the two share on the left is everything before the
//! content, what they share on the right everything after it. Where that does not fit either, the row is refused.

use std::ops::Range;

use minijinja::Value;

use super::UNSUPERVISED;
use super::messages::Message;
use super::template::ChatTemplate;
use super::tokenizer::ChatTokenizer;

/// Contents that differ in their first and in their last character.
const PROBES: [&str; 2] = ["Alpha probe of onE", "Beta probe of twO"];

/// A conversation as text, and the byte ranges in it that are supervised, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatText {
    pub text: String,
    pub supervised: Vec<Range<usize>>,
    /// Supervised turns that end without a token of their own: a model trained on them does not learn to stop.
    pub open_ended: usize,
}

/// A conversation as token ids and unshifted labels (−100 for what is not supervised).
#[derive(Clone, Debug, PartialEq)]
pub struct ChatTokens {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i32>,
    pub open_ended: usize,
}

impl ChatTokenizer {
    /// Renders a conversation and finds the supervised spans. The error is a reason in words.
    pub fn render_chat(&self, messages: &[Message]) -> Result<ChatText, String> {
        let template = self.template().ok_or_else(|| self.no_template())?;
        let turns: Vec<Value> = messages.iter().map(Message::to_jinja).collect();
        let text = template.render(&turns, false)?;
        let mut supervised: Vec<Range<usize>> = Vec::new();
        let mut open_ended = 0;
        for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.supervised) {
            let turn = Turn { template, turns: &turns, text: &text, at, message };
            let found = turn.span(self).map_err(|why| format!("`messages[{at}]`: {why}"))?;
            turn.holds_content(&text[found.clone()]).map_err(|why| format!("`messages[{at}]`: {why}"))?;
            if supervised.last().is_some_and(|last| last.end > found.start) {
                return Err(format!("`messages[{at}]`: the chat template writes the turns in another order"));
            }
            let span = self.without_tail(&text, found);
            open_ended += usize::from(!self.ends_with_added_token(&text[span.clone()]));
            supervised.push(span);
        }
        Ok(ChatText { text, supervised, open_ended })
    }

    /// Tokenises the rendered conversation once, as a whole.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<ChatTokens, String> {
        let chat = self.render_chat(messages)?;
        let (input_ids, labels) = self.labelled(&chat.text, &chat.supervised)?;
        Ok(ChatTokens { input_ids, labels, open_ended: chat.open_ended })
    }

    /// Tokenises a prompt with its completion as one text, without a template: BOS (where the tokenizer puts one
    /// before plain text), prompt, completion, EOS. Completion and EOS are supervised. A BOS or EOS that the text has
    /// already is not given a second time.
    pub fn encode_completion(&self, prompt: &str, completion: &str) -> Result<ChatTokens, String> {
        let text = format!("{prompt}{completion}");
        let supervised = prompt.len()..text.len();
        let (mut input_ids, mut labels) = self.labelled(&text, std::slice::from_ref(&supervised))?;
        if let Some(bos) = self.bos_token_id().filter(|_| self.begins_with_bos())
            && input_ids.first() != Some(&bos)
        {
            input_ids.insert(0, bos);
            labels.insert(0, UNSUPERVISED);
        }
        let last_supervised = labels.last().is_some_and(|&label| label != UNSUPERVISED);
        let ends = last_supervised && self.ends_with_added_token(completion);
        if let Some(eos) = self.eos_token_id().filter(|_| !ends) {
            input_ids.push(eos);
            labels.push(i32::try_from(eos).map_err(|_| format!("the tokenizer has the token id {eos}"))?);
        }
        let open_ended = usize::from(!ends && self.eos_token_id().is_none());
        Ok(ChatTokens { input_ids, labels, open_ended })
    }

    /// Token ids and labels of a text. A token is supervised when it holds any of a supervised span, as in
    /// transformers: where a prompt ends with a space, the answer's first word comes with that space in one token.
    fn labelled(&self, text: &str, supervised: &[Range<usize>]) -> Result<(Vec<u32>, Vec<i32>), String> {
        let tokens = self.encode_with_offsets(text)?;
        let mut labels = Vec::with_capacity(tokens.len());
        // Spans and tokens both come in order; a span is done with once a token begins behind it.
        let mut spans = supervised;
        for (id, range) in &tokens {
            while spans.first().is_some_and(|span| span.end <= range.start) {
                spans = &spans[1..];
            }
            let inside = spans.first().is_some_and(|span| {
                span.contains(&range.start) || (range.start < span.start && span.start < range.end)
            });
            let label = i32::try_from(*id).map_err(|_| format!("the tokenizer has the token id {id}"))?;
            labels.push(if inside { label } else { UNSUPERVISED });
        }
        Ok((tokens.into_iter().map(|(id, _)| id).collect(), labels))
    }

    /// Leaves out white space behind an end-of-turn token. Without such a token the white space stays: then it is all
    /// that ends the turn.
    fn without_tail(&self, text: &str, span: Range<usize>) -> Range<usize> {
        let trimmed = text[span.clone()].trim_end();
        if self.ends_with_added_token(trimmed) { span.start..span.start + trimmed.len() } else { span }
    }
}

/// One assistant turn of a rendered conversation.
struct Turn<'a> {
    template: &'a ChatTemplate,
    turns: &'a [Value],
    /// The whole conversation.
    text: &'a str,
    at: usize,
    message: &'a Message,
}

impl Turn<'_> {
    fn span(&self, tokenizer: &ChatTokenizer) -> Result<Range<usize>, String> {
        // Some templates refuse prefixes that end before an answer (an empty conversation): then probe.
        let before = self.template.render(&self.turns[..self.at], true).ok();
        let before = before.filter(|before| self.text.starts_with(before.as_str())).map(|before| before.len());
        let after = if self.at + 1 == self.turns.len() {
            Some(self.text.len())
        } else {
            let after = self.template.render(&self.turns[..=self.at], false).ok();
            after.filter(|after| self.text.starts_with(after.as_str())).map(|after| after.len())
        };
        let (start, end) = match (before, after) {
            (Some(start), Some(end)) => (start, end),
            _ => {
                let (content_start, content_end) = self.probe()?;
                let end = match after {
                    Some(end) => end,
                    None => content_end + self.tail(content_end, tokenizer)?,
                };
                (before.unwrap_or(content_start), end)
            }
        };
        if start > end {
            return Err("the chat template writes nothing for this turn".into());
        }
        Ok(start..end)
    }

    /// Refuses a template that leaves the content of a turn out without a word, as one does that takes lists only.
    fn holds_content(&self, span: &str) -> Result<(), String> {
        let content = self.message.content.as_deref().unwrap_or_default().trim();
        if span.contains(content) || self.render_with(PROBES[0])?.contains(PROBES[0]) {
            return Ok(());
        }
        Err("the chat template leaves out what this turn says; it seems to expect another kind of content".into())
    }

    /// The whole conversation with another content in this turn.
    fn render_with(&self, content: &str) -> Result<String, String> {
        let mut turns = self.turns.to_vec();
        turns[self.at] = self.message.with_content(content).to_jinja();
        self.template.render(&turns, false)
    }

    /// Where the turn's content begins and ends in the whole conversation.
    fn probe(&self) -> Result<(usize, usize), String> {
        let (one, two) = (self.render_with(PROBES[0])?, self.render_with(PROBES[1])?);
        let start = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        let behind = one.bytes().rev().zip(two.bytes().rev()).take_while(|(a, b)| a == b).count();
        let fits = one.len() >= start + behind
            && self.text.len() >= start + behind
            && self.text.starts_with(&one[..start])
            && self.text.ends_with(&one[one.len() - behind..])
            && one[start..one.len() - behind] == *PROBES[0]
            && self.message.content.is_some();
        if !fits {
            return Err("cannot tell what of the rendered conversation is this turn, because the chat template does \
                        not write the same text for a conversation and for its first turns"
                .into());
        }
        Ok((start, self.text.len() - behind))
    }

    /// How much of what follows the content still belongs to the turn: what the template writes behind it when it is
    /// the last turn, as far as that is what stands in the whole conversation too.
    fn tail(&self, content_end: usize, tokenizer: &ChatTokenizer) -> Result<usize, String> {
        let mut turns = self.turns[..=self.at].to_vec();
        turns[self.at] = self.message.with_content(PROBES[0]).to_jinja();
        let alone = self.template.render(&turns, false)?;
        let tail = alone.rfind(PROBES[0]).map_or("", |at| &alone[at + PROBES[0].len()..]);
        let following = &self.text[content_end..];
        if following.starts_with(tail) {
            return Ok(tail.len());
        }
        // The last turn is closed by more than the others are: only whole tokens that both have belong to the turn.
        let shared: usize =
            tail.chars().zip(following.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        tokenizer
            .end_of_last_added_token(&tail[..shared])
            .ok_or_else(|| "cannot tell where this turn ends in the rendered conversation".into())
    }
}
