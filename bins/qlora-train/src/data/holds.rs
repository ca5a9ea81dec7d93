//! Whether a rendered conversation holds what was said: templates leave out what they do not know (tool calls,
//! reasoning), and some cut it (`<think>` of earlier turns). What is missing is told; where it is the answer, refused.

use std::collections::BTreeSet;

use super::messages::{Conversation, Message};
use super::notes::Note;
use super::spans::{Answer, PROBES, Rendered};
use super::tools::{self, Leaf};

const THINK: [&str; 2] = ["<think>", "</think>"];

/// Refuses answers that the text does not hold, and adds what else it lacks to `notes`.
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

/// Turns of one role that are tried one by one for being left out, where together they do not show it.
const FEW: usize = 16;
/// A placeholder is the number of its turn between these.
const BEFORE: &str = "Placeholder";
const BEHIND: &str = "oF";

/// The roles of turns that are not learned and that the template leaves out, although the text of another turn, or what
/// the template writes itself, holds what they say. A turn is left out where the conversation reads the same whatever
/// the turn says.
fn silent_roles<'r>(rendered: &Rendered<'r>) -> Vec<&'r str> {
    let messages = rendered.messages;
    let says = |message: &Message| message.content.as_deref().is_some_and(|content| !content.trim().is_empty());
    let context: Vec<usize> =
        (0..messages.len()).filter(|&at| !messages[at].supervised && says(&messages[at])).collect();
    if context.is_empty() {
        return Vec::new();
    }
    let placeholder = |at: usize| format!("{BEFORE}{at}{BEHIND}");
    // One rendering tells most conversations; a template that refuses the placeholders is asked turn by turn.
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

/// Refuses answers whose calls are nowhere in the text, before it is asked where they are.
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

/// Whether a text holds another one, as it is or as JSON writes it.
fn holds(text: &str, part: &str) -> bool {
    text.contains(part) || {
        let escaped = serde_json::to_string(part).unwrap_or_default();
        text.contains(escaped.trim_matches('"'))
    }
}

/// How often a text holds another one, as it is or as JSON writes it.
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
            let (thought, visible) = thinking(content).unwrap_or(("", content));
            let (visible_held, thought_held) = (holds(said, visible), holds(said, thought));
            match (visible_held, thought_held) {
                (true, true) => {}
                (true, false) => note(format!(
                    "the chat template leaves out what the {role} thinks (`<think>` … `</think>`){}",
                    self.training_template()
                )),
                // It writes what is said otherwise than it is given.
                (false, _) if self.rendered.render_with(self.at, PROBES[0])?.contains(PROBES[0]) => {
                    note(format!("the chat template writes what the {role} says otherwise than the row has it"))
                }
                (false, _) if answer => {
                    return Err(
                        "the chat template leaves out what this turn says; it seems to expect another kind of content"
                            .into(),
                    );
                }
                (false, _) => note(leaves_out(role)),
            }
        }
        // What the template cuts is not there to be counted.
        let written = match holds(said, content) {
            true => content,
            false => thinking(content).map_or("", |(_, visible)| visible),
        };
        // In words that announce a call the call itself is not found: it has to be there once more.
        let besides = |leaf: &Leaf, count: usize| {
            leaf.occurrences(said) >= count + leaf.occurrences(written) + leaf.occurrences(reasoning)
        };
        if !reasoning.is_empty() && occurrences(said, reasoning) <= occurrences(written, reasoning) {
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
        }
        Ok(())
    }

    /// The template to choose instead, where one is at hand.
    fn training_template(&self) -> String {
        match self.rendered.tokenizer.training_template() {
            Some(name) => format!("; `chat_template: {name}` keeps it"),
            None => String::new(),
        }
    }
}

/// What stands between `<think>` and `</think>`, and what follows.
fn thinking(content: &str) -> Option<(&str, &str)> {
    let end = content.rfind(THINK[1])?;
    let start = content[..end].find(THINK[0]).map_or(0, |at| at + THINK[0].len());
    Some((content[start..end].trim(), content[end + THINK[1].len()..].trim()))
}
