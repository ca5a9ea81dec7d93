//! A chat template: Jinja, with the environment that transformers gives it (trimmed blocks, loop controls,
//! `raise_exception`, `strftime_now`, `tojson` without HTML escapes, Python's string methods).

mod allocations;
mod builtin;
mod escapes;
mod indent;
mod limits;
mod python;
mod supervise;
#[cfg(test)]
mod tests;
mod tojson;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Rest;
use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, State, Value};

use super::habits::{Habits, OwnTokens};
use allocations::Used;
pub use allocations::{begin_heap_peak, heap_peak, return_large_pieces, trim_heap};
pub use builtin::Builtin;
pub(super) use builtin::Vocabulary;
pub(super) use python::python_float;
use supervise::{Stopped, supervised, supervised_costed};

/// One unit is about one instruction or 64 bytes of text. A conversation of 1,000 turns takes some 50,000; this much
/// ends a template that loops for ever within a second or two. A fuzzer has less of it, and less memory: work that is
/// stopped in this way leaves nothing behind.
const FUEL: u64 = if supervise::FUZZED { 100_000 } else { 5_000_000 };
/// Nested calls cost stack; rows are rendered on worker threads with 2 MiB of it.
const RECURSION_LIMIT: usize = 100;
/// Filters of minijinja whose result differs from Jinja's, each with a note.
const UNLIKE_JINJA: [(&str, &str); 2] = [
    ("attr", "asks for an attribute of a Python object, which a key is not in Jinja: write value['key']"),
    ("pprint", "breaks lines as Python's pprint does, which is not done here: use `tojson`"),
];
const NAME: &str = "chat_template";
/// Maximum bytes of a template: nested expressions take stack in proportion to their length. The largest known has 20
/// kB.
pub(super) const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Maximum bytes of a text that is tokenized: a token and its label take eight bytes, and a text may have as many
/// tokens as bytes.
pub(super) const MAX_TEXT_BYTES: usize = 16 << 20;
/// Maximum characters of a template's own message that are printed.
const TOLD: usize = 2000;
/// Error for conversations that come after the one that took too much.
const GIVEN_UP: &str = "the chat template was given up at another conversation, which takes too much";
/// The filter that stands for `{% generation %}` in the rendering with marks, and the template that uses it.
const MARKED: &str = "generation_marks";

/// A compiled chat template with the special tokens of its tokenizer.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    /// The reason why it is not rendered any more: it once took too much.
    given_up: Arc<OnceLock<String>>,
    variables: Vec<(String, Value)>,
    marked: bool,
    /// Texts that open and close turns, found at the first use.
    habits: OnceLock<Option<Habits>>,
}

/// Values that a template is given beside the turns.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// None: no tools are defined.
    pub tools: Option<Value>,
    /// Further variables.
    pub variables: Vec<(String, Value)>,
}

/// Marks around the text of `{% generation %}` blocks: code points that are no characters.
const MARKS: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source).finish_non_exhaustive()
    }
}

/// The text that `raise_exception` was called with: the template's own refusal, not a fault in it.
#[derive(Debug)]
struct Raised {
    message: String,
    /// Instructions up to that call
    instructions: u64,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Raised {}

/// Work of a rendering.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    instructions: u64,
    memory: Used,
}

impl ChatTemplate {
    /// Compiles a template. `variables` are the special tokens (`bos_token`, …); `now` is the time of `strftime_now`.
    /// Errors: the template's syntax error with its line; a template that is too large.
    pub fn compile(source: &str, variables: Vec<(String, String)>, now: Zoned) -> Result<Self, String> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(format!(
                "the chat template has {} bytes, more than the {} KiB that a template may have",
                source.len(),
                MAX_SOURCE_BYTES >> 10
            ));
        }
        let source: Arc<str> = source.into();
        let text = source.clone();
        let compiled = supervised(move || Self::environment(&text, now));
        let (environment, marked) = compiled.map_err(|stopped| explain_stopped(stopped, "compile"))??;
        let variables = variables.into_iter().map(|(name, token)| (name, Value::from(token))).collect();
        let environment = Arc::new(environment);
        Ok(Self { environment, source, variables, marked, habits: OnceLock::new(), given_up: Arc::default() })
    }

    /// The environment with the compiled template, and whether it has marks.
    fn environment(source: &str, now: Zoned) -> Result<(Environment<'static>, bool), String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(limits::method);
        environment.set_formatter(limits::write_value);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.add_filter("string", limits::string);
        environment.add_filter("trim", limits::trim);
        environment.add_filter("tojson", tojson::tojson);
        environment.add_filter("indent", indent::indent);
        escapes::add(&mut environment, source);
        for (filter, why) in UNLIKE_JINJA {
            environment.add_filter(filter, move |_: Value, _: Rest<Value>| -> Result<Value, JinjaError> {
                Err(JinjaError::new(ErrorKind::InvalidOperation, format!("the filter `{filter}` {why}")))
            });
        }
        // minijinja calls none iterable; templates ask `tools is iterable and tools | length > 0`.
        environment.add_test("iterable", |value: &Value| {
            use minijinja::value::ValueKind::{Iterable, Map, Seq, String, Undefined};
            matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
        });
        environment.add_function("raise_exception", |state: &State, message: String| -> Result<Value, JinjaError> {
            let instructions = state.fuel_levels().map_or(0, |(used, _)| used);
            let raised = Raised { message: message.clone(), instructions };
            Err(JinjaError::new(ErrorKind::InvalidOperation, message).with_source(raised))
        });
        environment.add_function("strftime_now", move |state: &State, format: String| -> Result<String, JinjaError> {
            state.consume_fuel(format.len() as u64)?;
            strtime::format(&format, &now)
                .map_err(|error| JinjaError::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
        });
        environment.add_filter(MARKED, |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        // The engine builds its table of small numbers at the first use. That must happen here: a thread that waits for
        // memory must not hold up others that wait for the table.
        let _ = environment.render_str("{% autoescape true %}{{ 1 }}{% endautoescape %}", ());
        // Jinja reads templates with Python's universal line ends, in string literals too.
        let lines = source.replace("\r\n", "\n").replace('\r', "\n");
        let plain = replace_generation_tags(&lines, ["with", "endwith"]);
        let marked = plain != lines;
        environment
            .add_template_owned(NAME, plain)
            .map_err(|error| format!("the chat template does not compile: {error}"))?;
        if marked {
            let filter = format!("filter {MARKED}");
            environment
                .add_template_owned(MARKED, replace_generation_tags(&lines, [&filter, "endfilter"]))
                .map_err(|error| format!("the chat template does not compile: {error}"))?;
        }
        Ok((environment, marked))
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The reason why it renders nothing any more: a conversation took too much memory, which cannot be freed.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.get().map(String::as_str)
    }

    /// True if the rendered text depends on the day it is rendered on.
    pub fn uses_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// Renders turns (maps with `role` and `content`). Errors: the template's own refusal, a mistake in it, or a
    /// rendering that takes too much work.
    pub fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, String> {
        self.render_in(&Surroundings::default(), messages, add_generation_prompt)
    }

    /// [`render`](Self::render) with tools and further variables.
    pub(super) fn render_in(
        &self,
        around: &Surroundings,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, String> {
        self.render_costed(around, messages, add_generation_prompt).0
    }

    /// [`render_in`](Self::render_in), which also returns its cost: instructions and requests for memory, added up.
    pub(super) fn render_costed(
        &self,
        around: &Surroundings,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> (Result<String, String>, u64) {
        let (text, cost) = self.render_named(NAME, around, messages, add_generation_prompt);
        (text, cost.instructions.saturating_add(cost.memory.requests))
    }

    /// Share that a rendering takes of the counted limit which it comes nearest to. All bytes that it asks for are held
    /// against those of a single value, the smallest limit on memory. Errors: those of [`render`](Self::render).
    pub fn share_of_limits(&self, messages: &[Value], add_generation_prompt: bool) -> Result<f64, String> {
        let (text, cost) = self.render_named(NAME, &Surroundings::default(), messages, add_generation_prompt);
        text?;
        let instructions = cost.instructions as f64 / FUEL as f64;
        let requests = cost.memory.requests as f64 / supervise::MAX_REQUESTS as f64;
        Ok(instructions.max(requests).max(cost.memory.asked as f64 / supervise::MAX_PIECE as f64))
    }

    /// Texts with which the template opens and closes turns. None: it does not render a question and its answer
    /// unchanged.
    pub(super) fn habits(&self, tokens: &OwnTokens) -> Option<&Habits> {
        self.habits.get_or_init(|| Habits::of(|turns, open| self.render(turns, open), tokens)).as_ref()
    }

    /// True if the template marks the assistant's text with `{% generation %}`.
    pub(super) fn has_marks(&self) -> bool {
        self.marked
    }

    /// The rendered text with the byte ranges in it that the template marks as the assistant's. Errors: those of
    /// [`render`](Self::render); marks that are nested, or that the text itself holds.
    pub(super) fn render_marked(
        &self,
        around: &Surroundings,
        messages: &[Value],
    ) -> Result<(String, Vec<Range<usize>>), String> {
        let rendered = self.render_named(MARKED, around, messages, false).0?;
        let (mut text, mut marks, mut open) = (String::with_capacity(rendered.len()), Vec::new(), None);
        let mut rest = rendered.as_str();
        while let Some(at) = rest.find(MARKS) {
            text.push_str(&rest[..at]);
            let mark = rest[at..].chars().next().expect("a mark was found here");
            match (open, mark == MARKS[0]) {
                (None, true) => open = Some(text.len()),
                (Some(start), false) => {
                    marks.push(start..text.len());
                    open = None;
                }
                _ => return Err("the chat template's `generation` blocks do not pair".into()),
            }
            rest = &rest[at + mark.len_utf8()..];
        }
        text.push_str(rest);
        Ok((text, marks))
    }

    fn render_named(
        &self,
        name: &'static str,
        around: &Surroundings,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> (Result<String, String>, Cost) {
        if self.given_up.get().is_some() {
            return (Err(GIVEN_UP.to_owned()), Cost::default());
        }
        let fixed = [
            ("messages".to_owned(), Value::from(messages)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("tools".to_owned(), around.tools.clone().unwrap_or_else(|| Value::from(()))),
            ("documents".to_owned(), Value::from(())),
        ];
        let variables = self.variables.iter().chain(&around.variables).cloned();
        let context = Value::from_pairs(variables.chain(fixed));
        let environment = self.environment.clone();
        let rendered = supervised_costed(move || {
            let rendered = environment.get_template(name).and_then(|template| template.render_captured(context));
            match rendered {
                Ok(rendered) => {
                    let instructions = rendered.state().fuel_levels().map_or(0, |(used, _)| used);
                    (short_enough(rendered.into_output()), instructions)
                }
                Err(error) => (Err(explain(&error)), cost_of(&error)),
            }
        });
        match rendered {
            Ok(((text, instructions), memory)) => (text, Cost { instructions, memory }),
            Err(stopped) => {
                let why = explain_stopped(stopped, "render one conversation");
                // The work that was given up still goes on, or holds its memory.
                if !matches!(stopped, Stopped::Crowded | Stopped::Panic | Stopped::NoThread) {
                    let _ = self.given_up.set(why.clone());
                }
                (Err(why), Cost { instructions: FUEL, ..Cost::default() })
            }
        }
    }
}

/// Approximate instructions before an error; exact where the template itself refuses the conversation.
fn cost_of(error: &JinjaError) -> u64 {
    match raised(error) {
        Some(raised) => raised.instructions,
        None if error.kind() == ErrorKind::OutOfFuel => FUEL,
        None => FUEL / 10,
    }
}

/// Refuses text that is too long: texts of several conversations exist at the same time.
fn short_enough(text: String) -> Result<String, String> {
    match text.len() {
        bytes if bytes > MAX_TEXT_BYTES => Err(format!(
            "the chat template makes {bytes} bytes of text of the conversation, more than the {} MiB that are tokenized at \
             once; split it",
            MAX_TEXT_BYTES >> 20
        )),
        _ => Ok(text),
    }
}

fn explain_stopped(stopped: Stopped, work: &str) -> String {
    match stopped {
        Stopped::Time => {
            format!(
                "the chat template takes too long: after {} s of processor time to {work} it was stopped by the clock, \
                 though it is within the limits that are counted",
                supervise::MAX_SECONDS
            )
        }
        Stopped::Memory => {
            format!("the chat template takes too much memory: more than {} MiB to {work}", supervise::MAX_BYTES >> 20)
        }
        Stopped::Piece => format!(
            "the chat template takes too much memory: more than {} MiB for a single text or list, to {work}",
            supervise::MAX_PIECE >> 20
        ),
        Stopped::Asked => format!(
            "the chat template takes too much work: more than {} MiB of texts and lists, one after another, to {work}",
            supervise::MAX_ASKED >> 20
        ),
        Stopped::Requests => format!(
            "the chat template takes too much work: memory for more than {} million values to {work}",
            supervise::MAX_REQUESTS / 1_000_000
        ),
        Stopped::Stack => format!(
            "the chat template takes too much memory: more than {} MiB of stack to {work}, for values that are nested too \
             deeply or hold themselves",
            supervise::MAX_STACK >> 20
        ),
        Stopped::Crowded => GIVEN_UP.to_owned(),
        Stopped::Panic => format!("the chat template is broken: its engine fails to {work}"),
        Stopped::NoThread => "the chat template cannot be used: no thread can be started".to_owned(),
    }
}

/// The template's own refusal among the causes of an error.
fn raised(error: &JinjaError) -> Option<&Raised> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(raised) = current.downcast_ref() {
            return Some(raised);
        }
        cause = current.source();
    }
    None
}

fn explain(error: &JinjaError) -> String {
    if let Some(raised) = raised(error) {
        return format!("the chat template refuses the conversation: {}", told(&raised.message));
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return "the chat template does not end: it took more than 5 million instructions for one conversation".into();
    }
    format!("the chat template fails: {}", told(&error.to_string()))
}

/// The beginning of a text that may be of any length.
fn told(text: &str) -> String {
    match text.char_indices().nth(TOLD) {
        Some((end, _)) => format!("{} … ({} bytes more)", &text[..end], text.len() - end),
        None => text.to_owned(),
    }
}

/// `{% generation %}` is a tag of transformers' own that marks what the assistant says. It becomes a block of another
/// kind that renders the same text with the same white space.
fn replace_generation_tags(source: &str, [open_with, close_with]: [&str; 2]) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        out.push_str(&rest[..open]);
        let tag = &rest[open..];
        // Behind the opening mark: `{%}` opens a tag and does not close it.
        let Some(close) = tag[2..].find("%}").map(|at| at + 2) else {
            out.push_str(tag);
            return out;
        };
        let inner = &tag[2..close];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag[..close + 2].replace("generation", open_with)),
            "endgeneration" => out.push_str(&tag[..close + 2].replace("endgeneration", close_with)),
            _ => out.push_str(&tag[..close + 2]),
        }
        rest = &tag[close + 2..];
    }
    out.push_str(rest);
    out
}
