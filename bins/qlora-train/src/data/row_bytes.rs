//! A row as bytes: rows of equal tokens, labels and weights have equal bytes, and others have others.
//!
//! Token ids, then a bit for each that says whether it is learned; where a label is another id than its token, all
//! labels in place of the bits; then weights, where there are some. Numbers have four bytes, little-endian.

use super::UNSUPERVISED;
use super::labeled::LabeledIds;
use super::row::Row;
use crate::files::xxh64::xxh64;

/// Layout of the bytes of a row after its token ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RowForm {
    /// Labels in place of bits.
    labels: bool,
    weights: bool,
}

impl RowForm {
    fn of(row: &Row) -> Self {
        let is_bit = |(&id, &label): (&u32, &i32)| label == UNSUPERVISED || label == id as i32;
        let labels = !row.input_ids.iter().zip(&row.labels).all(is_bit);
        Self { labels, weights: !row.weights.is_empty() }
    }

    pub fn to_byte(self) -> u8 {
        u8::from(self.labels) | (u8::from(self.weights) << 1)
    }

    /// None: no form has this byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        (byte < 4).then_some(Self { labels: byte & 1 != 0, weights: byte & 2 != 0 })
    }

    /// Bytes of a row of `tokens` tokens.
    pub fn size(self, tokens: u32) -> u64 {
        let tokens = u64::from(tokens);
        let numbers = 1 + u64::from(self.labels) + u64::from(self.weights);
        let bits = if self.labels { 0 } else { tokens.div_ceil(8) };
        4 * tokens * numbers + bits
    }
}

/// Replaces the content of `bytes` by the bytes of a row.
pub(super) fn encode(row: &Row, bytes: &mut Vec<u8>) -> RowForm {
    let form = RowForm::of(row);
    bytes.clear();
    row.input_ids.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    if form.labels {
        row.labels.iter().for_each(|label| bytes.extend(label.to_le_bytes()));
    } else {
        let bit = |(at, label): (usize, &i32)| u8::from(*label != UNSUPERVISED) << at;
        let byte = |labels: &[i32]| labels.iter().enumerate().map(bit).sum::<u8>();
        bytes.extend(row.labels.chunks(8).map(byte));
    }
    row.weights.iter().for_each(|weight| bytes.extend(weight.to_le_bytes()));
    form
}

/// The row of `tokens` tokens in these [`RowForm::size`] bytes.
pub(super) fn decode(form: RowForm, tokens: u32, bytes: &[u8]) -> LabeledIds {
    let (ids, rest) = bytes.split_at(4 * tokens as usize);
    let (learned, weights) = rest.split_at(rest.len() - if form.weights { ids.len() } else { 0 });
    let ids: Vec<u32> = numbers(ids).map(u32::from_le_bytes).collect();
    let labels = match form.labels {
        true => numbers(learned).map(i32::from_le_bytes).collect(),
        false => {
            let is_learned = |at: usize| (learned[at / 8] >> (at % 8)) & 1 != 0;
            let label = |(at, &id): (usize, &u32)| if is_learned(at) { id as i32 } else { UNSUPERVISED };
            ids.iter().enumerate().map(label).collect()
        }
    };
    let weights = numbers(weights).map(f32::from_le_bytes).collect();
    (ids, labels, weights)
}

/// True if these bytes are those of a row that can be trained on: ids and labels of the vocabulary, `supervised` tokens
/// that are predicted, at least one, and weights that are numbers. A hash alone only detects damage.
pub(super) fn is_row(form: RowForm, tokens: u32, supervised: u32, bytes: &[u8], vocab_size: usize) -> bool {
    let Some((ids, rest)) = bytes.split_at_checked(4 * tokens as usize) else { return false };
    let end = rest.len().checked_sub(if form.weights { ids.len() } else { 0 });
    let Some((learned, weights)) = end.and_then(|end| rest.split_at_checked(end)) else { return false };
    let is_token = |id: u32| (id as usize) < vocab_size;
    let is_label = |label: i32| label == UNSUPERVISED || u32::try_from(label).is_ok_and(is_token);
    // The first token is never predicted.
    let (are_labels, predicted) = match form.labels {
        true => {
            let labels = || numbers(learned).map(i32::from_le_bytes);
            (labels().all(is_label), labels().skip(1).filter(|&label| label != UNSUPERVISED).count())
        }
        false => {
            let bits: usize = learned.iter().map(|byte| byte.count_ones() as usize).sum();
            // Bits after the last token belong to no token.
            let behind = match tokens % 8 {
                0 => 0,
                own => learned.last().map_or(0, |last| last >> own),
            };
            (behind == 0, bits - usize::from(learned.first().is_some_and(|first| first & 1 != 0)))
        }
    };
    let is_weight = |weight: f32| weight.is_finite() && weight >= 0.0;
    // A loop without an early exit checks several ids at once.
    let largest = numbers(ids).map(u32::from_le_bytes).fold(0, u32::max);
    are_labels
        && predicted == supervised as usize
        && predicted > 0
        && is_token(largest)
        && numbers(weights).map(f32::from_le_bytes).all(is_weight)
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.as_chunks::<4>().0.iter().copied()
}

/// A hash of a row's bytes, to compare rows and detect damage.
pub(super) fn hash(form: RowForm, bytes: &[u8]) -> u64 {
    xxh64(u64::from(form.to_byte()), bytes)
}

/// [`hash`] of a row.
pub(super) fn row_hash(row: &Row) -> u64 {
    let mut bytes = Vec::new();
    let form = encode(row, &mut bytes);
    hash(form, &bytes)
}

#[cfg(test)]
mod tests;
