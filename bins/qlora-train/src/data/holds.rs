//! A check that a rendered conversation contains all that was said: templates leave out what they do not know (tool
//! calls, reasoning), and some cut it (`<think>` of earlier turns). Missing text gives a note; missing text of an
//! answer is refused.

use std::collections::BTreeSet;

use serde_json::Value;

use super::messages::{Conversation, Message, THINK};
use super::notes::Note;
use super::spans::{Answer, PROBES, Rendered};
use super::tools::{self, Leaf};

/// Refuses answers that the text does not contain, and adds other missing text to `notes`.
pub(super) fn check(
    rendered: &Rendered,
    conversation: &Conversation,
    answers: &[Answer],
    notes: &mut Vec<Note>,
) -> Result<(), String> {
    tool_definitions(rendered, conversation)?;
    let mut span_of = vec![None; rendered.messages.len()];
    for (at, span) in answers {
        if let Some(at) = at {
            span_of[*at] = Some(span.clone());
        }
    }
    let last_user = rendered.messages.iter().rposition(|message| message.role == "user");
    let mut cursor = 0;
    for (at, message) in rendered.messages.iter().enumerate() {
        let turn = Turn { rendered, at, message, last: last_user.is_none_or(|user| at > user) };
        match &span_of[at] {
            Some(span) => {
                let said = &rendered.text[span.clone()];
                turn.check(said, message.supervised, notes).map_err(|why| format!("`messages[{at}]`: {why}"))?;
                cursor = span.end;
            }
            None => {
                let content = message.content.as_deref().unwrap_or_default().trim();
                // Turns mostly come in order, which keeps the search short.
                let found = rendered.text[cursor..].find(content);
                rendered.search(found.unwrap_or(rendered.text.len() - cursor))?;
                match found {
                    Some(found) if message.calls().is_empty() && message.reasoning().is_none() => {
                        notes.extend(written_twice(message, content, &rendered.text[..cursor + found]));
                        cursor += found + content.len();
                    }
                    _ => turn
                        .check(&rendered.text, message.supervised, notes)
                        .map_err(|why| format!("`messages[{at}]`: {why}"))?,
                }
            }
        }
    }
    for role in silent_roles(rendered) {
        let note = Note::Said(leaves_out(role));
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    Ok(())
}

/// A remark about a tool result that contains the marks that the template writes around it.
fn written_twice(message: &Message, content: &str, before: &str) -> Option<Note> {
    let mark = &content[..=content.find('>').filter(|_| content.starts_with('<') && message.role == "tool")?];
    before.trim_end().ends_with(mark).then(|| {
        Note::Said(format!(
            "a tool turn begins with {mark}, which the chat template writes around it once more; leave the mark out of the \
             row, or choose a template that writes none (`chat_template`)"
        ))
    })
}

/// True if a text contains all the calls of its turn, written as calls: with their names in quotes or marks. Words that
/// announce a call do not count.
fn writes_calls(content: &str, calls: &[Value], leaves: &[(Leaf, usize)]) -> bool {
    let is_marked = |name: &str| {
        let mut found = content.match_indices(name);
        found.any(|(at, _)| content[..at].trim_end().ends_with(['"', '\'', '=', '>', '[']))
    };
    let mut names = calls.iter().map(|call| call["function"]["name"].as_str());
    !calls.is_empty()
        && content.contains(['{', '<', '['])
        && names.all(|name| name.is_some_and(|name| !name.is_empty() && is_marked(name)))
        && leaves.iter().all(|(leaf, count)| leaf.occurrences(content) >= *count)
}

/// Maximum number of turns of one role that are tried one by one, if together they do not show that they are left out.
const FEW: usize = 16;
/// A placeholder is the number of its turn between these.
const BEFORE: &str = "Placeholder";
const BEHIND: &str = "oF";

/// The roles of unlearned turns that the template leaves out although their words occur elsewhere, in another turn or
/// in the template's own text. A turn is left out if the rendered conversation is the same whatever the turn says.
fn silent_roles<'r>(rendered: &Rendered<'r>) -> Vec<&'r str> {
    let messages = rendered.messages;
    let says = |message: &Message| message.content.as_deref().is_some_and(|content| !content.trim().is_empty());
    let context: Vec<usize> =
        (0..messages.len()).filter(|&at| !messages[at].supervised && says(&messages[at])).collect();
    if context.is_empty() {
        return Vec::new();
    }
    let placeholder = |at: usize| format!("{BEFORE}{at}{BEHIND}");
    // One rendering is enough for most conversations; if the template refuses the placeholders, turns are tried one by
    // one.
    let skeleton = rendered.render_with_each(&context, placeholder).unwrap_or_default();
    let number = |rest: &str| rest.split_once(BEHIND)?.0.parse::<usize>().ok();
    let written: BTreeSet<usize> = skeleton.split(BEFORE).skip(1).filter_map(number).collect();
    let mut missing: Vec<(&'r str, Vec<usize>)> = Vec::new();
    for at in context.into_iter().filter(|at| !written.contains(at)) {
        let role = messages[at].role.as_str();
        match missing.iter_mut().find(|(other, _)| *other == role) {
            Some((_, turns)) => turns.push(at),
            None => missing.push((role, vec![at])),
        }
    }
    let reads_the_same =
        |turns: &[usize]| rendered.render_with_each(turns, placeholder).is_ok_and(|text| text == rendered.text);
    let is_silent = |turns: &[usize]| reads_the_same(turns) || turns.iter().take(FEW).any(|&at| reads_the_same(&[at]));
    missing.into_iter().filter(|(_, turns)| is_silent(turns)).map(|(role, _)| role).collect()
}

fn leaves_out(role: &str) -> String {
    let article = if role.starts_with('a') { "an" } else { "a" };
    format!("the chat template leaves out what {article} {role} turn says")
}

/// Refuses answers whose calls are nowhere in the text, before they are located.
pub(super) fn check_calls(rendered: &Rendered) -> Result<(), String> {
    for (at, message) in rendered.messages.iter().enumerate().filter(|(_, message)| message.supervised) {
        let leaves = Leaf::of(message.calls());
        rendered.search(rendered.text.len().saturating_mul(3 * leaves.len()))?;
        if let Some((leaf, _)) = leaves.iter().find(|(leaf, count)| leaf.occurrences(&rendered.text) < *count) {
            return Err(format!("`messages[{at}]`: {}", not_written(rendered, leaf)));
        }
    }
    Ok(())
}

fn not_written(rendered: &Rendered, leaf: &Leaf) -> String {
    format!(
        "the chat template ({}) does not write the turn's `tool_calls` ({:?} is missing), so another answer would be learned; \
         choose a template that writes them (`chat_template`)",
        rendered.tokenizer.template_origin(),
        super::json::shorten(leaf.shown())
    )
}

fn tool_definitions(rendered: &Rendered, conversation: &Conversation) -> Result<(), String> {
    rendered.search(rendered.text.len().saturating_mul(2 * conversation.tools.len()))?;
    let missing = conversation.tools.iter().filter_map(tools::name).find(|name| !holds(&rendered.text, name));
    if missing.is_none() && (conversation.tools.is_empty() || rendered.template.source().contains("tools")) {
        return Ok(());
    }
    Err(format!(
        "the chat template ({}) does not write the row's `tools`, so the model would learn calls of tools that it was not \
         told of; choose a template that writes them (`chat_template`), or remove the key",
        rendered.tokenizer.template_origin()
    ))
}

/// True if a text holds another one, as it is or as JSON writes it.
fn holds(text: &str, part: &str) -> bool {
    text.contains(part) || {
        let escaped = serde_json::to_string(part).unwrap_or_default();
        text.contains(escaped.trim_matches('"'))
    }
}

/// Number of times that a text holds another one, as it is or as JSON writes it.
fn occurrences(text: &str, part: &str) -> usize {
    let escaped = serde_json::to_string(part).unwrap_or_default();
    let escaped = escaped.trim_matches('"');
    let plain = text.matches(part).count();
    if escaped == part { plain } else { plain + text.matches(escaped).count() }
}

struct Turn<'a> {
    rendered: &'a Rendered<'a>,
    at: usize,
    message: &'a Message,
    /// No user turn follows.
    last: bool,
}

impl Turn<'_> {
    /// `said` is the text of the turn, or the whole one where the turn's own is not known.
    fn check(&self, said: &str, answer: bool, notes: &mut Vec<Note>) -> Result<(), String> {
        let mut note = |sentence: String| notes.push(Note::Said(sentence));
        let role = &self.message.role;
        // Each text that the turn has is looked for a few times.
        let leaves = Leaf::of(self.message.calls());
        self.rendered.search(said.len().saturating_mul(4 * (2 + leaves.len())))?;
        let content = self.message.content.as_deref().unwrap_or_default().trim();
        let reasoning = self.message.reasoning().unwrap_or_default().trim();
        if !holds(said, content) {
            let (mut thoughts, mut visible) = thinking(content).unwrap_or_else(|| (Vec::new(), vec![content]));
            let is_word = mentions_the_end(content);
            if is_word {
                // Then the text before it is no thought.
                visible = std::mem::take(&mut thoughts).into_iter().chain(visible).collect();
            }
            let searched = said.len().saturating_add(reasoning.len());
            self.rendered.search(searched.saturating_mul(2 * (thoughts.len() + visible.len() - 1)))?;
            if thoughts.iter().any(|thought| !holds(said, thought)) {
                note(format!(
                    "the chat template leaves out what the {role} thinks (`<think>` … `</think>`){}",
                    self.training_template()
                ));
            }
            let lacking = visible.iter().find(|part| !holds(said, part));
            if is_word && lacking.is_none() {
                note(format!(
                    "the chat template takes what stands before `</think>` in `messages[{}]` for a thought, and does not write \
                     it as the row has it, where it is a word of what the {role} says; write that mark otherwise, or leave \
                     such rows out",
                    self.at
                ));
            }
            if let Some(part) = lacking {
                let is_written = self.rendered.render_with(self.at, PROBES[0])?.contains(PROBES[0]);
                match lost(said, part) {
                    // The template writes the content in another form.
                    None if is_written || answer && part.contains(char::is_alphanumeric) => {
                        note(format!("the chat template rewrites what the {role} says"));
                    }
                    Some(lost) if is_written && answer => {
                        return Err(format!(
                            "the chat template ({}) leaves out a part of what this turn says, from {:?} on, so another \
                             answer would be learned; choose a template that writes it whole (`chat_template`){}",
                            self.rendered.tokenizer.template_origin(),
                            super::json::shorten(lost),
                            self.training_template()
                        ));
                    }
                    Some(_) if is_written => {
                        note(format!("the chat template leaves out a part of what the {role} says"));
                    }
                    _ if answer => {
                        return Err(
                            "the chat template leaves out what this turn says; it seems to expect another kind of content"
                                .into(),
                        );
                    }
                    _ => note(leaves_out(role)),
                }
            }
        }
        // Text that the template cuts is not counted.
        let written = match holds(said, content) {
            true => vec![content],
            false => thinking(content).map_or_else(Vec::new, |(_, visible)| visible),
        };
        // Words that announce a call are not the call itself: its values must occur once more.
        let besides = |leaf: &Leaf, count: usize| {
            let announced: usize = written.iter().map(|part| leaf.occurrences(part)).sum();
            leaf.occurrences(said) >= count + announced + leaf.occurrences(reasoning)
        };
        let repeated = || written.iter().map(|part| occurrences(part, reasoning)).sum::<usize>();
        if !reasoning.is_empty() && occurrences(said, reasoning) <= repeated() {
            let source = self.rendered.template.source();
            let knows = ["reasoning_content", "thinking", "reasoning"].iter().any(|key| source.contains(key));
            if answer && (self.last || !knows) {
                return Err(format!(
                    "the chat template does not write the turn's reasoning (`reasoning_content`, `thinking`){}; choose another template \
                     (`chat_template`), or remove the key to train on the answer alone",
                    self.training_template()
                ));
            }
            note(format!("the chat template leaves out the reasoning of earlier turns{}", self.training_template()));
        }
        if let Some((leaf, _)) = leaves.iter().find(|(leaf, count)| !besides(leaf, *count)) {
            if answer {
                return Err(not_written(self.rendered, leaf));
            }
            note("the chat template leaves out tool calls of a turn that is not learned".to_owned());
        } else if answer && writes_calls(content, self.message.calls(), &leaves) {
            note(
                "an answer has its tool calls in its text too, beside `tool_calls`, so that each call is learned twice; leave \
                 them out of the text"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The built-in template to choose instead, if one keeps the text of this turn.
    fn training_template(&self) -> String {
        let content = self.message.content.as_deref().unwrap_or_default().trim();
        match self.rendered.tokenizer.training_template().filter(|_| thinks_once(content)) {
            Some(name) => format!("; `chat_template: {name}` keeps it"),
            None => String::new(),
        }
    }
}

/// The texts between `<think>` and `</think>`, and those outside. The first `<think>` may be the prompt's. None: there
/// is no thought.
fn thinking(content: &str) -> Option<(Vec<&str>, Vec<&str>)> {
    let (mut thoughts, mut visible) = (Vec::new(), Vec::new());
    let mut rest = content;
    while let Some((before, behind)) = rest.split_once(THINK[1]) {
        match before.split_once(THINK[0]) {
            Some((outside, thought)) => {
                visible.push(outside.trim());
                thoughts.push(thought.trim());
            }
            None if thoughts.is_empty() => thoughts.push(before.trim()),
            None => visible.push(before.trim()),
        }
        rest = behind;
    }
    if thoughts.is_empty() {
        return None;
    }
    visible.push(rest.trim());
    visible.retain(|part| !part.is_empty());
    Some((thoughts, visible))
}

/// True if a text has the end of a thought within a line, and no beginning of one before it: it is a word of the text.
fn mentions_the_end(content: &str) -> bool {
    let is_line_end = |letter: Option<char>| letter.is_none_or(|letter| matches!(letter, '\n' | '\r'));
    content.split_once(THINK[1]).is_some_and(|(before, behind)| {
        !before.contains(THINK[0]) && !is_line_end(before.chars().next_back()) && !is_line_end(behind.chars().next())
    })
}

/// True if a text has at most one thought, at its beginning: templates for training keep no other one.
fn thinks_once(content: &str) -> bool {
    let mut parts = content.split(THINK[1]);
    let thought = parts.next().unwrap_or_default();
    let inner = thought.strip_prefix(THINK[0]).unwrap_or(thought);
    !inner.contains(THINK[0]) && parts.count() < 2 && !mentions_the_end(content)
}

/// The words of a text in lower case, each with the offset of its beginning.
fn words(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut at = 0;
    let pieces = text.split_inclusive(|letter: char| !letter.is_alphanumeric()).map(move |piece| {
        at += piece.len();
        (at - piece.len(), piece.trim_end_matches(|letter: char| !letter.is_alphanumeric()).to_lowercase())
    });
    pieces.filter(|(_, word)| !word.is_empty())
}

/// The rest of a text from its first word on that another one does not hold in its place, in any case of letters. None:
/// it holds all of them.
fn lost<'t>(said: &str, text: &'t str) -> Option<&'t str> {
    let mut written = words(said).map(|(_, word)| word);
    let missing = words(text).find(|(_, word)| !written.any(|other| other == *word));
    missing.map(|(at, _)| &text[at..])
}

#[cfg(test)]
mod tests;
