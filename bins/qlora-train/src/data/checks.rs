//! Common faults of the special tokens of rows, counted over those that are trained on.

use std::fmt;

use super::UNSUPERVISED;
use super::row::Row;
use super::tokenizer::ChatTokenizer;

/// The tokens that begin and end what a model reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// None where rows need none.
    pub bos: Option<u32>,
    /// EOS tokens.
    pub eos: Vec<u32>,
    /// Tokens that end a turn or a text, EOS tokens among them.
    pub ends: Vec<u32>,
    /// All tokens that the tokenizer has for itself.
    pub added: Vec<u32>,
}

impl SpecialTokens {
    /// `eos_token_ids` are the model's own, which tokenized rows without a tokenizer are checked by.
    pub fn new(tokenizer: Option<&ChatTokenizer>, eos_token_ids: &[u32]) -> Self {
        let mut eos = eos_token_ids.to_vec();
        eos.extend(tokenizer.and_then(ChatTokenizer::eos_token_id).filter(|id| !eos_token_ids.contains(id)));
        let mut ends = eos.clone();
        let added = tokenizer.map(ChatTokenizer::added_token_ids).unwrap_or_default();
        if let Some(tokenizer) = tokenizer.filter(|tokenizer| tokenizer.template().is_some()) {
            let known = tokenizer.turn_end_ids();
            // A template with unknown habits may end a turn with any of them.
            ends.extend(if known.is_empty() { &added } else { &known });
        }
        let bos = tokenizer.filter(|tokenizer| tokenizer.begins_with_bos()).and_then(ChatTokenizer::bos_token_id);
        Self { bos, eos, ends, added }
    }
}

/// Rows, by what they lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    pub rows: usize,
    /// Rows should begin with a BOS.
    pub expects_bos: bool,
    pub without_bos: usize,
    pub double_bos: usize,
    /// The last supervised token ends no turn: the model does not learn to stop there. Cut rows are such.
    pub without_end: usize,
    /// An EOS right behind a supervised token has the label −100.
    pub masked_eos: usize,
}

impl Checks {
    pub fn of(rows: &[Row], special: &SpecialTokens) -> Self {
        let mut checks = Self { rows: rows.len(), expects_bos: special.bos.is_some(), ..Self::default() };
        for row in rows {
            if let Some(bos) = special.bos {
                checks.without_bos += usize::from(row.input_ids.first() != Some(&bos));
                checks.double_bos += usize::from(row.input_ids.starts_with(&[bos, bos]));
            }
            let last = row.labels.iter().rposition(|&label| label != UNSUPERVISED);
            let ends = last.is_some_and(|last| special.ends.contains(&row.input_ids[last]));
            checks.without_end += usize::from(!ends);
            let masked = |at: usize| {
                special.eos.contains(&row.input_ids[at])
                    && row.labels[at] == UNSUPERVISED
                    && row.labels[at - 1] != UNSUPERVISED
            };
            checks.masked_eos += usize::from((1..row.len()).any(masked));
        }
        checks
    }
}

/// One check a line.
impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let rows = self.rows;
        let all = |one: &str, many: &str| match rows {
            1 => format!("the row {one}"),
            rows => format!("all {rows} rows {many}"),
        };
        let some = |some: usize, one: &str, many: &str| match (some, rows) {
            (_, 1) => format!("the row {one}"),
            (some, rows) => format!("{some} of {rows} rows {}", if some == 1 { one } else { many }),
        };
        match (self.expects_bos, self.without_bos) {
            (false, _) => writeln!(f, "BOS: the tokenizer puts none before text")?,
            (true, 0) => writeln!(f, "BOS: {}", all("begins with one", "begin with one"))?,
            (true, without) => {
                let which = some(without, "does not begin with one", "do not begin with one");
                writeln!(f, "warning: BOS: {which}")?;
            }
        }
        if self.double_bos > 0 {
            writeln!(f, "warning: BOS: {}", some(self.double_bos, "begins with two", "begin with two"))?;
        }
        if self.masked_eos > 0 {
            let which = some(self.masked_eos, "has it", "have it");
            writeln!(f, "warning: EOS: {which} masked behind supervised tokens")?;
        }
        match self.without_end {
            0 => write!(f, "end: in {}the last supervised token ends a turn or the text", all("", "")),
            without => write!(
                f,
                "warning: end: in {}the last supervised token ends neither a turn nor the text, so the model does not learn \
                 to stop there",
                some(without, "", "")
            ),
        }
    }
}
