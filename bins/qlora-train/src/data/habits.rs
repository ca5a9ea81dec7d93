//! Habits of a chat template, found by rendering three short conversations: the texts that open an answer and close it.
//!
//! Most templates write the beginning of an answer (the header) only where `add_generation_prompt` is set. Some write
//! it always, some never; some open more than an answer in a row has (`<think>`), and some close only the last turn.

use minijinja::Value;

use super::messages::Message;

/// Contents that no template changes, and that differ in their first and last characters.
const USER: &str = "Alpha probe of useR";
const ANSWER: &str = "Beta probe of answeR";
const NEXT: &str = "Gamma probe of nexT";

/// Tokens that models are known to end a text or a turn with, whatever their settings say.
pub(super) const TURN_ENDS: [&str; 16] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<|EOT|>",
    "</s>",
    "<eos>",
];

/// A template's treatment of the beginning of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// It ends the prompt, where a prompt is asked for.
    OnDemand,
    /// It ends every conversation, asked for or not.
    Always,
    /// It ends no prompt: an answer in a row begins with this text.
    Never(String),
}

#[derive(Clone, Debug)]
pub(super) struct Habits {
    pub header: Header,
    /// All that stands between the question and the end of the prompt.
    pub asked: String,
    /// The header, if it can be distinguished from the end of the question.
    pub opening: Option<String>,
    /// The text between the prompt and an answer's content, if the answer is the last turn.
    pub lead: Option<String>,
    /// The text that closes an answer in the last turn, and in others.
    pub closing: String,
    pub inner: String,
    /// The text between the question and the answer in a row.
    before: String,
}

/// The end of a text that two texts share, and the beginning.
fn shared_end<'a>(one: &'a str, two: &str) -> &'a str {
    let count: usize =
        one.chars().rev().zip(two.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &one[one.len() - count..]
}

fn shared_start<'a>(one: &'a str, two: &str) -> &'a str {
    let count: usize = one.chars().zip(two.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &one[..count]
}

/// The tokens that a tokenizer has for itself, in texts.
pub(super) struct OwnTokens<'a> {
    pub all: &'a [String],
    /// Those that end a text or a turn by the model's own settings.
    pub ends: &'a [String],
    pub bos: Option<&'a str>,
}

impl OwnTokens<'_> {
    /// End of the first of the tokens inside the text.
    fn end_of_first(tokens: &[String], text: &str) -> Option<usize> {
        let first = tokens.iter().filter_map(|token| Some((text.find(token.as_str())?, token.len())));
        first.min_by_key(|&(at, len)| (at, usize::MAX - len)).map(|(at, len)| at + len)
    }

    fn end_of_last(&self, text: &str) -> Option<usize> {
        self.all.iter().filter_map(|token| text.rfind(token.as_str()).map(|at| at + token.len())).max()
    }
}

impl Habits {
    /// `render`: the template, asked for turns and whether to open an answer. None: it does not take such
    /// conversations, or rewrites what is said in them.
    pub fn of(render: impl Fn(&[Value], bool) -> Result<String, String>, tokens: &OwnTokens) -> Option<Self> {
        let turns: Vec<Value> = [("user", USER), ("assistant", ANSWER), ("user", NEXT)]
            .iter()
            .map(|(role, content)| Message::new(role, content).to_jinja())
            .collect();
        let one = render(&turns[..2], false).ok()?;
        let (user_end, answer) = (one.find(USER)? + USER.len(), one.rfind(ANSWER)?);
        let before = one.get(user_end..answer)?;
        let tail = &one[answer + ANSWER.len()..];
        let after_user = |text: String| Some(text[text.find(USER)? + USER.len()..].to_owned());
        let asked = after_user(render(&turns[..1], true).ok()?)?;
        let silent = render(&turns[..1], false).ok().and_then(after_user);
        let between = render(&turns, false).ok().and_then(|text| {
            let start = text.find(ANSWER)? + ANSWER.len();
            // A template may write the next question before the answer.
            Some(text.get(start..text.rfind(NEXT)?)?.to_owned())
        });
        let header = header(before, tail, &asked, silent.as_deref(), between.as_deref());
        let opening = match (&header, silent.as_deref()) {
            (Header::OnDemand, Some(silent)) if silent != asked => asked.strip_prefix(silent),
            _ => None,
        };
        let (closing, inner) = match &header {
            Header::Always => {
                let shared = between.as_deref().map_or("", |between| shared_start(tail, between));
                let end = OwnTokens::end_of_first(tokens.ends, shared)
                    .or_else(|| OwnTokens::end_of_first(tokens.all, shared))
                    .unwrap_or_else(|| {
                        let tail = tail.trim_end();
                        tail.len() - shared_end(tail, before.trim_end()).len()
                    });
                (tail[..end].to_owned(), tail[..end].to_owned())
            }
            _ => (tail.to_owned(), inner(tail, between.as_deref(), opening.unwrap_or(&asked), tokens)),
        };
        let lead = match &header {
            Header::Never(_) => None,
            _ => before.strip_prefix(asked.as_str()),
        };
        Some(Self {
            opening: opening.map(str::to_owned),
            lead: lead.map(str::to_owned),
            before: before.to_owned(),
            header,
            asked,
            closing,
            inner,
        })
    }

    /// Bytes of [`closing`](Self::closing) that belong to the last turn: if it begins with the token that ends other
    /// turns, nothing after that token.
    pub fn closing_of_turn(&self, ends_with_token: impl Fn(&str) -> bool) -> usize {
        let inner = self.inner.trim_end();
        if self.closing.starts_with(inner) && ends_with_token(inner) { inner.len() } else { self.closing.len() }
    }

    /// True if an answer that begins at `start` of a text follows the text that ends a prompt for generation. A row may
    /// have the end of that text in its answer: a `<think>` that the prompt writes too.
    pub fn asks_as(&self, text: &str, start: usize) -> bool {
        match &self.header {
            Header::Never(_) => false,
            _ if self.before.starts_with(&self.asked) => true,
            _ => {
                let (first, last) = (start.saturating_sub(self.asked.len()), start + self.asked.len());
                let from = (first..start).find(|&at| text.is_char_boundary(at)).unwrap_or(start);
                let to = (start..=last.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(start);
                text[from..to].contains(&self.asked)
            }
        }
    }

    /// A sentence on the difference between the prompt of `generate` and the text before an answer in a row; none: no
    /// difference.
    pub fn prompt_differs(&self) -> Option<String> {
        match &self.header {
            Header::Never(header) => Some(format!(
                "the chat template writes no beginning of an answer into the prompt, whatever add_generation_prompt says, so \
                 `generate` asks for {header:?} too, which is not trained on; choose a template that writes it"
            )),
            _ if self.before.starts_with(&self.asked) => None,
            _ => Some(format!(
                "the prompt that `generate` writes ends with {:?}, but in rows {:?} stands before an answer, so the model \
                 is asked otherwise than it was trained; a training template writes both alike",
                end_of(&self.asked),
                end_of(&self.before)
            )),
        }
    }
}

/// At most the last 60 characters.
fn end_of(text: &str) -> &str {
    text.char_indices().rev().nth(59).map_or(text, |(at, _)| &text[at..])
}

fn header(before: &str, tail: &str, asked: &str, silent: Option<&str>, between: Option<&str>) -> Header {
    if silent != Some(asked) {
        return Header::OnDemand;
    }
    if let Some(header) = before.strip_prefix(asked).filter(|header| !header.trim().is_empty()) {
        return Header::Never(header.to_owned());
    }
    // The text that ends a conversation equals the text before an answer, but for white space, and does not occur
    // between two turns.
    let ends = between.is_some_and(|between| !between.starts_with(tail)) && before.trim_end() == asked.trim_end();
    if ends && !shared_end(tail.trim_end(), before.trim_end()).trim().is_empty() {
        Header::Always
    } else {
        Header::OnDemand
    }
}

/// The text that closes an answer that is not the last turn.
fn inner(tail: &str, between: Option<&str>, opening: &str, tokens: &OwnTokens) -> String {
    let Some(between) = between else { return tail.to_owned() };
    if between.starts_with(tail) {
        return tail.to_owned();
    }
    // The last turn is closed by more than the others are: only whole tokens that both have belong to the turn.
    if let Some(end) = tokens.end_of_last(shared_start(tail, between)) {
        return tail[..end].to_owned();
    }
    // The other turns may be closed by another token, which begins no header.
    let first =
        tokens.all.iter().filter(|token| between.trim_start().starts_with(token.as_str())).max_by_key(|t| t.len());
    match first.filter(|token| !opening.contains(token.as_str()) && tokens.bos != Some(token.as_str())) {
        Some(token) => between[..between.len() - between.trim_start().len() + token.len()].to_owned(),
        None => String::new(),
    }
}
