//! Loss over rows that name their adapters: a batch may mix rows of several.

use super::adapters::Adapters;
use super::evaluate::{Evaluation, Part, Sum, batches, finite_loss, parts_of_files};
use crate::backend::{Backend, Batch};
use crate::data::Rows;
use crate::error::Result;
use crate::model::Llama;
use crate::objective::{Objective, Sft};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Name of the part of rows that name no adapter
const BASE: &str = "base";

/// The mean loss of the supervised tokens by their weights, over all of `rows`, by file of `files`, and by adapter. A
/// row's task is the name of its adapter. `go_on` is called after each batch with its number of rows. Refused: a row
/// that names no adapter of `adapters`. Failed: the loss is not finite.
pub fn evaluate_by_row<B: Backend>(
    backend: &mut B,
    model: &Llama<B>,
    rows: &Rows,
    files: &[PathBuf],
    adapters: &Adapters,
    capacity: usize,
    go_on: &mut dyn FnMut(usize),
) -> Result<(Evaluation, Vec<Part>)> {
    let adapter_of = (0..rows.len()).map(|row| adapters.number(rows.task(row))).collect::<Result<Vec<i32>>>()?;
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut whole = Sum::default();
    let (mut of_files, mut of_adapters): (BTreeMap<usize, Sum>, BTreeMap<i32, Sum>) = Default::default();
    for numbers in batches(rows, &all, capacity) {
        let micro_batch = Sft.micro_batch_of(rows, numbers)?;
        let repeated = |&row: &usize| std::iter::repeat_n(adapter_of[row], rows.tokens(row));
        let of_tokens: Vec<i32> = numbers.iter().flat_map(repeated).collect();
        let batch = Batch { adapters: Some(&of_tokens), ..micro_batch.batch() };
        let mut losses = model.losses(backend, &batch)?.into_iter();
        for (&row, bounds) in numbers.iter().zip(batch.boundaries.windows(2)) {
            let mut sum = Sum::default();
            for token in bounds[0] as usize..bounds[1] as usize {
                let weight = batch.weights.map_or(1.0, |weights| weights[token]);
                if batch.targets[token] >= 0 && weight != 0.0 {
                    let loss = losses.next().expect("a loss of each token that counts");
                    sum.add(Sum { loss, weight: weight.into(), tokens: 1 });
                }
            }
            whole.add(sum);
            of_files.entry(rows.file(row)).or_default().add(sum);
            of_adapters.entry(adapter_of[row]).or_default().add(sum);
        }
        go_on(numbers.len());
    }
    let name = |number: i32| usize::try_from(number).map_or_else(|_| BASE.to_owned(), |index| adapters.name(index));
    let parts = of_adapters.into_iter().map(|(number, sum)| sum.part(name(number))).collect();
    let files = parts_of_files(of_files, files);
    Ok((Evaluation { loss: finite_loss(whole)?, tokens: whole.tokens, files, tasks: Vec::new() }, parts))
}
