//! Loads data files into tokenized rows, and splits them into training and validation rows.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::UNSUPERVISED;
use super::budget::size;
use super::chat::ChatTokens;
use super::csv;
use super::cut_turns::cut_turns;
use super::formats::{self, AlpacaStyle, Content};
use super::messages::{Conversation, Message};
use super::notes::Note;
use super::options::{DataOptions, RowIdentity};
use super::reader::{Unit, at, read_rows};
use super::report::{DatasetReport, FileReport, RowPlace};
use super::row::Row;
use super::row_kind::RowKind;
use super::row_list::{Sink, parts};
use super::rows;
use super::split::held_out;
use super::template::Builtin;
use super::tokenizer::ChatTokenizer;
use super::unused;
use crate::bail_usage;
use crate::config::{BadRow, PromptCompletion, TooLong};
use crate::error::{Error, Result};
use crate::files::units::format_bytes;
use crate::report::count as count_of;

/// Rows are tokenized in parallel, this many at a time.
const CHUNK: usize = 512;
/// Fewer, where they are long.
const CHUNK_BYTES: u64 = 16 << 20;
/// Divisor of the memory limit for rows that are being tokenized: text and tokens take some twenty times their bytes
/// meanwhile.
const CHUNK_PART: u64 = 64;
/// Copies of a row while it is read, at least: its line, its values, its text and the rendered text.
const ROW_COPIES: u64 = 4;
/// Bytes of a row above which the free memory is checked before it is read.
const LONG_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Dataset<R = Vec<Row>> {
    /// SHA-256 (hex) of each file
    pub hashes: Vec<String>,
    /// In the order of the files; every one has at least one supervised token and at most `max_length` tokens.
    pub rows: R,
    pub report: DatasetReport,
}

/// A function that opens the tokenizer, called at the first row that needs one.
pub type OpenTokenizer<'a> = dyn Fn() -> Result<&'a ChatTokenizer> + 'a;

/// Reads, checks and tokenizes all rows of all files.
///
/// Errors (all of them refusals that name the file, and the line where one is at fault): a file that cannot be read;
/// a row that is broken, of no known format or of two; a token id outside the vocabulary; two BOS tokens at the start
/// of a row; an EOS whose label is masked behind supervised tokens; what the chat template refuses; a row that is too
/// long, under `error`; no supervised token in any row.
pub fn load(paths: &[PathBuf], tokenizer: Option<&ChatTokenizer>, options: &DataOptions) -> Result<Dataset> {
    in_memory(load_into(Sink::Memory(Vec::new()), paths, tokenizer, None, options)?)
}

/// [`load`] with a tokenizer that is opened only if a row needs one. Every file is read once, so that it may be a pipe.
pub fn load_once(paths: &[PathBuf], open: &OpenTokenizer, options: &DataOptions) -> Result<Dataset> {
    in_memory(load_into(Sink::Memory(Vec::new()), paths, None, Some(open), options)?)
}

fn in_memory((dataset, _): (Dataset<Sink>, Option<&ChatTokenizer>)) -> Result<Dataset> {
    let Dataset { hashes, rows, report } = dataset;
    match rows {
        Sink::Memory(rows) => Ok(Dataset { hashes, rows, report }),
        Sink::File(_) => Err(Error::Failed("rows were written to a file instead of memory".to_owned())),
    }
}

/// [`load`] and [`load_once`] with the rows written to `sink`; also returns the tokenizer if a row needed it.
pub(super) fn load_into<'a>(
    sink: Sink,
    paths: &[PathBuf],
    tokenizer: Option<&'a ChatTokenizer>,
    open: Option<&OpenTokenizer<'a>>,
    options: &DataOptions,
) -> Result<(Dataset<Sink>, Option<&'a ChatTokenizer>)> {
    if paths.is_empty() {
        bail_usage!("no data file was given");
    }
    if options.max_length < 2 {
        bail_usage!(
            "max_length is {}; expected at least 2, a token and the one to predict after it",
            options.max_length
        );
    }
    let mut loader = Loader {
        tokenizer,
        options,
        rows: sink,
        report: DatasetReport::default(),
        waiting: vec![],
        waiting_bytes: 0,
        held_bytes: 0,
        tasks: BTreeSet::new(),
        seen: HashSet::new(),
        prompt_texts: false,
        asked_otherwise: false,
    };
    loader.report.max_length = options.max_length;
    let hashes = paths.iter().map(|path| loader.file(path, open)).collect::<Result<Vec<_>>>()?;
    let Loader { rows, mut report, tasks, tokenizer, prompt_texts, asked_otherwise, .. } = loader;
    report.tasks = tasks.len();
    report.check_bad_rows()?;
    let files = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    if report.rows_read == 0 {
        bail_usage!("{files}: no row found; expected at least one");
    }
    if report.rows_kept == 0 {
        bail_usage!("{files}: {}", no_row_is_left(&report));
    }
    if report.truncated > 0 && options.too_long == TooLong::Proportional {
        report.remarks.push(
            "long rows are shortened in the prompt and the answer of each turn, in proportion \
             (`too_long: proportional`, as LLaMA-Factory cuts)"
                .to_owned(),
        );
    }
    if asked_otherwise {
        report.warnings.extend(tokenizer.and_then(ChatTokenizer::template_warning));
    }
    if let Some(tokenizer) = tokenizer.filter(|tokenizer| prompt_texts && tokenizer.template().is_some()) {
        report.remarks.push(match by_template(options.prompt_completion, tokenizer) {
            false => "prompt + completion rows of texts are read as plain text, without the chat template \
                 (`prompt_completion: chat` uses it); `generate` with the adapter asks in that form"
                .to_owned(),
            true => "prompt + completion rows of texts are read as a user turn and an answer, by the chat template \
                 (`prompt_completion: text` does without); `generate` asks in that form"
                .to_owned(),
        });
    }
    Ok((Dataset { rows, report, hashes }, tokenizer))
}

/// True if a prompt and its completion are turns of the chat template.
fn by_template(setting: PromptCompletion, tokenizer: &ChatTokenizer) -> bool {
    match setting {
        PromptCompletion::Auto => tokenizer.template().is_some(),
        PromptCompletion::Text => false,
        PromptCompletion::Chat => true,
    }
}

/// The reason why a row is refused, with the texts that a CSV table reads as null.
fn of_table(path: &Path, unit: Unit, why: String) -> String {
    match unit == Unit::Row && csv::delimiter(path).is_some() && why.contains("` is null") {
        true => format!(
            "{why}; in CSV an empty cell is null, and so are `None`, `null`, `NA`, `NaN` and their like, as pandas reads \
             them: give rows that mean such a word as JSON Lines"
        ),
        false => why,
    }
}

struct Loader<'a, 'o> {
    tokenizer: Option<&'a ChatTokenizer>,
    options: &'o DataOptions,
    rows: Sink,
    report: DatasetReport,
    /// Rows read and not tokenized yet.
    waiting: Vec<(usize, RowKind, Value)>,
    waiting_bytes: u64,
    /// Memory of the rows so far
    held_bytes: u64,
    /// The names of tasks so far, each kept once.
    tasks: BTreeSet<Arc<str>>,
    /// The rows so far, if repeated rows are left out.
    seen: HashSet<RowIdentity>,
    /// A prompt and its completion were texts.
    prompt_texts: bool,
    /// An answer follows another text than the one that ends the prompt of `generate`.
    asked_otherwise: bool,
}

/// One row as it was read.
struct Read {
    input_ids: Vec<u32>,
    labels: Vec<i32>,
    weights: Vec<f32>,
    /// An answer in it has no end-of-turn token.
    open_ended: bool,
    /// An answer in it follows another text than the one that ends a prompt.
    asked_otherwise: bool,
    task: Option<String>,
    notes: Vec<Note>,
}

impl<'a> Loader<'a, '_> {
    /// Returns the file's SHA-256.
    fn file(&mut self, path: &Path, open: Option<&OpenTokenizer<'a>>) -> Result<String> {
        let file = self.report.files.len();
        self.report.files.push(FileReport::new(path));
        let options = self.options;
        let (most, meant) = (options.most_of(file), options.rows_of(file));
        let mut numbers = 0..u64::MAX;
        let hash = read_rows(path, &options.columns, &mut |unit, line, row| {
            let is_meant = numbers.next().is_some_and(|number| meant.contains(&number));
            if !is_meant || self.report.files[file].rows >= most {
                return Ok(());
            }
            self.report.files[file].unit = unit;
            let mut replaced = Vec::new();
            let row = row.and_then(|row| options.columns.renamed(row, &mut replaced));
            let known = row.and_then(|row| {
                let kind = rows::detect(&row, options.columns.meant())?;
                options.columns.check(kind)?;
                rows::check_values(&row, kind)?;
                Ok((kind, row))
            });
            match known {
                Ok((kind, row)) => {
                    self.report.files[file].count(kind);
                    for note in replaced.iter().filter_map(|of| unused::replaced(of, kind, &row)) {
                        self.report.files[file].notes.add(note, line);
                    }
                    let is_of_turns = row.as_object().is_some_and(formats::is_of_turns);
                    self.prompt_texts |= kind == RowKind::PromptCompletion && !is_of_turns;
                    if let (None, Some(open), false) = (self.tokenizer, open, kind == RowKind::Tokenized) {
                        self.tokenizer = Some(open()?);
                    }
                    let bytes = size(&row);
                    let left = options.memory.saturating_sub(self.held_bytes);
                    if bytes > LONG_BYTES && bytes.saturating_mul(ROW_COPIES) > left {
                        bail_usage!(
                            "{}: {} {line}: a row of {}, which takes more to be read than is left of the {} of memory that \
                             may be used: split it, or raise host_memory if more is free",
                            path.display(),
                            unit.name(),
                            format_bytes(bytes),
                            format_bytes(options.memory)
                        );
                    }
                    self.waiting_bytes += bytes;
                    self.waiting.push((line, kind, row));
                }
                Err(why) => self.bad(path, file, line, &of_table(path, unit, why))?,
            }
            let most_bytes = CHUNK_BYTES.min(options.memory / CHUNK_PART);
            let full = self.waiting.len() == CHUNK || self.waiting_bytes > most_bytes;
            if full { self.tokenize(path, file) } else { Ok(()) }
        })?;
        if self.report.files[file].rows == 0 && self.report.bad_rows.is_empty() {
            bail_usage!("{}: no row found; expected at least one", path.display());
        }
        self.tokenize(path, file)?;
        Ok(hash)
    }

    fn tokenize(&mut self, path: &Path, file: usize) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let this = &*self;
        let named = |why| this.options.columns.in_their_words(why);
        let done: Vec<(usize, Result<Read, String>)> =
            waiting.into_par_iter().map(|(line, kind, row)| (line, this.row(&row, kind).map_err(named))).collect();
        let unit = self.report.files[file].unit;
        if let Some(why) = self.tokenizer.and_then(ChatTokenizer::given_up) {
            // Nothing can be rendered any more, so reading stops, whatever `on_bad_row` says.
            let ending = |with: &str| done.iter().find(|(_, row)| row.as_ref().is_err_and(|why| why.ends_with(with)));
            let line = ending(why).or_else(|| ending("")).or(done.last()).map_or(0, |(line, _)| *line);
            return Err(at(path, unit, line, why));
        }
        for (line, result) in done {
            let read = match result {
                Ok(read) => read,
                Err(why) => {
                    self.bad(path, file, line, &why)?;
                    continue;
                }
            };
            let Read { input_ids, labels, weights, open_ended, asked_otherwise, task, notes } = read;
            self.asked_otherwise |= asked_otherwise;
            let task = task.map(|name| self.task(name));
            notes.into_iter().for_each(|note| self.report.files[file].notes.add(note, line));
            self.keep(path, unit, Row { input_ids, labels, weights, file, line, task }, open_ended)?;
        }
        Ok(())
    }

    /// A row that cannot be trained on.
    fn bad(&mut self, path: &Path, file: usize, line: usize, why: &str) -> Result<()> {
        let error = at(path, self.report.files[file].unit, line, why);
        match self.options.on_bad_row {
            BadRow::Error => Err(error),
            BadRow::Skip => {
                self.report.skip_bad(error.to_string());
                Ok(())
            }
        }
    }

    fn task(&mut self, name: String) -> Arc<str> {
        match self.tasks.get(name.as_str()) {
            Some(task) => task.clone(),
            None => {
                let task: Arc<str> = name.into();
                self.tasks.insert(task.clone());
                task
            }
        }
    }

    fn row(&self, row: &Value, kind: RowKind) -> Result<Read, String> {
        let map = row.as_object().ok_or("expected a row (a JSON object)")?;
        let task_key = self.options.task_key();
        let task = rows::task(map, task_key)?;
        rows::check_no_table(map, kind)?;
        let mut notes = Vec::new();
        rows::check_keys(map, kind, &self.options.columns, task_key, &mut notes)?;
        let weight = formats::row_weight(map, kind)?;
        let (mut open_ended, mut asked_otherwise) = (false, false);
        let (input_ids, mut labels, mut weights) = match (kind, self.tokenizer) {
            (RowKind::Tokenized, _) => {
                let (input_ids, labels, weights) = rows::tokenized(map, self.options.vocab_size)?;
                self.check_eos(&input_ids, &labels)?;
                (input_ids, labels, weights)
            }
            (_, None) => return Err(format!("{} rows need the model's tokenizer", kind.name())),
            (_, Some(tokenizer)) => {
                let tokens = self.text(map, kind, tokenizer, &mut notes)?;
                notes.extend(tokens.notes);
                (open_ended, asked_otherwise) = (tokens.open_ended > 0, tokens.asked_otherwise);
                (tokens.input_ids, tokens.labels, tokens.weights)
            }
        };
        if let (Some(bos), [first, second, ..]) = (self.tokenizer.and_then(ChatTokenizer::bos_token_id), &input_ids[..])
            && *first == bos
            && *second == bos
        {
            return Err("the row begins with two BOS tokens; remove one (from the text or the chat template)".into());
        }
        if let Some(tokenizer) = self.tokenizer.filter(|tokenizer| tokenizer.begins_with_bos())
            && kind != RowKind::Tokenized
            && input_ids.first().copied() != tokenizer.bos_token_id()
        {
            notes.push(Note::Said(format!(
                "the text begins without the BOS token ({:?}), which this tokenizer puts before every text: the chat \
                 template does not write it",
                tokenizer.bos_token_id().map(|id| tokenizer.token(id)).unwrap_or_default()
            )));
        }
        if weight == 0.0 {
            labels.fill(UNSUPERVISED);
        } else if weight != 1.0 {
            weights.resize(labels.len(), 1.0);
            weights.iter_mut().for_each(|of_token| *of_token *= weight);
        }
        let unsupervised = weights.iter_mut().zip(&labels).filter(|(_, label)| **label == UNSUPERVISED);
        unsupervised.for_each(|(of_token, _)| *of_token = 1.0);
        if weights.iter().all(|&of_token| of_token == 1.0) {
            weights = Vec::new();
        }
        Ok(Read { input_ids, labels, weights, open_ended, asked_otherwise, task, notes })
    }

    fn text(
        &self,
        map: &Map<String, Value>,
        kind: RowKind,
        tokenizer: &ChatTokenizer,
        notes: &mut Vec<Note>,
    ) -> Result<ChatTokens, String> {
        let style = match tokenizer.builtin_template() {
            Some(Builtin::Alpaca) => AlpacaStyle::Headings,
            _ => AlpacaStyle::Plain,
        };
        let content = formats::content(map, kind, style, notes)?;
        let is_chat = kind == RowKind::PromptCompletion && by_template(self.options.prompt_completion, tokenizer);
        if let Content::Text { tools, .. } = &content
            && !is_chat
        {
            formats::no_tools(tools, kind)?;
        }
        let tokens = match content {
            Content::Conversation(conversation) => tokenizer.encode_conversation(&conversation)?,
            Content::Text { system, history, prompt, completion, tools, variables } if is_chat => {
                let system = if system.trim().is_empty() { "" } else { &system };
                let mut messages = formats::after_system(system, history)?;
                messages.extend([Message::new("user", &prompt), Message::new("assistant", &completion)]);
                notes.extend(formats::calls_as_text(&tools, &completion));
                tokenizer.encode_conversation(&Conversation { messages, tools, variables })?
            }
            Content::Text { system, history, .. } if !system.trim().is_empty() || !history.is_empty() => {
                let key = if history.is_empty() { "system" } else { "history" };
                return Err(format!(
                    "`{key}` has no place in a prompt that is read as plain text; put it into the prompt, or have the chat \
                     template write it (`prompt_completion: chat`)"
                ));
            }
            Content::Text { prompt, completion, .. } => tokenizer.encode_completion(&prompt, &completion)?,
        };
        if let Some(id) = tokens.input_ids.iter().find(|&&id| id as usize >= self.options.vocab_size) {
            return Err(format!(
                "the tokenizer gives the token {id} ({:?}), the model has a vocabulary of {}; is it the tokenizer of \
                 this model?",
                tokenizer.token(*id),
                self.options.vocab_size
            ));
        }
        Ok(tokens)
    }

    /// Labels made by masking the pad token lose the EOS with it where both are the same token, and the model never
    /// learns to stop.
    fn check_eos(&self, input_ids: &[u32], labels: &[i32]) -> Result<(), String> {
        let own = self.tokenizer.and_then(ChatTokenizer::eos_token_id);
        let is_eos = |id: u32| own == Some(id) || self.options.eos_token_ids.contains(&id);
        let masked = (1..input_ids.len())
            .find(|&at| is_eos(input_ids[at]) && labels[at] == UNSUPERVISED && labels[at - 1] != UNSUPERVISED);
        match masked {
            None => Ok(()),
            Some(at) => Err(format!(
                "`labels[{at}]` is -100 for the EOS (token {}) that ends a supervised text, so the model would not learn \
                 to stop; give it its own id as label (it is often lost where pad and EOS are the same token)",
                input_ids[at]
            )),
        }
    }

    fn keep(&mut self, path: &Path, unit: Unit, mut row: Row, open_ended: bool) -> Result<()> {
        let report = &mut self.report;
        let max_length = self.options.max_length;
        report.rows_read += 1;
        report.lengths.add(row.len());
        report.longest_read = report.longest_read.max(row.len());
        if row.len() > max_length {
            match self.options.too_long {
                TooLong::Drop => {
                    report.dropped += 1;
                    return Ok(());
                }
                TooLong::Truncate | TooLong::Proportional => {
                    report.truncated += 1;
                    if self.options.too_long == TooLong::Proportional {
                        cut_turns(&mut row, max_length);
                    }
                    row.input_ids.truncate(max_length);
                    row.labels.truncate(max_length);
                    row.weights.truncate(max_length);
                    // Most of the memory of a long row is that of the part that was cut off.
                    row.input_ids.shrink_to_fit();
                    row.labels.shrink_to_fit();
                    row.weights.shrink_to_fit();
                }
                TooLong::Chunk if row.supervised() + 1 == row.len() => {
                    report.chunked += 1;
                    let mut pieces = row.pieces(max_length).peekable();
                    while let Some(piece) = pieces.next() {
                        self.report.pieces += 1;
                        // A text ends once.
                        self.keep_fitting(path, unit, piece, open_ended && pieces.peek().is_none())?;
                    }
                    return Ok(());
                }
                TooLong::Chunk => {
                    report.dropped += 1;
                    return Ok(());
                }
                TooLong::Error => {
                    let why = format!(
                        "{} tokens, longer than max_length {max_length}; raise it, or choose drop or truncate",
                        row.len()
                    );
                    return Err(at(path, unit, row.line, &why));
                }
            }
        }
        self.keep_fitting(path, unit, row, open_ended)
    }

    /// A row of at most `max_length` tokens.
    fn keep_fitting(&mut self, path: &Path, unit: Unit, row: Row, open_ended: bool) -> Result<()> {
        let report = &mut self.report;
        let supervised = row.supervised();
        if supervised == 0 {
            report.skip_unsupervised(RowPlace { file: row.file, line: row.line });
            return Ok(());
        }
        if self.options.deduplicate {
            let identity = row.identity();
            if self.options.known_rows.contains(&identity) || !self.seen.insert(identity) {
                report.duplicates += 1;
                return Ok(());
            }
        }
        report.open_ended += usize::from(open_ended);
        report.weighted += usize::from(!row.weights.is_empty());
        report.rows_kept += 1;
        report.tokens += row.len();
        report.supervised_tokens += supervised;
        report.longest = report.longest.max(row.len());
        self.held_bytes += self.rows.bytes(&row);
        if self.held_bytes > self.options.memory {
            bail_usage!(
                "{}: {} {}: the {} rows up to here take the {} of memory that may be used: give fewer (max_samples), shorter \
                 ones (max_length), or raise host_memory if more is free",
                path.display(),
                unit.name(),
                row.line,
                self.rows.len() + 1,
                format_bytes(self.options.memory)
            );
        }
        self.rows.push(row)
    }
}

/// The reason why every row was left out.
fn no_row_is_left(report: &DatasetReport) -> String {
    let some = |rows: usize, one: &str, many: &str, what: &str| {
        (rows > 0).then(|| format!("{rows} {} {what}", if rows == 1 { one } else { many }))
    };
    let reasons = [
        some(report.dropped, "is", "are", &format!("longer than max_length {}", report.max_length)),
        some(
            report.unsupervised,
            "has",
            "have",
            "no supervised token (labels that are not -100, assistant turns, completions or texts)",
        ),
        some(report.duplicates, "is", "are", "there before (deduplicate)"),
    ];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    format!("no row is left: of {}, {}", count_of(report.rows_read as u64, "row"), reasons.join(" and "))
}

impl Dataset {
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(Row::len).collect()
    }

    /// Takes rows at random out for validation: a share of them if below 1 (rounded up), otherwise that many. Both
    /// parts keep the order of the files. The same seed gives the same parts. Returns (training, validation) rows.
    pub fn split(self, val_set_size: f64, seed: u64) -> Result<(Vec<Row>, Vec<Row>)> {
        let is_validation = held_out(self.rows.len(), val_set_size, seed)?;
        Ok(parts(self.rows, &is_validation))
    }
}

/// The tokens of a row as the vocabulary spells them, each with whether it is predicted.
pub fn describe(row: &Row, tokenizer: Option<&ChatTokenizer>) -> Vec<(String, bool)> {
    let tokens = row.input_ids.iter().zip(&row.labels).enumerate();
    tokens
        .map(|(at, (&id, &label))| {
            (tokenizer.map_or_else(|| format!("<{id}>"), |t| t.token(id)), at > 0 && label != UNSUPERVISED)
        })
        .collect()
}
