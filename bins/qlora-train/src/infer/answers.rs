//! Evaluation by answers: the model continues rows up to their last answer, and its text is compared with that answer.

use crate::data::{ChatTokenizer, MAX_TASKS, Row, UNSUPERVISED};
use crate::error::Result;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;

/// A row as a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Tokens up to the last answer
    pub prompt: Vec<u32>,
    /// The last answer, without special tokens
    pub reference: String,
    pub task: Option<String>,
}

/// Tokens of the last answer of a row; none where it has none, or no more than a BOS before it.
fn last_answer(labels: &[i32]) -> Option<Range<usize>> {
    let is_learned = |label: &i32| *label != UNSUPERVISED;
    let end = labels.iter().rposition(is_learned)? + 1;
    let start = labels[..end].iter().rposition(|label| !is_learned(label)).map_or(0, |before| before + 1);
    (start > 1).then_some(start..end)
}

impl Question {
    /// A row with an answer, and something before it.
    pub fn of(row: &Row, tokenizer: &ChatTokenizer) -> Result<Option<Self>> {
        let Some(answer) = last_answer(&row.labels) else { return Ok(None) };
        let reference = tokenizer.decode(&row.input_ids[answer.clone()], true)?;
        let (prompt, task) = (row.input_ids[..answer.start].to_vec(), row.task.as_deref().map(str::to_owned));
        Ok(Some(Self { prompt, reference: reference.trim().to_owned(), task }))
    }
}

/// Comparison of one answer with its reference: each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Equal but for white space
    pub exact: f64,
    /// The reference is a part of the answer
    pub contains: f64,
    /// Equal by a pattern; none if the reference does not match
    pub pattern: Option<f64>,
    /// F1 of the longest common subsequence of words
    pub rouge_l: f64,
}

/// The text with each run of white space as one blank, and none at the ends.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The last match of a pattern: its first group, or all of it.
fn found<'a>(pattern: &Regex, text: &'a str) -> Option<&'a str> {
    let last = pattern.captures_iter(text).last()?;
    Some(last.get(1).or(last.get(0))?.as_str())
}

impl Score {
    pub fn of(answer: &str, reference: &str, pattern: Option<&Regex>) -> Self {
        let (said, wanted) = (plain(answer), plain(reference));
        let yes = |is: bool| f64::from(u8::from(is));
        let by_pattern =
            pattern.and_then(|pattern| Some(yes(found(pattern, answer) == Some(found(pattern, reference)?))));
        Self {
            exact: yes(said == wanted),
            contains: yes(!wanted.is_empty() && said.contains(&wanted)),
            pattern: by_pattern,
            rouge_l: rouge_l(answer, reference),
        }
    }
}

/// Words as the Python package rouge-score cuts them: runs of ASCII letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// ROUGE-L: F1 of the longest common subsequence of words, without stemming.
pub fn rouge_l(answer: &str, reference: &str) -> f64 {
    let (said, wanted) = (words(answer), words(reference));
    if said.is_empty() || wanted.is_empty() {
        return 0.0;
    }
    // Lengths of the longest common subsequences of the answer so far with each beginning of the reference.
    let mut lengths = vec![0usize; wanted.len() + 1];
    for word in &said {
        let mut diagonal = 0;
        for (at, other) in wanted.iter().enumerate() {
            let above = lengths[at + 1];
            lengths[at + 1] = if word == other { diagonal + 1 } else { above.max(lengths[at]) };
            diagonal = above;
        }
    }
    let common = lengths[wanted.len()] as f64;
    let (precision, recall) = (common / said.len() as f64, common / wanted.len() as f64);
    if common > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

/// Means over some of the answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    pub answers: usize,
    pub exact: f64,
    pub contains: f64,
    pub pattern: Option<f64>,
    pub rouge_l: f64,
}

impl Scores {
    pub fn of(scores: &[Score]) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
            (n > 0).then(|| sum / n as f64)
        };
        let all = |of: fn(&Score) -> f64| mean(&mut scores.iter().map(of)).unwrap_or(0.0);
        Self {
            answers: scores.len(),
            exact: all(|score| score.exact),
            contains: all(|score| score.contains),
            pattern: mean(&mut scores.iter().filter_map(|score| score.pattern)),
            rouge_l: all(|score| score.rouge_l),
        }
    }

    pub fn to_json(&self) -> Value {
        let Self { answers, exact, contains, pattern, rouge_l } = self;
        let mut json = json!({"answers": answers, "exact_match": exact, "contains": contains, "rouge_l": rouge_l});
        if let Some(pattern) = pattern {
            json["match"] = json!(pattern);
        }
        json
    }

    /// Figures of a line of the table.
    pub fn columns(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.1}%", 100.0 * share);
        let pattern = self.pattern.map(percent);
        let mut columns = vec![self.answers.to_string(), percent(self.exact), percent(self.contains)];
        columns.extend(pattern);
        columns.push(format!("{:.4}", self.rouge_l));
        columns
    }
}

/// Means by task, sorted by name; none where all are of one, or of too many.
pub fn by_task(questions: &[Question], scores: &[Score]) -> Vec<(String, Scores)> {
    let mut tasks: BTreeMap<&str, Vec<Score>> = BTreeMap::new();
    for (question, score) in questions.iter().zip(scores) {
        if let Some(task) = &question.task {
            tasks.entry(task).or_default().push(*score);
        }
    }
    if tasks.len() > MAX_TASKS || (tasks.len() < 2 && questions.iter().all(|question| question.task.is_some())) {
        return Vec::new();
    }
    tasks.into_iter().map(|(task, scores)| (task.to_owned(), Scores::of(&scores))).collect()
}

#[cfg(test)]
mod tests;
