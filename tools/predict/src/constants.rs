//! `tools/predict/measured.json`: the constants that were measured, in place of the assumed ones of `cards`.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The file, from the repository's root.
pub const FILE: &str = "tools/predict/measured.json";
/// The file's text when this program was built.
pub const MEASURED: &str = include_str!("../measured.json");

/// A constant of an architecture or a card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredConstant {
    /// An architecture, `sm_86`, or a card, `A6000`
    pub of: String,
    /// Its field in `cards.rs`
    pub constant: String,
    pub value: f64,
    /// The record that it was measured by
    pub source: String,
}

/// The constants of the file's text.
pub fn parse(text: &str) -> Result<Vec<MeasuredConstant>> {
    let all: Vec<MeasuredConstant> = serde_json::from_str(text).context("it is no list of measured constants")?;
    for MeasuredConstant { of, constant, value, .. } in &all {
        ensure!(value.is_finite() && *value > 0.0, "{constant} of {of} is {value}, expected a number above 0");
    }
    Ok(all)
}

/// The file's text with these constants too, each in place of an older one.
pub fn merged(text: &str, newer: Vec<MeasuredConstant>) -> Result<String> {
    let is_replaced =
        |old: &MeasuredConstant| newer.iter().any(|new| (&new.of, &new.constant) == (&old.of, &old.constant));
    let mut all: Vec<MeasuredConstant> = parse(text)?.into_iter().filter(|old| !is_replaced(old)).collect();
    all.extend(newer);
    all.sort_by(|a, b| (&a.of, &a.constant).cmp(&(&b.of, &b.constant)));
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(of: &str, constant: &str, value: f64) -> MeasuredConstant {
        MeasuredConstant { of: of.into(), constant: constant.into(), value, source: "a record".into() }
    }

    #[test]
    fn a_newer_constant_replaces_the_older_one_of_its_name_alone() {
        let first = merged("[]", vec![constant("sm_86", "l2_latency", 240.0), constant("A6000", "x", 1.0)]).unwrap();
        let second = merged(&first, vec![constant("sm_86", "l2_latency", 250.5)]).unwrap();
        assert_eq!(parse(&second).unwrap(), [constant("A6000", "x", 1.0), constant("sm_86", "l2_latency", 250.5)]);
        assert!(second.ends_with("]\n"));
    }

    #[test]
    fn the_file_is_a_list_of_numbers_above_zero() {
        parse(MEASURED).unwrap();
        let zero = merged("[]", vec![constant("sm_86", "l2_latency", 0.0)]).unwrap();
        let error = parse(&zero).unwrap_err().to_string();
        assert_eq!(error, "l2_latency of sm_86 is 0, expected a number above 0");
        assert!(parse("{}").is_err() && merged("no list", Vec::new()).is_err());
    }
}
