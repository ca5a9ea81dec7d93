//! Settings for mixing the rows of several files: one number for each entry of `data`.

use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_unset};
use super::yaml::Value;
use crate::hub::Slice;

/// Numbers in the order of `data`; empty: none are given.
#[derive(Clone, Debug, PartialEq)]
pub struct OfEach<T>(pub Vec<T>);

impl<T> OfEach<T> {
    pub const NONE: Self = Self(Vec::new());
}

/// The entries of a list; a single value counts as a list of one, and an unset value as an empty list.
fn items(value: &Value) -> &[Value] {
    match value {
        value if is_unset(value) => &[],
        Value::List(items) => items,
        one => std::slice::from_ref(one),
    }
}

impl<T: SettingValue> SettingValue for OfEach<T> {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let items = items(value);
        let number = |item: &Value| {
            let wrong = || Reject::Because(format!("found {item}, expected a number for each entry of `data`"));
            T::read(item).map_err(|_| wrong())
        };
        let mut numbers = Vec::with_capacity(items.len());
        for item in items {
            match item {
                // LLaMA-Factory writes 0.7,0.3.
                Value::Str(text) => {
                    for part in text.split(',') {
                        numbers.push(number(&Value::text(part.trim()))?);
                    }
                }
                item => numbers.push(number(item)?),
            }
        }
        Ok(Self(numbers))
    }

    fn json(&self) -> Json {
        self.0.iter().map(T::json).collect()
    }
}

/// Rows of each entry of `data`, by their numbers; empty: all.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsOfEach(pub Vec<Slice>);

impl RowsOfEach {
    pub const ALL: Self = Self(Vec::new());
}

impl SettingValue for RowsOfEach {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let items = items(value);
        let wrong = |found: &Value| {
            let expected = "expected rows such as :1000, 1000:2000 or 10%: for each entry of `data`";
            Reject::Because(format!("found {found}, {expected}"))
        };
        let mut rows = Vec::with_capacity(items.len());
        for item in items {
            let Value::Str(texts) = item else { return Err(wrong(item)) };
            for text in texts.split(',').map(str::trim) {
                let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
                rows.push(Slice::parse(inside).ok_or_else(|| wrong(&Value::text(text)))?);
            }
        }
        Ok(Self(rows))
    }

    fn json(&self) -> Json {
        self.0.iter().map(Slice::to_string).collect()
    }
}

#[cfg(test)]
mod tests;
