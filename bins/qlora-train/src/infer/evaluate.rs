//! Loss over a data set, and over its files and tasks.

use crate::backend::Backend;
use crate::comm::Communicator;
use crate::data::{MAX_TASKS, Rows};
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::objective::{Objective, Sft, total_weight};
use crate::report::printable;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// Result of `eval`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Mean over supervised tokens by their weights, nats.
    pub loss: f64,
    /// Supervised tokens.
    pub tokens: usize,
    /// By file, in their order; empty if all rows come from one.
    pub files: Vec<Part>,
    /// By task, sorted by name; empty where all rows are of one or none, or of more than [`MAX_TASKS`]. Rows without a
    /// task are in no part.
    pub tasks: Vec<Part>,
}

/// Some of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: String,
    /// Mean over supervised tokens by their weights, nats.
    pub loss: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

impl Part {
    pub fn to_json(&self) -> Value {
        let Self { name, loss, tokens } = self;
        json!({"name": name, "loss": loss, "tokens": tokens})
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { name, loss, tokens } = self;
        write!(f, "{}: loss {loss:.4}, {tokens} tokens", printable(name))
    }
}

impl Evaluation {
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// `loss`, `perplexity`, `tokens`, and `files` and `tasks` where there are several.
    pub fn to_json(&self) -> Value {
        let mut json = json!({"loss": self.loss, "perplexity": self.perplexity(), "tokens": self.tokens});
        for (key, parts) in [("files", &self.files), ("tasks", &self.tasks)] {
            if !parts.is_empty() {
                json[key] = parts.iter().map(Part::to_json).collect();
            }
        }
        json
    }
}

/// Losses by name; none where there are no parts.
pub fn losses(parts: &[Part]) -> Option<BTreeMap<String, f64>> {
    (!parts.is_empty()).then(|| parts.iter().map(|part| (part.name.clone(), part.loss)).collect())
}

impl Evaluation {
    /// A line for all rows, and one for each part.
    pub fn lines(&self) -> Vec<String> {
        let (loss, tokens, perplexity) = (self.loss, self.tokens, self.perplexity());
        let whole = format!("loss {loss:.4} per supervised token, perplexity {perplexity:.3}, {tokens} tokens");
        let files = self.files.iter().map(|part| ("", part));
        let parts = files.chain(self.tasks.iter().map(|part| ("task ", part)));
        [whole].into_iter().chain(parts.map(|(kind, part)| format!("  {kind}{part}"))).collect()
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// The `numbers` of rows in batches of at most `capacity` tokens. A single row may be longer.
pub(super) fn batches<'a>(rows: &Rows, numbers: &'a [usize], capacity: usize) -> Vec<&'a [usize]> {
    let mut batches = Vec::new();
    let mut start = 0;
    while start < numbers.len() {
        let mut end = start + 1;
        let mut tokens = rows.tokens(numbers[start]);
        while end < numbers.len() && tokens + rows.tokens(numbers[end]) <= capacity {
            tokens += rows.tokens(numbers[end]);
            end += 1;
        }
        batches.push(&numbers[start..end]);
        start = end;
    }
    batches
}

/// A sum over supervised tokens. The weight of a token is 1 unless its row says otherwise.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    pub loss: f64,
    pub weight: f64,
    pub tokens: usize,
}

impl Sum {
    pub fn add(&mut self, one: Sum) {
        self.loss += one.loss;
        self.weight += one.weight;
        self.tokens += one.tokens;
    }

    fn mean(self) -> f64 {
        if self.tokens > 0 { self.loss / self.weight } else { 0.0 }
    }

    pub fn part(self, name: String) -> Part {
        Part { name, loss: self.mean(), tokens: self.tokens }
    }
}

/// The mean loss. Failed: it is not finite.
pub(super) fn finite_loss(whole: Sum) -> Result<f64> {
    let loss = whole.mean();
    if !loss.is_finite() {
        return Err(Error::Failed(format!(
            "the loss is {loss}, expected a finite one: the adapter or the base diverged"
        )));
    }
    Ok(loss)
}

/// Sums of files by number, under the names of `files`; none where there is one alone.
pub(super) fn parts_of_files(sums: BTreeMap<usize, Sum>, files: &[PathBuf]) -> Vec<Part> {
    let name = |file: usize| files.get(file).map_or_else(|| file.to_string(), |path| path.display().to_string());
    match sums.len() {
        0 | 1 => Vec::new(),
        _ => sums.into_iter().map(|(file, sum)| sum.part(name(file))).collect(),
    }
}

/// The mean loss of the supervised tokens by their weights, over all of `rows`, by file of `files`, and by task. The
/// ranks take the batches in turn, and all have the same result as one process, to the bit. `go_on` is called after
/// each round of batches with their number of rows; if it returns false, there is no result. Failed: the loss is not
/// finite.
pub fn evaluate<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    rows: &Rows,
    files: &[PathBuf],
    capacity: usize,
    comm: &mut dyn Communicator,
    go_on: &mut dyn FnMut(&mut dyn Communicator, usize) -> Result<bool>,
) -> Result<Option<Evaluation>> {
    let tasks: BTreeSet<Option<&str>> = (0..rows.len()).map(|row| rows.task(row)).collect();
    let by_task = tasks.len() > 1 && tasks.iter().flatten().count() <= MAX_TASKS;
    // No batch has rows of two parts.
    let mut groups: BTreeMap<(usize, Option<&str>), Vec<usize>> = BTreeMap::new();
    for row in 0..rows.len() {
        groups.entry((rows.file(row), rows.task(row).filter(|_| by_task))).or_default().push(row);
    }
    let all: Vec<(usize, Option<&str>, &[usize])> = groups
        .iter()
        .flat_map(|(&(file, task), numbers)| {
            batches(rows, numbers, capacity).into_iter().map(move |numbers| (file, task, numbers))
        })
        .collect();
    let (mut losses, mut sums, mut done) = (vec![0.0; all.len()], Vec::with_capacity(all.len()), 0);
    for (index, (_, _, numbers)) in all.iter().enumerate() {
        let batch = Sft.micro_batch_of(rows, numbers)?;
        let weighted = batch.batch();
        if index % comm.world_size() == comm.rank() {
            losses[index] = model.loss(backend, &weighted)?;
        }
        sums.push(Sum { loss: 0.0, weight: total_weight(&[weighted]), tokens: weighted.supervised() });
        done += numbers.len();
        let round_ends = (index + 1) % comm.world_size() == 0 || index + 1 == all.len();
        if round_ends && !go_on(comm, std::mem::take(&mut done))? {
            return Ok(None);
        }
    }
    comm.all_reduce_sum(&mut [], &mut losses)?;
    let mut whole = Sum::default();
    let (mut of_files, mut of_tasks): (BTreeMap<usize, Sum>, BTreeMap<&str, Sum>) = Default::default();
    for (((file, task, _), sum), loss) in all.into_iter().zip(sums).zip(losses) {
        let one = Sum { loss, ..sum };
        whole.add(one);
        of_files.entry(file).or_default().add(one);
        if let Some(task) = task {
            of_tasks.entry(task).or_default().add(one);
        }
    }
    Ok(Some(Evaluation {
        loss: finite_loss(whole)?,
        tokens: whole.tokens,
        files: parts_of_files(of_files, files),
        tasks: of_tasks.into_iter().map(|(task, sum)| sum.part(task.to_owned())).collect(),
    }))
}
