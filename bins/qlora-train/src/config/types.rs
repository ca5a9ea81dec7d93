//! The types that settings have, and how each reads what was written.

use std::path::PathBuf;

use serde_json::Value as Json;

use super::yaml::Value;
use crate::files::units::parse_bytes;

/// The reason why a value is not accepted. The caller adds the place and the setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Reject {
    /// Not among the values of this setting.
    Wrong,
    /// A value that the format knows and this version does not implement.
    NotYet(&'static str),
    /// A whole sentence of its own.
    Because(String),
}

/// Text is read like the typed value it spells, because flags have only text and because PyYAML made users write
/// `"2e-4"`.
pub trait SettingValue: Sized {
    /// The flag may be repeated, each adding to the list.
    const LIST: bool = false;
    /// `--name` alone means `true`.
    const SWITCH: bool = false;
    /// There is a value for "not set".
    const OPTIONAL: bool = false;
    fn read(value: &Value) -> Result<Self, Reject>;
    /// [`Self::read`] gives it back from this.
    fn json(&self) -> Json;
}

fn words(value: &Value) -> Option<String> {
    match value {
        Value::Str(s) => Some(s.trim().to_ascii_lowercase()),
        _ => None,
    }
}

/// `null`, nothing, or a word for it. `auto` is not one of them: it may be a path or a name, and a setting that accepts
/// it says so.
pub fn is_unset(value: &Value) -> bool {
    *value == Value::Null || words(value).is_some_and(|w| ["", "null", "none"].contains(&w.as_str()))
}

/// The word that leaves a choice to the trainer.
pub fn is_auto(value: &Value) -> bool {
    words(value).is_some_and(|word| word == "auto")
}

/// A value by which a feature is turned off: `false`, `null`, `none`, `no`, 0, an empty list or section, or one of only
/// those.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::List(items) => items.iter().all(is_off),
        Value::Map(entries) => entries.iter().all(|entry| is_off(&entry.value)),
        Value::Float(x) => *x == 0.0,
        Value::Str(s) if s.trim().parse() == Ok(0.0) => true,
        _ => is_unset(value) || bool::read(value) == Ok(false),
    }
}

impl SettingValue for bool {
    const SWITCH: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        match (value, words(value).as_deref()) {
            (Value::Bool(b), _) => Ok(*b),
            (Value::Int(1), _) | (_, Some("true" | "yes" | "on" | "1")) => Ok(true),
            (Value::Int(0), _) | (_, Some("false" | "no" | "off" | "0")) => Ok(false),
            _ => Err(Reject::Wrong),
        }
    }
    fn json(&self) -> Json {
        Json::Bool(*self)
    }
}

impl SettingValue for f64 {
    fn read(value: &Value) -> Result<Self, Reject> {
        let number = match value {
            Value::Int(i) => *i as f64,
            Value::Float(x) => *x,
            Value::Str(s) => s.trim().parse().map_err(|_| Reject::Wrong)?,
            _ => return Err(Reject::Wrong),
        };
        if number.is_finite() { Ok(number) } else { Err(Reject::Wrong) }
    }
    fn json(&self) -> Json {
        match *self {
            // Text, because JSON has no such number and would say null, which means "not set".
            x if !x.is_finite() => Json::from(x.to_string()),
            // 32 rather than 32.0: the same text for the same value, however it was written.
            x if x.fract() == 0.0 && x.abs() < 1e15 => Json::from(x as i64),
            x => Json::from(x),
        }
    }
}

fn integer(value: &Value) -> Result<i128, Reject> {
    match value {
        Value::Int(i) => Ok(*i),
        Value::Str(s) if let Ok(i) = s.trim().parse() => Ok(i),
        // 1e3 is a thousand; above 2⁵³ a float no longer says which integer was meant.
        _ => match f64::read(value)? {
            x if x.fract() == 0.0 && x.abs() <= (1u64 << 53) as f64 => Ok(x as i128),
            _ => Err(Reject::Wrong),
        },
    }
}

macro_rules! integers {
    ($($ty:ty)*) => { $(impl SettingValue for $ty {
        fn read(value: &Value) -> Result<Self, Reject> {
            <$ty>::try_from(integer(value)?).map_err(|_| Reject::Wrong)
        }
        fn json(&self) -> Json {
            Json::from(*self)
        }
    })* };
}
integers!(usize u64);

/// Text cannot be distinguished from a number once YAML has read it (`revision: 12e4` is 120000), so it must be quoted.
impl SettingValue for String {
    fn read(value: &Value) -> Result<Self, Reject> {
        match value {
            Value::Str(s) => Ok(s.clone()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                Err(Reject::Because(format!("found {value}, expected text: write it in quotes")))
            }
            _ => Err(Reject::Wrong),
        }
    }
    fn json(&self) -> Json {
        Json::from(self.as_str())
    }
}

impl SettingValue for PathBuf {
    fn read(value: &Value) -> Result<Self, Reject> {
        match String::read(value)? {
            s if s.is_empty() || s.contains('\0') => Err(Reject::Wrong),
            s => Ok(s.into()),
        }
    }
    fn json(&self) -> Json {
        Json::from(self.to_string_lossy())
    }
}

impl<T: SettingValue> SettingValue for Option<T> {
    const SWITCH: bool = T::SWITCH;
    const OPTIONAL: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_unset(value) { Ok(None) } else { T::read(value).map(Some) }
    }
    fn json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::json)
    }
}

/// A count of which 0 and −1 mean "no limit", as in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Limit(pub Option<usize>);

impl SettingValue for Limit {
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_unset(value) || matches!(integer(value), Ok(0 | -1)) {
            return Ok(Limit(None));
        }
        usize::read(value).map(|n| Limit(Some(n)))
    }
    fn json(&self) -> Json {
        self.0.json()
    }
}

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl SettingValue for Bytes {
    fn read(value: &Value) -> Result<Self, Reject> {
        let bytes = match value {
            Value::Int(i) => u64::try_from(*i).ok().filter(|b| (1..=i64::MAX as u64).contains(b)),
            Value::Str(s) => parse_bytes(s),
            _ => None,
        };
        bytes.map(Bytes).ok_or(Reject::Wrong)
    }
    fn json(&self) -> Json {
        Json::from(self.0)
    }
}

/// Rows held back for validation.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum ValSet {
    #[default]
    Off,
    /// of all rows, 0 < share < 1
    Share(f64),
    /// rows
    Count(usize),
}

impl SettingValue for ValSet {
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_off(value) {
            return Ok(ValSet::Off);
        }
        match f64::read(value)? {
            0.0 => Ok(ValSet::Off),
            share if share > 0.0 && share < 1.0 => Ok(ValSet::Share(share)),
            _ => usize::read(value).map(ValSet::Count),
        }
    }
    fn json(&self) -> Json {
        match self {
            ValSet::Off => Json::from(0),
            ValSet::Share(share) => share.json(),
            ValSet::Count(rows) => rows.json(),
        }
    }
}
