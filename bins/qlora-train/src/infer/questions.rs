//! Questions to the model during training: the user's prompts, and validation rows up to their last answers.

use super::answers::{Question, Score, Scores};
use super::prompt::Form;
use super::stop::{Stop, StopWatch};
use crate::arch::Arch;
use crate::backend::Backend;
use crate::bail_usage;
use crate::config::{BadRow, SamplePrompt, SamplePrompts, Settings, TooLong};
use crate::data::{self, ChatTokenizer, DataOptions, Row, Rows};
use crate::error::{Context, Result};
use crate::files::hash::hex;
use crate::files::json::read_bounded;
use crate::model::generate::{Sampling, generate_in};
use crate::model::{Llama, Prompts};
use crate::report::status;
use crate::session::Loaded;
use crate::session::training_data::data_options;
use qlora_kernels::rope::RopeScaling;
use regex::Regex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Maximum number of the user's prompts: each is answered at every evaluation, and every answer is logged.
const MOST_PROMPTS: usize = 256;
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Endings of files that hold rows; other files hold one prompt per line.
const OF_ROWS: [&str; 7] = ["jsonl", "json", "parquet", "csv", "arrow", "gz", "zst"];
/// Characters of a prompt that are shown; the question is at its end.
const SHOWN: usize = 1000;

/// A question, and the answer that is expected, if it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub ids: Vec<u32>,
    /// The prompt as it is shown
    pub prompt: String,
    pub reference: Option<String>,
}

/// All questions of a run, the user's prompts first; empty if there are none.
#[derive(Debug, Default)]
pub struct Questions {
    pub all: Vec<Asked>,
    /// Prompts of the user's, which come first
    pub of_user: usize,
    stop: Stop,
    max_new_tokens: usize,
    pattern: Option<Regex>,
}

/// An answer, and its score against the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub text: String,
    pub score: Option<Score>,
}

impl Questions {
    /// The questions of the settings, with these validation rows. Refused: a file that holds no prompts, rows without
    /// an answer, and prompts that leave no room for one.
    pub fn load(settings: &Settings, loaded: &Loaded, validation: &Rows) -> Result<Self> {
        if settings.sample_prompts == SamplePrompts::None && settings.eval_answers == 0 {
            return Ok(Self::default());
        }
        let tokenizer = loaded.open_tokenizer()?;
        let arch = loaded.checkpoint.arch();
        let pattern = settings.answer_match.as_deref().map(Regex::new).transpose();
        let pattern = pattern.usage_context(|| "`answer_match`".to_owned())?;
        let mut all = user_prompts(settings, loaded, tokenizer)?;
        if all.len() > MOST_PROMPTS {
            bail_usage!(
                "`sample_prompts`: found {} prompts, expected at most {MOST_PROMPTS}: all are answered at each evaluation",
                all.len()
            );
        }
        let of_user = all.len();
        let mut of_rows = 0;
        for row in validation.iter() {
            if of_rows == settings.eval_answers {
                break;
            }
            let row = row?;
            if let Some(question) = Question::of(&row, tokenizer)? {
                all.push(of_row(question, tokenizer)?);
                of_rows += 1;
            }
        }
        if settings.eval_answers > 0 && of_rows == 0 {
            bail_usage!(
                "`eval_answers`: no validation row has an answer with something before it: conversations have, and prompts \
                 with completions"
            );
        }
        let judged = settings.metric_for_best_model;
        let with_reference = || all.iter().filter_map(|asked| asked.reference.as_deref());
        if judged.is_of_answers() && with_reference().next().is_none() {
            bail_usage!(
                "`metric_for_best_model`: found {}, but no prompt of `sample_prompts` has a reference to compare with; give \
                 rows with answers, or `eval_answers`",
                judged.name()
            );
        }
        if let Some(pattern) = pattern.as_ref().filter(|pattern| !with_reference().any(|text| pattern.is_match(text))) {
            bail_usage!("`answer_match`: {:?} is found in no reference, expected it in some", pattern.as_str());
        }
        let stop = Stop::of_model(loaded.checkpoint.dir(), arch, tokenizer, tokenizer.template().is_some())?;
        if let Some(note) = stop.note() {
            status!("{note}");
        }
        let questions = Self { all, of_user, stop, max_new_tokens: settings.eval_max_new_tokens, pattern };
        check_lengths(&questions.prompts(), arch)?;
        Ok(questions)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Sizes, for the plan.
    pub fn prompts(&self) -> Prompts {
        Prompts { lengths: self.all.iter().map(|asked| asked.ids.len()).collect(), max_new_tokens: self.max_new_tokens }
    }

    /// SHA-256 (hex) over the questions and the expected answers.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for Asked { ids, reference, .. } in &self.all {
            hash.update(format!("{ids:?} {reference:?}\n"));
        }
        hash.update(format!("{:?}", self.stop.tokens));
        self.stop.texts().for_each(|text| hash.update(format!("{text:?}")));
        hex(hash.finalize())
    }

    /// The greedy answers to the questions, in order. `go_on` is called with each new token; once it returns false,
    /// there is no result. Memory that earlier operations kept is freed before and after.
    pub fn answer<B: Backend>(
        &self,
        backend: &mut B,
        model: &Llama<B>,
        tokenizer: &ChatTokenizer,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Answered>>> {
        let (planned, capacity) = (self.prompts(), backend.capacity());
        let mut answers = Vec::with_capacity(self.all.len());
        for group in planned.groups(capacity) {
            // Each group begins with the same memory, so that the plan of the largest covers all.
            backend.trim();
            let mut cache = model.cache_of(backend, planned.cache_rows(capacity))?;
            let prompts: Vec<Vec<u32>> = self.all[group.clone()].iter().map(|asked| asked.ids.clone()).collect();
            let mut stopped = false;
            let mut watch = StopWatch::new(&self.stop, tokenizer, prompts.len());
            let mut token = |answer, id| {
                stopped |= !go_on(answers.len());
                Ok(!stopped && watch.go_on(answer, id)?)
            };
            let (new, stop) = (self.max_new_tokens, &self.stop.tokens);
            let said = generate_in(backend, model, &mut cache, &prompts, new, stop, &Sampling::GREEDY, &mut token)?;
            if stopped {
                return Ok(None);
            }
            for (asked, ids) in self.all[group].iter().zip(said) {
                let whole = tokenizer.decode(&ids, true)?;
                let text = watch.cut(&whole).trim().to_owned();
                let score = asked.reference.as_ref().map(|wanted| Score::of(&text, wanted, self.pattern.as_ref()));
                answers.push(Answered { text, score });
            }
        }
        backend.trim();
        Ok(Some(answers))
    }
}

/// Means over the answers that have references; none where none has.
pub fn scores(answers: &[Answered]) -> Option<Scores> {
    let scores: Vec<Score> = answers.iter().filter_map(|answered| answered.score).collect();
    (!scores.is_empty()).then(|| Scores::of(&scores))
}

fn check_lengths(prompts: &Prompts, arch: &Arch) -> Result<()> {
    let (longest, positions) = (prompts.longest(), arch.max_position_embeddings);
    if longest > positions {
        bail_usage!(
            "a prompt that is answered while the run trains and `eval_max_new_tokens` together reach {longest} tokens, the \
             model has {positions} positions: lower `eval_max_new_tokens`, or ask for less"
        );
    }
    Ok(())
}

/// Refuses answers that are longer than the rows of a run if the model rotates positions differently for longer rows:
/// they would change the training.
pub fn check_positions(prompts: &Prompts, arch: &Arch, longest_row: usize) -> Result<()> {
    for rope in arch.ropes() {
        if let RopeScaling::LongRope { original_max_position_embeddings: original, .. } = rope.scaling
            && longest_row <= original
            && prompts.longest() > original
        {
            bail_usage!(
                "a prompt that is answered while the run trains and `eval_max_new_tokens` together reach {} tokens; beyond \
                 {original} the model computes its positions in another way (longrope), which would change what is trained: \
                 lower `eval_max_new_tokens`, or ask for less",
                prompts.longest()
            );
        }
    }
    Ok(())
}

/// The end of a long text, where the question is.
fn shown(text: &str) -> String {
    match text.char_indices().rev().nth(SHOWN) {
        Some((start, _)) => format!("… {}", &text[start..]),
        None => text.to_owned(),
    }
}

fn of_row(question: Question, tokenizer: &ChatTokenizer) -> Result<Asked> {
    let prompt = shown(&tokenizer.decode(&question.prompt, false)?);
    Ok(Asked { ids: question.prompt, prompt, reference: Some(question.reference) })
}

/// The prompts of `sample_prompts`.
fn user_prompts(settings: &Settings, loaded: &Loaded, tokenizer: &ChatTokenizer) -> Result<Vec<Asked>> {
    let what = |path: &Path| format!("`sample_prompts`: {}", path.display());
    let prompts = match &settings.sample_prompts {
        SamplePrompts::None => Vec::new(),
        SamplePrompts::Listed(prompts) => prompts.clone(),
        SamplePrompts::File(path) => {
            if !path.exists() {
                bail_usage!(
                    "{}: found no such file, expected prompts, one a line, or rows; a prompt itself is given in YAML, as a \
                     list: `sample_prompts: [\"...\"]`",
                    what(path)
                );
            }
            match prompts_of_file(path).context(|| "`sample_prompts`".to_owned())? {
                Some(prompts) => prompts,
                None => return rows_of_file(path, settings, loaded, tokenizer),
            }
        }
    };
    let form = Form::of_rows(settings.prompt_completion, tokenizer);
    let asked = |SamplePrompt { prompt, reference }: SamplePrompt| {
        let ids = form.encode(&prompt, None, tokenizer).context(|| "`sample_prompts`".to_owned())?;
        Ok(Asked { ids, prompt: shown(&prompt), reference })
    };
    prompts.into_iter().map(asked).collect()
}

/// Prompts, one a line, or of JSON Lines the text under `prompt`, with that under `reference`; none for a file of rows.
fn prompts_of_file(path: &Path) -> Result<Option<Vec<SamplePrompt>>> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    let is_rows = OF_ROWS.contains(&extension.as_str());
    if is_rows && extension != "jsonl" {
        return Ok(None);
    }
    let shown = path.display();
    let text = String::from_utf8(read_bounded(path, MAX_FILE_BYTES)?);
    let text = text.usage_context(|| format!("{shown}: not a text"))?;
    let mut prompts = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let prompt = match is_rows {
            false => SamplePrompt { prompt: line.trim().to_owned(), reference: None },
            true => match of_line(line).usage_context(|| format!("{shown}, line {}", at + 1))? {
                Some(prompt) => prompt,
                None if prompts.is_empty() => return Ok(None),
                None => bail_usage!(
                    "{shown}, line {}: found no `prompt` alone or with `reference`, expected one, as in the lines before",
                    at + 1
                ),
            },
        };
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        bail_usage!("{shown}: found no prompt, expected one a line");
    }
    Ok(Some(prompts))
}

/// A row that is a prompt, alone or with a reference.
fn of_line(line: &str) -> serde_json::Result<Option<SamplePrompt>> {
    let row: Value = serde_json::from_str(line)?;
    let text = |key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let is_alone = row
        .as_object()
        .is_some_and(|row| row.keys().all(|key| ["prompt", "reference", "task", "id"].contains(&key.as_str())));
    let prompt = text("prompt").filter(|prompt| is_alone && !prompt.trim().is_empty());
    Ok(prompt.map(|prompt| SamplePrompt { prompt, reference: text("reference") }))
}

/// Rows that could be trained on, up to their last answers.
fn rows_of_file(path: &Path, settings: &Settings, loaded: &Loaded, tokenizer: &ChatTokenizer) -> Result<Vec<Asked>> {
    let options = DataOptions {
        too_long: TooLong::Error,
        on_bad_row: BadRow::Error,
        max_samples: None,
        deduplicate: false,
        ..data_options(settings, loaded)
    };
    let paths = [path.to_owned()];
    let rows = data::load_once(&paths, &|| loaded.open_tokenizer(), &options);
    let rows = rows.context(|| "`sample_prompts`".to_owned())?;
    if rows.report.unsupervised > 0 {
        bail_usage!(
            "`sample_prompts`: {}: found {} rows without an answer that is learned, expected an answer in each, or a \
             `prompt` alone",
            path.display(),
            rows.report.unsupervised
        );
    }
    let asked = |row: &Row| match Question::of(row, tokenizer)? {
        Some(question) => of_row(question, tokenizer),
        None => bail_usage!(
            "`sample_prompts`: {}: row {} is learned from its beginning, expected a question before its answer",
            path.display(),
            row.line
        ),
    };
    rows.rows.iter().map(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::LayerArch;
    use crate::base::synthetic::tiny_arch;

    /// The model's rotation changes for rows longer than the original context, for all their positions.
    #[test]
    fn answers_that_would_turn_the_positions_of_rows_in_another_way_are_refused() {
        let arch = tiny_arch();
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0; arch.head_dim / 2].into(),
            long_factor: vec![2.0; arch.head_dim / 2].into(),
            attention_factor: 1.0,
            original_max_position_embeddings: 64,
        };
        let layers = LayerArch::uniform(crate::arch::Rope { scaling, ..arch.rope() });
        let long = Arch { layers, ..tiny_arch() };
        let asked = |length, max_new_tokens| Prompts { lengths: vec![3, length], max_new_tokens };
        let error = check_positions(&asked(40, 25), &long, 50).unwrap_err().to_string();
        for part in ["reach 65 tokens", "beyond 64", "longrope", "eval_max_new_tokens"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        check_positions(&asked(40, 24), &long, 64).unwrap();
        check_positions(&asked(40, 25), &long, 65).unwrap();
        check_positions(&asked(40, 25), &arch, 50).unwrap();
    }
}
