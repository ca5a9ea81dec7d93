//! Tokens that the chat template writes and the base never learned: base models reserve rows of the embedding for the
//! marks of their instruct versions.

use super::Loaded;
use crate::base::Checkpoint;
use crate::data::{ChatTokenizer, Row};
use crate::error::Result;
use crate::report::warning;
use std::collections::{BTreeMap, BTreeSet};

/// Rows of which no value is larger were never trained: bf16 holds much smaller ones.
const ZERO: f32 = 1e-16;
/// Tokens that are named at most.
const NAMED: usize = 6;

/// Warns of marks in `rows` whose embedding, or whose row of the output layer, is zero or that of another mark.
pub fn warn_of_untrained_tokens<'a>(loaded: &Loaded, rows: impl IntoIterator<Item = &'a Row>) -> Result<()> {
    warn_of_untrained(loaded, rows.into_iter().flat_map(|row| row.input_ids.iter().copied()))
}

/// Like [`warn_of_untrained_tokens`], for the token ids of rows.
pub fn warn_of_untrained(loaded: &Loaded, ids: impl IntoIterator<Item = u32>) -> Result<()> {
    // Rows of token ids need no tokenizer, and nothing names their marks.
    let Some(tokenizer) = loaded.tokenizer() else { return Ok(()) };
    warn_of_untrained_ids(&loaded.checkpoint, tokenizer, ids)
}

/// Like [`warn_of_untrained`], with a tokenizer that was opened otherwise.
pub fn warn_of_untrained_ids(
    checkpoint: &Checkpoint,
    tokenizer: &ChatTokenizer,
    ids: impl IntoIterator<Item = u32>,
) -> Result<()> {
    let arch = checkpoint.arch();
    let marks: BTreeSet<u32> =
        tokenizer.added_token_ids().into_iter().filter(|&id| (id as usize) < arch.vocab_size).collect();
    let used: BTreeSet<u32> = ids.into_iter().filter(|id| marks.contains(id)).collect();
    if used.is_empty() {
        return Ok(());
    }
    let head = (!arch.tie_word_embeddings).then_some(arch.names.head);
    let marks: Vec<u32> = marks.into_iter().collect();
    for name in [Some(arch.names.embedding), head].into_iter().flatten() {
        let Some(rows) = checkpoint.read_rows_f32(name, &marks)? else { continue };
        let untrained: Vec<String> = untrained(&marks, &rows)
            .into_iter()
            .filter(|(id, _)| used.contains(id))
            .map(|(id, why)| match why {
                Untrained::Zero => format!("{:?} (zero)", tokenizer.token(id)),
                Untrained::Equals(other) => format!("{:?} (that of {:?})", tokenizer.token(id), tokenizer.token(other)),
            })
            .collect();
        if untrained.is_empty() {
            continue;
        }
        let more = untrained.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        warning!(
            "the base never learned tokens that the rows hold: their rows of `{name}` are zero or equal to another's: \
             {}{more}; adapters of linear layers do not train them: use the instruct version of the base, or a \
             chat_template whose marks it knows",
            untrained[..untrained.len().min(NAMED)].join(", ")
        );
    }
    Ok(())
}

/// Why a row counts as untrained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untrained {
    Zero,
    /// Another token has the same row.
    Equals(u32),
}

/// Those of `ids` whose rows are zero or equal to another's.
fn untrained(ids: &[u32], rows: &[Vec<f32>]) -> Vec<(u32, Untrained)> {
    let bits = |row: &Vec<f32>| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let mut of_row: BTreeMap<Vec<u32>, Vec<u32>> = BTreeMap::new();
    for (&id, row) in ids.iter().zip(rows) {
        of_row.entry(bits(row)).or_default().push(id);
    }
    let judge = |(&id, row): (&u32, &Vec<f32>)| {
        if row.iter().all(|value| value.abs() <= ZERO) {
            return Some((id, Untrained::Zero));
        }
        let other = of_row[&bits(row)].iter().find(|&&other| other != id)?;
        Some((id, Untrained::Equals(*other)))
    };
    ids.iter().zip(rows).filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_rows_and_rows_of_another_are_untrained() {
        let rows = [vec![0.5, 1.0], vec![0.0, -0.0], vec![0.5, 1.0], vec![0.5, -1.0], vec![1e-30, 0.0]];
        let found = untrained(&[3, 5, 7, 9, 11], &rows);
        assert_eq!(
            found,
            [(3, Untrained::Equals(7)), (5, Untrained::Zero), (7, Untrained::Equals(3)), (11, Untrained::Zero)]
        );
    }
}
