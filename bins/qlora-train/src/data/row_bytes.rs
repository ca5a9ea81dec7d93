//! A row as bytes: rows of equal tokens, labels and weights have equal bytes, and others have others.
//!
//! Token ids, then a bit for each that says whether it is learned; where a label is another id than its token, all
//! labels in place of the bits; then weights, where there are some. Numbers are of four bytes, little-endian.

use std::hash::{DefaultHasher, Hasher};

use super::UNSUPERVISED;
use super::labeled::LabeledIds;
use super::row::Row;

/// Contents of the bytes of a row behind its token ids.
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

    /// Bytes of a row of so many tokens.
    pub fn size(self, tokens: u32) -> u64 {
        let tokens = u64::from(tokens);
        let numbers = 1 + u64::from(self.labels) + u64::from(self.weights);
        let bits = if self.labels { 0 } else { tokens.div_ceil(8) };
        4 * tokens * numbers + bits
    }
}

/// Puts the bytes of a row in place of what `bytes` holds.
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

/// The row of `tokens` tokens that these bytes are of, [`RowForm::size`] of them.
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

fn numbers(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.chunks_exact(4).map(|number| [number[0], number[1], number[2], number[3]])
}

/// A hash of a row's bytes, by which rows are compared and damage is found.
pub(super) fn hash(form: RowForm, bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.write_u8(form.to_byte());
    hasher.finish()
}

/// [`hash`] of a row.
pub(super) fn row_hash(row: &Row) -> u64 {
    let mut bytes = Vec::new();
    let form = encode(row, &mut bytes);
    hash(form, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(labels: &[i32], weights: &[f32]) -> Row {
        let input_ids = (0..labels.len() as u32).map(|at| at * 40_000).collect();
        Row { input_ids, labels: labels.to_vec(), weights: weights.to_vec(), file: 0, line: 1, task: None }
    }

    #[test]
    fn bytes_give_the_row_again_and_other_rows_have_other_bytes() {
        let learned = |count: i32| (0..count).map(|at| if at % 3 == 0 { -100 } else { at * 40_000 }).collect();
        let mut rows: Vec<Row> = (0..20).map(learned).map(|labels: Vec<i32>| row(&labels, &[])).collect();
        rows.push(row(&[-100, 40_000, 7], &[]));
        rows.push(row(&[-100, 40_000, 80_000], &[1.0, 0.5, f32::from_bits(1)]));
        rows.push(row(&[-100, 40_000, 80_000], &[1.0, -0.0, 0.0]));
        rows.push(row(&[-100, 40_000, 80_000], &[1.0, 0.0, 0.0]));
        rows.push(row(&[5, 6], &[2.0, 3.0]));
        let mut seen = std::collections::HashSet::new();
        for row in &rows {
            let mut bytes = vec![9; 3];
            let form = encode(row, &mut bytes);
            assert_eq!(bytes.len() as u64, form.size(row.len() as u32), "{row:?}");
            assert_eq!(RowForm::from_byte(form.to_byte()), Some(form));
            let (ids, labels, weights) = decode(form, row.len() as u32, &bytes);
            assert_eq!((&ids, &labels), (&row.input_ids, &row.labels));
            let bits = |weights: &[f32]| weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&weights), bits(&row.weights));
            assert_eq!(hash(form, &bytes), row_hash(row));
            assert!(seen.insert(row_hash(row)), "{row:?}");
        }
        assert_eq!(RowForm::from_byte(4), None);
    }
}
