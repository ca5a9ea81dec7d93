//! Finds the assistant's answers in a rendered conversation.
//!
//! If a template marks them (`{% generation %}`), the marks are used. Otherwise the conversation is rendered twice, as
//! it is and with a placeholder in every answer: the equal text around the placeholders is the template's own, and its
//! habits (see `habits`) show which part of that opens an answer and which closes it. Both ways cost two renderings
//! however many turns there are.
//!
//! A template that writes a turn differently depending on its content does not line up with the placeholders. Such
//! turns are isolated by bisection and located one by one: the answer is the text between the rendering of "all turns
//! before, and the prompt for an answer" and that of "all turns up to the answer". If earlier turns are rendered
//! differently from the last one, so that a rendered prefix is no prefix of the whole, the whole is rendered with two
//! other contents in the turn: their common beginning is everything before the content, and their common end everything
//! behind it. The cost of all renderings is limited.
//!
//! An answer ends with the token that ends the turn. White space behind that token is not learned: generation stops at
//! the token.

use std::cell::Cell;
use std::ops::Range;

use minijinja::Value;

use super::habits::{Habits, Header};
use super::messages::{Message, THINK};
use super::template::{ChatTemplate, Surroundings};
use super::tokenizer::ChatTokenizer;
use super::tools::Leaf;

/// Contents that differ in their first and in their last character.
pub(super) const PROBES: [&str; 2] = ["Alpha probe of onE", "Beta probe of twO"];
/// Maximum cost of all renderings of a conversation, in instructions of the template and requests for memory: ten times
/// that of the longest rendering.
const MAX_COST: u64 = 50_000_000;
/// Bytes that are searched in the time of one instruction.
const SEARCHED_AT_ONCE: u64 = 256;
/// Answers that are found one by one without a search for those that line up.
const FEW: usize = 16;

/// A conversation that was rendered.
pub(super) struct Rendered<'a> {
    pub tokenizer: &'a ChatTokenizer,
    pub template: &'a ChatTemplate,
    pub around: Surroundings,
    pub messages: &'a [Message],
    pub turns: Vec<Value>,
    pub text: String,
    /// Cost so far, of [`MAX_COST`]
    pub spent: Cell<u64>,
}

/// An answer in the text: the index of its message, None where marks stand for several.
pub(super) type Answer = (Option<usize>, Range<usize>);

impl Rendered<'_> {
    /// The answers that are learned, in order.
    pub fn answers(&self) -> Result<Vec<Answer>, String> {
        let supervised: Vec<usize> = (0..self.messages.len()).filter(|&at| self.messages[at].supervised).collect();
        if supervised.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(marked) = self.marked()? {
            return Ok(marked);
        }
        let contents = self.places(&supervised);
        let mut answers: Vec<Answer> = Vec::with_capacity(supervised.len());
        for (index, &at) in supervised.iter().enumerate() {
            let name = |why: String| format!("`messages[{at}]`: {why}");
            let previous = answers.last().map_or(0, |(_, last)| last.end);
            let known = contents[index].as_ref().and_then(|content| self.by_habits(at, content, previous));
            let found = match known {
                Some(found) => found,
                None => self.one_by_one(at).map_err(name)?,
            };
            if previous > found.start {
                return Err(name("the chat template writes the turns in another order".into()));
            }
            answers.push((Some(at), self.without_tail(found)));
        }
        Ok(answers)
    }

    /// The answers by the template's own marks. None: it has none, or they do not match the turns.
    fn marked(&self) -> Result<Option<Vec<Answer>>, String> {
        if !self.template.has_marks() {
            return Ok(None);
        }
        let (text, marks) = self.template.render_marked(&self.around, &self.turns)?;
        if text != self.text {
            return Ok(None);
        }
        let assistant: Vec<usize> = (0..self.messages.len()).filter(|&at| self.messages[at].is_assistant()).collect();
        if marks.len() == assistant.len() {
            let pairs = assistant.into_iter().zip(marks).filter(|(at, _)| self.messages[*at].supervised);
            return Ok(Some(pairs.map(|(at, range)| (Some(at), range)).collect()));
        }
        let weight = assistant.first().map(|&at| self.messages[at].weight);
        let plain = |at: &usize| {
            let message = &self.messages[*at];
            message.supervised && message.details().is_none() && Some(message.weight) == weight
        };
        match !marks.is_empty() && assistant.iter().all(plain) {
            true => Ok(Some(marks.into_iter().map(|range| (None, range)).collect())),
            false => Ok(None),
        }
    }

    /// The text of these turns, within what all renderings of the conversation may cost.
    fn render(&self, turns: &[Value], prompt: bool) -> Result<String, String> {
        self.spend(0)?;
        let (text, cost) = self.template.render_costed(&self.around, turns, prompt);
        self.spent.set(self.spent.get().saturating_add(cost));
        text
    }

    /// Counts bytes that are searched.
    pub fn search(&self, bytes: usize) -> Result<(), String> {
        self.spend(bytes as u64 / SEARCHED_AT_ONCE)
    }

    fn spend(&self, cost: u64) -> Result<(), String> {
        let spent = self.spent.get().saturating_add(cost);
        self.spent.set(spent);
        match spent <= MAX_COST {
            true => Ok(()),
            false => Err(format!(
                "the chat template writes turns differently by content, and {} turns are too many to find one by one; \
                 split the conversation",
                self.messages.len()
            )),
        }
    }

    /// Ranges of the contents of these turns in the text, for those that line up with placeholders. If not all do, the
    /// others are found by bisection: a few turns that are written differently cost a few renderings each.
    fn places(&self, supervised: &[usize]) -> Vec<Option<Range<usize>>> {
        if let Some(places) = self.contents(supervised) {
            return places.into_iter().map(Some).collect();
        }
        if supervised.len() <= FEW {
            return vec![None; supervised.len()];
        }
        // Most turns that are written differently have a visible mark.
        let (marked, plain): (Vec<usize>, Vec<usize>) = supervised.iter().partition(|&&at| {
            let message = &self.messages[at];
            let said = message.content.as_deref().unwrap_or_default();
            said.contains(['<', '[', '{']) || message.reasoning().is_some() || !message.calls().is_empty()
        });
        let mut found: Vec<(usize, Range<usize>)> = Vec::new();
        for part in [plain, marked] {
            let mut halves = vec![&part[..]];
            // Enough renderings to isolate about a dozen turns.
            let mut tries = 16 + 8 * part.len().max(1).ilog2();
            while let Some(half) = halves.pop() {
                if half.is_empty() || tries == 0 {
                    continue;
                }
                tries -= 1;
                match self.contents(half) {
                    Some(places) => found.extend(half.iter().copied().zip(places)),
                    None if half.len() > 1 => {
                        let (left, right) = half.split_at(half.len() / 2);
                        halves.extend([right, left]);
                    }
                    None => {}
                }
            }
        }
        found.sort_by_key(|(at, _)| *at);
        let mut found = found.into_iter().peekable();
        let take = |&at: &usize| found.next_if(|(of, _)| *of == at).map(|(_, place)| place);
        supervised.iter().map(take).collect()
    }

    /// Ranges of the contents of these turns in the text, if the template writes them unchanged or trimmed and nothing
    /// else depends on them.
    fn contents(&self, supervised: &[usize]) -> Option<Vec<Range<usize>>> {
        let mut turns = self.turns.clone();
        let placeholder = |at: usize| format!("Placeholder{at}oF");
        let mut contents = Vec::with_capacity(supervised.len());
        for &at in supervised {
            let message = &self.messages[at];
            contents.push(message.content.as_deref().filter(|content| !content.trim().is_empty())?);
            turns[at] = message.with_content(&placeholder(at)).to_jinja();
        }
        let skeleton = self.render(&turns, false).ok()?;
        let mut pieces = Vec::with_capacity(supervised.len() + 1);
        let mut rest = skeleton.as_str();
        for &at in supervised {
            let (before, behind) = rest.split_once(&placeholder(at))?;
            pieces.push(before);
            rest = behind;
        }
        pieces.push(rest);
        let ways: [fn(&str) -> &str; 4] = [|text| text, str::trim, str::trim_end, str::trim_start];
        ways.into_iter().find_map(|way| self.line_up(&pieces, contents.iter().map(|content| way(content))))
    }

    /// Ranges of the contents, if the text is the pieces with the contents between them.
    fn line_up<'c>(&self, pieces: &[&str], contents: impl Iterator<Item = &'c str>) -> Option<Vec<Range<usize>>> {
        let (mut at, mut places) = (0, Vec::with_capacity(pieces.len()));
        for (piece, content) in pieces.iter().zip(contents) {
            let rest = self.text[at..].strip_prefix(*piece)?.strip_prefix(content)?;
            let end = self.text.len() - rest.len();
            places.push(end - content.len()..end);
            at = end;
        }
        (&self.text[at..] == *pieces.last()?).then_some(places)
    }

    /// The answer around a content, if the template opens and closes this turn as it opens and closes others.
    fn by_habits(&self, at: usize, content: &Range<usize>, previous: usize) -> Option<Range<usize>> {
        let habits = self.tokenizer.habits(self.template)?;
        let before = &self.text[previous..content.start];
        let start = match &habits.header {
            Header::Never(header) => before.ends_with(header.as_str()).then_some(content.start)?,
            _ => opened(habits, before, content.start)?,
        };
        let behind = &self.text[content.end..];
        let last = at + 1 == self.messages.len();
        let closing = if last { &habits.closing } else { &habits.inner };
        let whole = behind.starts_with(closing.as_str())
            && (!last || habits.header == Header::Always || behind.len() == closing.len());
        if whole {
            let closed = if last { self.closing_of_turn(habits) } else { closing.len() };
            return Some(start..content.end + closed);
        }
        // A template may write more after the last turn, depending on the rest of the row. That text is not part of the
        // turn.
        let end = self.ends(habits).find(|end| last && behind.starts_with(*end))?;
        Some(start..content.end + end.len())
    }

    /// The texts that end a turn with a token: that of the last one, and that of the others.
    fn ends<'h>(&self, habits: &'h Habits) -> impl Iterator<Item = &'h str> {
        let ends = [&habits.closing[..self.closing_of_turn(habits)], habits.inner.as_str()];
        ends.into_iter().map(str::trim_end).filter(move |end| self.tokenizer.ends_turn(Some(self.template), end))
    }

    fn closing_of_turn(&self, habits: &Habits) -> usize {
        habits.closing_of_turn(|text| self.tokenizer.ends_with_added_token(text))
    }

    /// The end of the last turn, which begins at `start`: the first text after its content that ends turns. If its
    /// content is not found, the turn ends with the text.
    fn end_of_last(&self, start: usize) -> usize {
        let (text, Some(habits)) = (&self.text, self.tokenizer.habits(self.template)) else { return self.text.len() };
        let is_plain = text.ends_with(&habits.closing);
        let whole = text.len() - if is_plain { habits.closing.len() - self.closing_of_turn(habits) } else { 0 };
        let (Some(message), Some(rest)) = (self.messages.last(), text.get(start..)) else { return whole };
        let content = message.content.as_deref().unwrap_or_default().trim();
        let answer = content.rsplit_once(THINK[1]).map_or(content, |(_, answer)| answer.trim());
        let mut said = [content, answer].into_iter().filter(|said| !said.is_empty());
        // The reasoning may contain the content.
        let thought = message.reasoning().map(str::trim).filter(|thought| !thought.is_empty());
        let behind = thought.and_then(|thought| rest.find(thought).map(|at| at + thought.len())).unwrap_or(0);
        let found = said.find_map(|said| rest[behind..].find(said).map(|at| behind + at + said.len()));
        // Calls are written in pieces, each of which may end with a token.
        if is_plain && (found.is_none() || !message.calls().is_empty()) {
            return whole;
        }
        let called = Leaf::of(message.calls()).iter().filter_map(|(leaf, _)| leaf.end_of_first(rest)).max();
        let from = found.max(called).unwrap_or(0);
        let end = self.ends(habits).filter_map(|end| rest[from..].find(end).map(|at| at + end.len())).min();
        end.map_or(whole, |end| start + from + end)
    }

    /// The answer by renderings of its own.
    fn one_by_one(&self, at: usize) -> Result<Range<usize>, String> {
        let habits = self.tokenizer.habits(self.template);
        let render = |turns: &[Value], prompt| self.render(turns, prompt).ok();
        let prefix =
            |text: Option<String>| text.filter(|text| self.text.starts_with(text.as_str())).map(|text| text.len());
        // Some templates refuse prefixes that end before an answer (an empty conversation): then probe.
        let mut before = prefix(render(&self.turns[..at], true));
        let always = habits.is_some_and(|habits| habits.header == Header::Always);
        if let (Some(start), Some(Header::Never(header))) = (before, habits.map(|habits| &habits.header)) {
            before = self.text[start..].starts_with(header.as_str()).then_some(start + header.len());
        }
        let after = match at + 1 == self.turns.len() {
            _ if always => None,
            true => before.map(|start| self.end_of_last(start)),
            false => prefix(render(&self.turns[..=at], false)),
        };
        let (start, end) = match (before, after) {
            (Some(start), Some(end)) => (start, end),
            _ => {
                let (content_start, content_end) = self.probe(at)?;
                let end = match (after, habits) {
                    (Some(end), _) => end,
                    (None, _) if at + 1 == self.turns.len() && !always => self.end_of_last(content_start),
                    (None, Some(habits)) if always && self.text[content_end..].starts_with(&habits.inner) => {
                        content_end + habits.inner.len()
                    }
                    _ => content_end + self.tail(at, content_end)?,
                };
                (before.unwrap_or(content_start), end)
            }
        };
        if start > end {
            return Err("the chat template writes nothing for this turn".into());
        }
        Ok(start..end)
    }

    /// The whole conversation with another content in this turn.
    pub fn render_with(&self, at: usize, content: &str) -> Result<String, String> {
        self.render_with_each(&[at], |_| content.to_owned())
    }

    /// The whole conversation with other contents in these turns.
    pub fn render_with_each(&self, turns: &[usize], content: impl Fn(usize) -> String) -> Result<String, String> {
        let mut others = self.turns.clone();
        for &at in turns {
            others[at] = self.messages[at].with_content(&content(at)).to_jinja();
        }
        self.render(&others, false)
    }

    /// Beginning and end of the turn's content in the whole conversation.
    fn probe(&self, at: usize) -> Result<(usize, usize), String> {
        let (one, two) = (self.render_with(at, PROBES[0])?, self.render_with(at, PROBES[1])?);
        let start = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b).count();
        let behind = one.bytes().rev().zip(two.bytes().rev()).take_while(|(a, b)| a == b).count();
        let mut following = &one[one.len() - behind..];
        // Without a content, the separator before a call is not written.
        if self.only_calls(at) {
            following = following.trim_start();
        }
        let fits = one.len() >= start + behind
            && self.text.len() >= start + following.len()
            && self.text.starts_with(&one[..start])
            && self.text.ends_with(following)
            && one[start..one.len() - behind] == *PROBES[0]
            && (self.messages[at].content.is_some() || self.only_calls(at));
        if !fits {
            let advice = match self.tokenizer.training_template() {
                Some(name) => format!("; `chat_template: {name}` does"),
                None => String::new(),
            };
            return Err(format!(
                "cannot tell what of the rendered conversation is this turn, because the chat template does not write the \
                 same text for a conversation and for its first turns{advice}"
            ));
        }
        Ok((start, self.text.len() - following.len()))
    }

    /// True if the turn calls tools and says nothing else.
    fn only_calls(&self, at: usize) -> bool {
        let message = &self.messages[at];
        message.content.as_deref().unwrap_or_default().is_empty() && !message.calls().is_empty()
    }

    /// Bytes after the content that still belong to the turn: the text that the template writes after it as the last
    /// turn, as far as the whole conversation has the same text there.
    fn tail(&self, at: usize, content_end: usize) -> Result<usize, String> {
        let mut turns = self.turns[..=at].to_vec();
        turns[at] = self.messages[at].with_content(PROBES[0]).to_jinja();
        let alone = self.render(&turns, false)?;
        let tail = alone.rfind(PROBES[0]).map_or("", |at| &alone[at + PROBES[0].len()..]);
        let following = &self.text[content_end..];
        let tail = if self.only_calls(at) && !following.starts_with(tail) { tail.trim_start() } else { tail };
        if following.starts_with(tail) {
            return Ok(tail.len());
        }
        // The last turn is closed by more than the others are: only whole tokens that both have belong to the turn.
        let shared: usize =
            tail.chars().zip(following.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        if let Some(end) = self.tokenizer.end_of_last_added_token(&tail[..shared]) {
            return Ok(end);
        }
        // The last turn may also be closed by another token than the others, or by none.
        let inner = self.tokenizer.habits(self.template).map_or("", |habits| habits.inner.as_str());
        Ok(if following.starts_with(inner) { inner.len() } else { 0 })
    }

    /// Leaves out white space behind an end-of-turn token. Without such a token the white space stays: then it is all
    /// that ends the turn.
    fn without_tail(&self, span: Range<usize>) -> Range<usize> {
        let trimmed = self.text[span.clone()].trim_end();
        match self.tokenizer.ends_turn(Some(self.template), trimmed) {
            true => span.start..span.start + trimmed.len(),
            false => span,
        }
    }
}

/// Beginning of the answer whose content begins at `content`, after the text `before`.
fn opened(habits: &Habits, before: &str, content: usize) -> Option<usize> {
    if let Some(lead) = &habits.lead
        && before.strip_suffix(lead.as_str()).is_some_and(|before| before.ends_with(&habits.asked))
    {
        return Some(content - lead.len());
    }
    match &habits.opening {
        Some(opening) if before.ends_with(opening.as_str()) => Some(content),
        // Text of the template between the header and the content is learned as well: generation writes it too.
        Some(opening) if !opening.trim().is_empty() => {
            before.rfind(opening.as_str()).map(|at| content - before.len() + at + opening.len())
        }
        _ => before.ends_with(&habits.asked).then_some(content),
    }
}
