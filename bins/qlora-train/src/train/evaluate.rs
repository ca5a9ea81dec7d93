//! Loss over a data set.

use crate::backend::{Backend, Batch};
use crate::data::{MicroBatch, Row};
use crate::error::{Error, Result};
use crate::model::Llama;

/// What `eval` reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean over supervised tokens, nats.
    pub loss: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

impl Evaluation {
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Rows side by side in batches of at most `capacity` tokens. A row alone may be longer.
pub fn batches(rows: &[Row], capacity: usize) -> Vec<MicroBatch> {
    let mut batches = Vec::new();
    let mut start = 0;
    while start < rows.len() {
        let mut end = start + 1;
        let mut tokens = rows[start].len();
        while end < rows.len() && tokens + rows[end].len() <= capacity {
            tokens += rows[end].len();
            end += 1;
        }
        batches.push(MicroBatch::new(&rows[start..end]));
        start = end;
    }
    batches
}

/// The mean loss of the supervised tokens; `progress` is called after each batch with its rows. Failed: it is not
/// finite.
pub fn evaluate<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    rows: &[Row],
    capacity: usize,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation> {
    let mut go_on = |rows| {
        progress(rows);
        true
    };
    Ok(evaluate_while(backend, model, rows, capacity, &mut go_on)?.expect("it was not stopped"))
}

/// [`evaluate`] that ends without a result when `go_on`, called after each batch with its rows, says so.
pub fn evaluate_while<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    rows: &[Row],
    capacity: usize,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Evaluation>> {
    let (mut loss, mut tokens) = (0.0, 0);
    for batch in batches(rows, capacity) {
        loss += model.loss(backend, &Batch::from(&batch))?;
        tokens += batch.supervised;
        if !go_on(batch.rows()) {
            return Ok(None);
        }
    }
    let loss = loss / tokens.max(1) as f64;
    if !loss.is_finite() {
        return Err(Error::Failed(format!(
            "the loss is {loss}, expected a finite one: the adapter or the base diverged"
        )));
    }
    Ok(Some(Evaluation { loss, tokens }))
}

impl<'a> From<&'a MicroBatch> for Batch<'a> {
    fn from(batch: &'a MicroBatch) -> Self {
        Batch {
            input_ids: &batch.input_ids,
            positions: &batch.positions,
            boundaries: &batch.cu_seqlens,
            targets: &batch.targets,
        }
    }
}
