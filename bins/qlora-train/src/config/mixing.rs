//! Settings of how rows of several files are mixed: numbers, one for each entry of `data`.

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

/// The entries of a list; one value stands for a list of it, and what is not set for none.
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
mod tests {
    use super::SettingValue;
    use crate::config::Settings;

    #[test]
    fn numbers_are_a_list_or_a_text_with_commas_or_stand_beside_their_files() {
        let of = |yaml: &str, flags: &[(&str, &str)]| {
            let flags: Vec<(String, String)> = flags.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let settings = Settings::from_yaml(yaml, "f", &flags).unwrap();
            (settings.data_weights.0, settings.data_max_samples.0, settings.interleave_probs.0)
        };
        assert_eq!(of("data: [a, b]\ndata_weights: [2, 0.5]", &[]).0, [2.0, 0.5]);
        assert_eq!(of("interleave_probs: 0.7,0.3", &[]).2, [0.7, 0.3]);
        assert_eq!(of("", &[("data_weights", "2"), ("data-weights", "0.5")]).0, [2.0, 0.5]);
        let sections = "data:\n- {path: a, weight: 2}\n- b\n- {data_files: [c, d], num_samples: 7}";
        assert_eq!(of(sections, &[]), (vec![2.0, 1.0, 1.0, 1.0], vec![0, 0, 7, 7], vec![]));
        let rows = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).unwrap().data_rows;
        assert_eq!(rows("data_rows: ':10,[10%:],:'").json(), serde_json::json!([":10", "10%:", ":"]));
        assert_eq!(rows("data_rows: [':10', '10%:', ':']"), rows("data_rows: ':10,10%:,:'"));
        let refused = |yaml: &str| Settings::from_yaml(yaml, "f", &[]).unwrap_err().to_string();
        assert!(refused("data: [{path: a, weight: 2}]\ndata_weights: [3]").contains("keep one of them"));
        assert!(refused("data: [{path: a, weight: 0}]").contains("`weight: 0` of a data set"));
        assert!(refused("val_data: [{path: a, weight: 2}]").contains("trained on"));
        assert!(refused("data_weights: [-1]").contains("a number above 0"));
        assert!(refused("data_rows: 100").contains("such as :1000"));
        assert!(refused("data_rows: 'x:'").contains("such as :1000"));
    }
}
