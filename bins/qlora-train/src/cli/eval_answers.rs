//! `qlora-train eval --answers`: answers of base and adapters, beside those of the rows.

use super::answer::Answer;
use crate::backend::Backend;
use crate::bail_usage;
use crate::config::Settings;
use crate::data::{ChatTokenizer, Rows};
use crate::error::{Context, Result};
use crate::infer::answers::{Question, Score, Scores, by_task};
use crate::infer::stop::{Stop, StopWatch};
use crate::infer::{Adapters, InferenceJob, InferenceModel};
use crate::model::ModelSpec;
use crate::model::generate::{Sampling, generate_by_row};
use crate::report::{Bars, count, printable, printable_text, status};
use crate::session::{Device, DeviceJob, Loaded};
use clap::Args;
use regex::Regex;
use serde_json::{Value, json};

/// Questions that are answered side by side
const AT_ONCE: usize = 8;
/// Characters of an answer in the printed table
const SHOWN: usize = 200;

#[derive(Args)]
pub struct AnswersArgs {
    /// Generate answers to the rows instead of measuring their loss, and compare them with the rows' last answers:
    /// exact match, contained, and ROUGE-L, also for each task
    #[arg(long)]
    answers: bool,
    /// Regular expression whose last match (its first group, if it has one) must be the same in both answers, such as
    /// '#### (-?[0-9.,]+)'
    #[arg(long = "match", value_name = "REGEX", requires = "answers")]
    pattern: Option<String>,
    /// Answer only the first N rows
    #[arg(long, value_name = "ROWS", requires = "answers", value_parser = clap::value_parser!(u32).range(1..))]
    first: Option<u32>,
    /// Maximum number of tokens in an answer
    #[arg(long, default_value_t = 128, requires = "answers", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_new_tokens: u32,
    /// Number of rows whose answers are printed beside those of the data
    #[arg(long, default_value_t = 3, requires = "answers")]
    show: u32,
}

impl AnswersArgs {
    pub fn is_asked(&self) -> bool {
        self.answers
    }

    /// The pattern. Refused: a text that is no regular expression.
    pub fn pattern(&self) -> Result<Option<Regex>> {
        let compile = |pattern: &String| Regex::new(pattern).usage_context(|| format!("--match {pattern:?}"));
        self.pattern.as_ref().map(compile).transpose()
    }
}

/// Answers the rows with each adapter, or with the one that each row names, and with the base alone if it is asked for
/// or there is no adapter.
pub fn run(
    args: &AnswersArgs,
    settings: Settings,
    adapters: Adapters,
    loaded: Loaded,
    rows: &Rows,
    with_base: bool,
    device: Device,
) -> Result<Answer> {
    let pattern = args.pattern()?;
    let tokenizer = loaded.open_tokenizer()?;
    let mut questions = Vec::new();
    let most = args.first.map_or(usize::MAX, |first| first as usize);
    for row in rows.iter() {
        let row = row?;
        questions.extend(Question::of(&row, tokenizer)?);
        if questions.len() == most {
            break;
        }
    }
    if questions.is_empty() {
        bail_usage!(
            "no row has an answer with something before it: --answers needs conversations, or prompts with completions"
        );
    }
    let asked = questions.len();
    if asked < rows.len() && asked < most {
        status!("{} of {} rows have an answer with something before it", asked, rows.len());
    }
    if let Some(pattern) = &pattern
        && !questions.iter().any(|question| pattern.is_match(&question.reference))
    {
        bail_usage!("--match {:?}: found in no answer of the rows, expected it in some", pattern.as_str());
    }
    let number = |question: &Question| adapters.number(question.task.as_deref());
    let numbers: Vec<i32> = match adapters.is_by_row() {
        true => questions.iter().map(number).collect::<Result<_>>()?,
        false => Vec::new(),
    };
    let max_new_tokens = args.max_new_tokens as usize;
    let longest = questions.iter().map(|question| question.prompt.len()).max().unwrap_or(0) + max_new_tokens;
    let positions = loaded.checkpoint.arch().max_position_embeddings;
    if longest > positions {
        bail_usage!(
            "a prompt and --max-new-tokens together reach {longest} tokens, the model has {positions} positions: lower \
             --max-new-tokens, or --max-length with --too-long drop"
        );
    }
    let chat = tokenizer.template().is_some();
    let stop = Stop::of_model(loaded.checkpoint.dir(), loaded.checkpoint.arch(), tokenizer, chat)?;
    if let Some(note) = stop.note() {
        status!("{note}");
    }
    let (show, show_base) = (args.show as usize, with_base || adapters.is_empty());
    let job = AnswerRows {
        settings,
        adapters,
        questions,
        numbers,
        pattern,
        stop,
        max_new_tokens,
        longest,
        show,
        show_base,
        device: device.clone(),
        loaded,
    };
    device.run(job)
}

struct AnswerRows {
    settings: Settings,
    adapters: Adapters,
    loaded: Loaded,
    questions: Vec<Question>,
    /// Number of each question's adapter, where each row names its own; otherwise empty.
    numbers: Vec<i32>,
    pattern: Option<Regex>,
    stop: Stop,
    max_new_tokens: usize,
    /// Tokens of the longest prompt with its answer
    longest: usize,
    show: usize,
    /// The base alone answers too.
    show_base: bool,
    device: Device,
}

/// The answers of one model, with their scores.
struct Answered {
    name: String,
    texts: Vec<String>,
    scores: Vec<Score>,
}

impl DeviceJob for AnswerRows {
    type Output = Answer;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Answer> {
        let checkpoint = &self.loaded.checkpoint;
        let tokenizer = self.loaded.open_tokenizer()?;
        // The plan is for a batch of the longest questions.
        let mut lengths: Vec<usize> = self.questions.iter().map(|question| question.prompt.len()).collect();
        lengths.sort_unstable_by(|one, other| other.cmp(one));
        lengths.truncate(AT_ONCE);
        let tokens = lengths.iter().map(|length| length + self.max_new_tokens).sum();
        let job = InferenceJob::Text { prompts: lengths, max_new_tokens: self.max_new_tokens };
        let adapters = &self.adapters;
        let mut model =
            InferenceModel::load(&self.settings, checkpoint, adapters, job, tokens, self.longest, &self.device, build)?;
        let mut answered = Vec::new();
        let by_row = adapters.is_by_row().then(|| "adapters of the rows".to_owned());
        for (index, name) in adapters.passes().into_iter().flatten().chain(by_row).enumerate() {
            if index > 0 {
                model.activate_adapter(checkpoint, index)?;
            }
            answered.push(self.answer(&mut model, name, &self.numbers, tokenizer)?);
        }
        if self.show_base {
            if !adapters.is_empty() {
                model.remove_adapter(checkpoint)?;
            }
            answered.push(self.answer(&mut model, "base".to_owned(), &[], tokenizer)?);
        }
        Ok(Answer { text: self.text(&answered), json: self.json(&answered, tokenizer)? })
    }
}

impl AnswerRows {
    fn answer<B: Backend>(
        &self,
        model: &mut InferenceModel<B>,
        name: String,
        numbers: &[i32],
        tokenizer: &ChatTokenizer,
    ) -> Result<Answered> {
        let mut bar = Bars::new("answering", self.questions.len() as u64);
        let (mut texts, mut scores) = (Vec::new(), Vec::new());
        for (at, questions) in self.questions.chunks(AT_ONCE).enumerate() {
            let numbers = numbers.chunks(AT_ONCE).nth(at).unwrap_or_default();
            let prompts: Vec<Vec<u32>> = questions.iter().map(|question| question.prompt.clone()).collect();
            let (backend, llama) = (&mut model.backend, &model.model);
            let mut watch = StopWatch::new(&self.stop, tokenizer, prompts.len());
            let mut go_on = |answer, id| watch.go_on(answer, id);
            let (new, tokens) = (self.max_new_tokens, &self.stop.tokens);
            let greedy = &Sampling::GREEDY;
            let answers = generate_by_row(backend, llama, &prompts, numbers, new, tokens, greedy, &mut go_on)?;
            for (question, ids) in questions.iter().zip(answers) {
                let whole = tokenizer.decode(&ids, true)?;
                let text = watch.cut(&whole).trim().to_owned();
                scores.push(Score::of(&text, &question.reference, self.pattern.as_ref()));
                texts.push(text);
            }
            bar.set(texts.len() as u64, String::new());
        }
        bar.finish();
        Ok(Answered { name, texts, scores })
    }

    /// A table of the scores, and the first answers side by side.
    fn text(&self, answered: &[Answered]) -> String {
        let mut head = vec!["", "answers", "exact", "contains"];
        head.extend(self.pattern.as_ref().map(|_| "match"));
        head.push("ROUGE-L");
        let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for one in answered {
            let line = |name: String, scores: &Scores| {
                let mut columns = scores.columns();
                if self.pattern.is_some() && scores.pattern.is_none() {
                    columns.insert(3, "-".to_owned());
                }
                [name].into_iter().chain(columns).collect::<Vec<_>>()
            };
            rows.push(line(printable(&one.name).into_owned(), &Scores::of(&one.scores)));
            let tasks = by_task(&self.questions, &one.scores);
            let kind = if self.adapters.is_by_row() { "adapter" } else { "task" };
            rows.extend(tasks.iter().map(|(task, scores)| line(format!("  {kind} {}", printable(task)), scores)));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let padded = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            });
            cells.collect::<String>().trim_end().to_owned()
        };
        let mut lines: Vec<String> = rows.iter().map(padded).collect();
        for (at, question) in self.questions.iter().enumerate().take(self.show) {
            lines.push(format!("\nanswer {} of {}", at + 1, count(self.questions.len() as u64, "row")));
            lines.push(format!("  expected: {}", cut(&question.reference)));
            lines.extend(answered.iter().map(|one| format!("  {}: {}", printable(&one.name), cut(&one.texts[at]))));
        }
        lines.join("\n")
    }

    fn json(&self, answered: &[Answered], tokenizer: &ChatTokenizer) -> Result<Value> {
        let results: Vec<Value> = answered
            .iter()
            .map(|one| {
                let mut json = Scores::of(&one.scores).to_json();
                json["name"] = one.name.as_str().into();
                let tasks = by_task(&self.questions, &one.scores);
                if !tasks.is_empty() {
                    let task = |(name, scores): &(String, Scores)| {
                        let mut json = scores.to_json();
                        json["name"] = name.as_str().into();
                        json
                    };
                    json["tasks"] = tasks.iter().map(task).collect();
                }
                json
            })
            .collect();
        let mut rows = Vec::new();
        for (at, question) in self.questions.iter().enumerate() {
            // In the order of the results, as two may have one name.
            let said: Vec<Value> =
                answered.iter().map(|one| json!({"name": one.name, "text": one.texts[at]})).collect();
            let prompt = tokenizer.decode(&question.prompt, false)?;
            rows.push(json!({"prompt": prompt, "expected": question.reference, "said": said}));
        }
        Ok(json!({"results": results, "rows": rows}))
    }
}

/// The beginning of a text in one line.
fn cut(text: &str) -> String {
    let line = printable_text(text).into_owned();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}
