//! Conversations and texts as token ids with labels.

use std::cell::Cell;
use std::ops::Range;

use minijinja::Value;

use super::UNSUPERVISED;
use super::habits::TURN_ENDS;
use super::holds;
use super::labeled::LabeledIds;
use super::messages::{BEHIND, Conversation, Message, to_jinja};
use super::notes::Note;
use super::spans::Rendered;
use super::template::{ChatTemplate, Surroundings};
use super::tokenizer::ChatTokenizer;
use super::tools;

/// A conversation as text, and the byte ranges in it that are supervised, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatText {
    pub text: String,
    pub supervised: Vec<Range<usize>>,
    /// Loss weight of the tokens in each of those ranges.
    pub weights: Vec<f32>,
    /// Byte ranges of answers that are not learned because a part or a range of them says so, in order.
    pub excluded: Vec<Range<usize>>,
    /// Supervised turns that end without a token of their own: a model trained on them does not learn to stop.
    pub open_ended: usize,
    /// A supervised turn follows another text than the one that ends a prompt for generation.
    pub asked_otherwise: bool,
    /// Notes on parts of the conversation that are missing in the rendered text.
    pub notes: Vec<Note>,
}

/// A conversation as token ids and unshifted labels (−100 for what is not supervised).
#[derive(Clone, Debug, PartialEq)]
pub struct ChatTokens {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i32>,
    /// Loss weight of each token; empty: 1 each.
    pub weights: Vec<f32>,
    pub open_ended: usize,
    /// An answer follows another text than the one that ends a prompt for generation.
    pub asked_otherwise: bool,
    pub notes: Vec<Note>,
}

impl ChatTokenizer {
    /// Renders turns and finds the supervised spans. The error is a reason in words.
    pub fn render_chat(&self, messages: &[Message]) -> Result<ChatText, String> {
        self.render_conversation(&Conversation::new(messages.to_vec()))
    }

    /// Renders a conversation with its tools and finds the supervised spans.
    pub fn render_conversation(&self, conversation: &Conversation) -> Result<ChatText, String> {
        let template = self.template_for(conversation)?;
        let mut notes = Vec::new();
        let messages = with_known_roles(&conversation.messages, template, &mut notes);
        let around = surroundings(conversation);
        let rendered = render(template, &around, &messages);
        let (turns, text) = rendered.map_err(|why| explained(why, template, conversation, &messages))?;
        let rendered =
            Rendered { tokenizer: self, template, around, messages: &messages, turns, text, spent: Cell::default() };
        holds::check_calls(&rendered)?;
        let answers = rendered.answers()?;
        holds::check(&rendered, conversation, &answers, &mut notes)?;

        let (mut supervised, mut weights, mut excluded, mut open_ended) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut asked_otherwise = false;
        let answering = messages.iter().filter(|message| message.supervised);
        let mut said = answering.flat_map(|message| [message.content.as_deref(), message.reasoning()]).flatten();
        if self.habits(template).is_some() && said.any(|text| self.ends_within(Some(template), text)) {
            notes.push(Note::Said(ENDS_WITHIN.to_owned()));
        }
        for (at, span) in answers {
            if span.is_empty() {
                return Err(match at {
                    Some(at) => format!("`messages[{at}]`: the chat template writes nothing for this turn"),
                    None => "the chat template marks an empty text as the assistant's".to_owned(),
                });
            }
            // Marks that stand for several turns are only taken where all of them weigh the same.
            let turn = at.map_or_else(|| messages.iter().find(|message| message.supervised), |at| messages.get(at));
            let of_turn = turn.map_or(1.0, |turn| turn.weight);
            let learned = match at.and_then(|at| Some((at, messages[at].details()?))) {
                None => vec![(span.clone(), 1.0)],
                Some((at, details)) => within(&rendered.text, span.clone(), &messages[at], details)
                    .map_err(|why| format!("`messages[{at}]`: {why}"))?,
            };
            let whole = learned.last().is_some_and(|(last, _)| last.end == span.end);
            let mut covered = span.start;
            for (range, _) in &learned {
                excluded.extend((covered < range.start).then_some(covered..range.start));
                covered = range.end;
            }
            excluded.extend((covered < span.end).then_some(covered..span.end));
            let habits = self.habits(template);
            asked_otherwise |= habits.is_some_and(|habits| !habits.asks_as(&rendered.text, span.start));
            let content = at.and_then(|at| messages[at].content.as_deref()).unwrap_or_default().trim_end();
            let says_end = habits.is_some() && self.ends_turn(Some(template), content);
            if says_end && !rendered.text[span.clone()].trim_end().ends_with(content) {
                notes.push(Note::Said(
                    "an answer ends with a token that ends turns, and the chat template writes one behind it, so that two \
                     are learned; leave it out of the row"
                        .to_owned(),
                ));
            }
            open_ended += usize::from(whole && !self.ends_turn(Some(template), rendered.text[span].trim_end()));
            for (range, weight) in learned {
                supervised.push(range);
                weights.push(of_turn * weight);
            }
        }
        Ok(ChatText { text: rendered.text, supervised, weights, excluded, open_ended, asked_otherwise, notes })
    }

    /// Tokenizes the rendered conversation once, as a whole.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<ChatTokens, String> {
        self.encode_conversation(&Conversation::new(messages.to_vec()))
    }

    /// [`encode_chat`](Self::encode_chat) for a conversation with tools.
    pub fn encode_conversation(&self, conversation: &Conversation) -> Result<ChatTokens, String> {
        let chat = self.render_conversation(conversation)?;
        let (input_ids, labels, weights) = self.labeled(&chat.text, &chat.supervised, &chat.weights, &chat.excluded)?;
        let ChatText { open_ended, asked_otherwise, notes, .. } = chat;
        Ok(ChatTokens { input_ids, labels, weights, open_ended, asked_otherwise, notes })
    }

    /// Tokenizes a prompt with its completion as one text, without a template: BOS (where the tokenizer puts one before
    /// plain text), prompt, completion, EOS. Completion and EOS are supervised. A BOS that the text has already is not
    /// added again, nor is an EOS where the text ends with it or with a token that ends turns. Other added tokens
    /// (`</tool_call>`) end no text.
    pub fn encode_completion(&self, prompt: &str, completion: &str) -> Result<ChatTokens, String> {
        let text = format!("{prompt}{completion}");
        let supervised = prompt.len()..text.len();
        let (mut input_ids, mut labels, weights) =
            self.labeled(&text, std::slice::from_ref(&supervised), &[1.0], &[])?;
        if let Some(bos) = self.bos_token_id().filter(|_| self.begins_with_bos())
            && input_ids.first() != Some(&bos)
        {
            input_ids.insert(0, bos);
            labels.insert(0, UNSUPERVISED);
        }
        let last_supervised = labels.last().is_some_and(|&label| label != UNSUPERVISED);
        // A template with unknown habits does not show which token ends a turn.
        let template = self.template().filter(|template| self.habits(template).is_some());
        let ends = last_supervised && self.ends_turn(template, completion);
        if let Some(eos) = self.eos_token_id().filter(|_| !ends) {
            input_ids.push(eos);
            labels.push(i32::try_from(eos).map_err(|_| format!("the tokenizer has the token id {eos}"))?);
        }
        let open_ended = usize::from(!ends && self.eos_token_id().is_none());
        let asked_otherwise = false;
        // A text without a prompt may be a whole conversation.
        let is_within = !prompt.is_empty() && self.ends_within(template, completion);
        let notes = is_within.then(|| Note::Said(ENDS_WITHIN.to_owned())).into_iter().collect();
        Ok(ChatTokens { input_ids, labels, weights, open_ended, asked_otherwise, notes })
    }

    /// True if something follows a token in an answer that ends turns.
    fn ends_within(&self, template: Option<&ChatTemplate>, answer: &str) -> bool {
        let of_template = template.and_then(|template| self.habits(template));
        let of_template = of_template.into_iter().flat_map(|habits| [habits.closing.trim(), habits.inner.trim()]);
        let mut ends = self.ends.iter().map(String::as_str).chain(TURN_ENDS).chain(of_template);
        let answer = answer.trim_end();
        ends.any(|end| {
            let at = answer.find(end).filter(|at| !end.is_empty() && at + end.len() < answer.len());
            at.is_some() && self.ends_turn(template, end)
        })
    }

    /// Token ids of a prompt as [`encode_completion`](Self::encode_completion) begins a row with it.
    pub fn encode_prompt(&self, prompt: &str) -> crate::error::Result<Vec<u32>> {
        let mut input_ids = self.encode(prompt)?;
        if let Some(bos) = self.bos_token_id().filter(|_| self.begins_with_bos())
            && input_ids.first() != Some(&bos)
        {
            input_ids.insert(0, bos);
        }
        Ok(input_ids)
    }

    /// Token ids, labels and weights of a text (no weights: 1 each). A token is supervised when it holds any of a
    /// supervised span, as in transformers: where a prompt ends with a space, the answer's first word comes with that
    /// space in one token. It is not where it holds any of an excluded range; in several spans it has the smallest of
    /// their weights.
    pub(super) fn labeled(
        &self,
        text: &str,
        supervised: &[Range<usize>],
        weights_of: &[f32],
        excluded: &[Range<usize>],
    ) -> Result<LabeledIds, String> {
        let (mut input_ids, mut labels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        let weighted = weights_of.iter().any(|&weight| weight != 1.0);
        // Spans and tokens both come in order; a span is done with once a token begins behind it.
        let (mut spans, mut at) = (supervised, 0);
        let mut gaps = excluded;
        self.encode_each(text, &mut |id, range| {
            while spans.first().is_some_and(|span| span.end <= range.start) {
                spans = &spans[1..];
                at += 1;
            }
            while gaps.first().is_some_and(|gap| gap.end <= range.start) {
                gaps = &gaps[1..];
            }
            // A token without text counts at its start.
            let end = range.end.max(range.start + 1);
            let held = spans.iter().zip(&weights_of[at..]).take_while(|(span, _)| span.start < end);
            let weight = held.map(|(_, &weight)| weight).reduce(f32::min);
            let weight = weight.filter(|_| gaps.first().is_none_or(|gap| gap.start >= end));
            let label = i32::try_from(id).map_err(|_| format!("the tokenizer has the token id {id}"))?;
            input_ids.push(id);
            labels.push(if weight.is_some() { label } else { UNSUPERVISED });
            if weighted {
                weights.push(weight.unwrap_or(1.0));
            }
            Ok(())
        })?;
        Ok((input_ids, labels, weights))
    }
}

const ENDS_WITHIN: &str = "an answer holds a token that ends turns before its own end: `generate` stops there, and the token \
                           and what follows it are learned all the same; leave it out of the row";

/// The role `developer` becomes `system` where the template does not know it.
fn with_known_roles(messages: &[Message], template: &ChatTemplate, notes: &mut Vec<Note>) -> Vec<Message> {
    let unknown = |message: &Message| message.role == "developer" && !template.source().contains("developer");
    if messages.iter().any(unknown) {
        let sentence = "the role is developer, which the chat template does not know: rendered as system";
        notes.push(Note::Said(sentence.to_owned()));
    }
    let renamed = |message: &Message| if unknown(message) { message.with_role("system") } else { message.clone() };
    messages.iter().map(renamed).collect()
}

pub(super) fn surroundings(conversation: &Conversation) -> Surroundings {
    let tools = (!conversation.tools.is_empty()).then(|| conversation.tools.iter().map(to_jinja).collect());
    let variables = conversation.variables.iter().map(|(name, value)| (name.clone(), to_jinja(value))).collect();
    Surroundings { tools, variables }
}

/// Turns that only call tools have no content. Templates that insist on one get an empty text.
fn render(
    template: &ChatTemplate,
    around: &Surroundings,
    messages: &[Message],
) -> Result<(Vec<Value>, String), String> {
    let turns: Vec<Value> = messages.iter().map(Message::to_jinja).collect();
    let first = match template.render_in(around, &turns, false) {
        Ok(text) => return Ok((turns, text)),
        Err(why) => why,
    };
    if messages.iter().all(|message| message.content.is_some()) {
        return Err(first);
    }
    let filled = |message: &Message| match message.content {
        Some(_) => message.to_jinja(),
        None => message.with_content("").to_jinja(),
    };
    let turns: Vec<Value> = messages.iter().map(filled).collect();
    let text = template.render_in(around, &turns, false).map_err(|_| first)?;
    Ok((turns, text))
}

/// The reason why a template does not render a conversation, with advice where there is some.
fn explained(why: String, template: &ChatTemplate, conversation: &Conversation, messages: &[Message]) -> String {
    if !conversation.tools.iter().any(tools::is_bare) {
        return why;
    }
    let tools = tools::wrapped(conversation.tools.clone());
    let around = surroundings(&Conversation { messages: Vec::new(), tools, variables: conversation.variables.clone() });
    match render(template, &around, messages) {
        Ok(_) => format!(
            "{why}; it reads tools of the form {{\"type\": \"function\", \"function\": {{\"name\": …}}}}, and the row's `tools` are \
             bare functions: write them in that form, or under `functions`"
        ),
        Err(_) => why,
    }
}

/// The learned ranges of an answer whose parts differ, with the weight of each. Text before the content counts as its
/// first character, and text behind it as its last one, unless it has a weight of its own.
fn within(
    text: &str,
    span: Range<usize>,
    message: &Message,
    details: &[(Range<usize>, f32)],
) -> Result<Vec<(Range<usize>, f32)>, String> {
    let content = message.content.as_deref().unwrap_or_default();
    let trimmed = content.trim();
    // The reasoning comes before the content, and may contain the same text.
    let thought = message.reasoning().map(str::trim).filter(|thought| !thought.is_empty());
    let thought_end = thought.and_then(|thought| Some(text[span.clone()].find(thought)? + thought.len())).unwrap_or(0);
    let find = |content: &str, from: usize| text[from..span.end].find(content).map(|at| from + at);
    let place = |content: &str| find(content, span.start + thought_end).or_else(|| find(content, span.start));
    let (start, skipped) = match place(content) {
        Some(start) => (start, 0),
        None => {
            let skipped = content.len() - content.trim_start().len();
            let start =
                place(trimmed).ok_or("the chat template rewrites this turn, so its parts cannot be told apart")?;
            (start, skipped)
        }
    };
    let written = if skipped == 0 && text[start..].starts_with(content) { content.len() } else { trimmed.len() };
    let end = start + written;
    // Calls with another weight than the text must follow it.
    let is_behind = |range: &Range<usize>| range.end == BEHIND;
    let apart = details.iter().any(|(range, _)| is_behind(range));
    let behind = text.get(end..span.end).unwrap_or_default();
    let follows =
        |call: &serde_json::Value| call["function"]["name"].as_str().is_some_and(|name| behind.contains(name));
    if apart && !message.calls().iter().all(follows) {
        let why = "its text and its calls have flags that differ (`train`, `weight` or the like), and the chat template \
                   does not write the calls behind the text; give both the same flag";
        return Err(why.to_owned());
    }
    let mut learned: Vec<(Range<usize>, f32)> = Vec::new();
    for (range, weight) in details.iter().filter(|(_, weight)| *weight > 0.0) {
        let shift = |at: usize| (start + at.saturating_sub(skipped)).min(end);
        let (mut from, mut to) = match is_behind(range) {
            true => (end, span.end),
            false => (shift(range.start), shift(range.end)),
        };
        if from >= to {
            continue;
        }
        if from == start && !is_behind(range) {
            from = span.start;
        }
        if to == end && !apart {
            to = span.end;
        }
        match learned.last_mut() {
            Some((last, before)) if last.end == from && before == weight => last.end = to,
            _ => learned.push((from..to, *weight)),
        }
    }
    Ok(learned)
}
