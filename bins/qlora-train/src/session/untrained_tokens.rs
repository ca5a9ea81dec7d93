//! Tokens that the chat template writes and the base never learned: base models reserve rows of the embedding for the
//! marks of their instruct versions.

use super::Loaded;
use crate::adapter::tokens_of_adapter;
use crate::base::Checkpoint;
use crate::data::{ChatTokenizer, Row};
use crate::error::Result;
use crate::lora::LoraSpec;
use crate::report::warning;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Rows of which no value is larger were never trained: bf16 holds much smaller ones.
const ZERO: f32 = 1e-16;
/// Tokens that are named at most, and ids in what would train them.
const NAMED: usize = 6;
const IDS: usize = 24;

/// Warns of marks in `rows` whose embedding, or whose row of the output layer, is zero or that of another mark, and is
/// not among what `trained` has.
pub fn warn_of_untrained_tokens<'a>(
    loaded: &Loaded,
    trained: &LoraSpec,
    rows: impl IntoIterator<Item = &'a Row>,
) -> Result<()> {
    warn_of_untrained(loaded, trained, rows.into_iter().flat_map(|row| row.input_ids.iter().copied()))
}

/// Warns as [`warn_of_untrained_tokens`] does, of the token ids of rows.
pub fn warn_of_untrained(loaded: &Loaded, trained: &LoraSpec, ids: impl IntoIterator<Item = u32>) -> Result<()> {
    // Rows of token ids need no tokenizer, and nothing names their marks.
    let Some(tokenizer) = loaded.tokenizer() else { return Ok(()) };
    warn_of_untrained_ids(&loaded.checkpoint, tokenizer, trained, ids)
}

/// The rows of tokens that all of these adapters hold, and nothing else of them.
pub fn rows_of_adapters(adapters: &[PathBuf]) -> LoraSpec {
    match adapters {
        [one] => LoraSpec { tokens: tokens_of_adapter(one), ..LoraSpec::default() },
        _ => LoraSpec::default(),
    }
}

/// Warns as [`warn_of_untrained`] does, with a tokenizer from elsewhere.
pub fn warn_of_untrained_ids(
    checkpoint: &Checkpoint,
    tokenizer: &ChatTokenizer,
    trained: &LoraSpec,
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
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if trained.whole.contains(module) {
            continue;
        }
        let Some(rows) = checkpoint.read_rows_f32(name, &marks)? else { continue };
        let learned = |id: &u32| trained.tokens.get(module).is_some_and(|tokens| tokens.contains(id));
        let found = untrained(&marks, &rows).into_iter().filter(|(id, _)| used.contains(id) && !learned(id));
        let (ids, why): (Vec<u32>, Vec<Untrained>) = found.unzip();
        let untrained: Vec<String> = ids
            .iter()
            .zip(why)
            .map(|(&id, why)| match why {
                Untrained::Zero => format!("{:?} (zero)", tokenizer.token(id)),
                Untrained::Equals(other) => format!("{:?} (that of {:?})", tokenizer.token(id), tokenizer.token(other)),
            })
            .collect();
        if untrained.is_empty() {
            continue;
        }
        let more = untrained.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let first = ids.iter().take(IDS).map(u32::to_string).collect::<Vec<_>>().join(", ");
        let rest = if ids.len() > IDS { ", …" } else { "" };
        warning!(
            "the base never learned tokens that the rows hold: their rows of `{name}` are zero or equal to another's: \
             {}{more}; adapters of linear layers do not train them: use the instruct version of the base, a \
             chat_template whose marks it knows, or train their rows too (`trainable_token_indices: [{first}{rest}]`{})",
            untrained[..untrained.len().min(NAMED)].join(", "),
            if head.is_some() { ", in an object with a list for embed_tokens and one for lm_head" } else { "" }
        );
    }
    Ok(())
}

/// The reason why a row counts as untrained.
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
