//! The setting that turns lints off.

use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_off};
use super::yaml::Value;
use crate::lint::LINTS;

/// Lints that are turned off, in the order of the list of lints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedLints(Vec<&'static str>);

impl AllowedLints {
    pub fn names(&self) -> &[&'static str] {
        &self.0
    }

    fn all() -> Self {
        Self(LINTS.iter().map(|lint| lint.name).collect())
    }
}

/// The lint of a name, in which hyphens are underscores.
fn named(name: &str) -> Result<&'static str, Reject> {
    let name = name.trim().replace('-', "_");
    if let Some(lint) = LINTS.iter().find(|lint| lint.name == name) {
        return Ok(lint.name);
    }
    let closeness = |known: &str| strsim::normalized_damerau_levenshtein(known, &name);
    let nearest = LINTS.iter().map(|lint| lint.name).max_by(|a, b| closeness(a).total_cmp(&closeness(b)));
    let near = nearest.filter(|near| closeness(near) > 0.6).map(|near| format!("; did you mean `{near}`?"));
    Err(Reject::Because(format!(
        "found `{}`, expected the name of a lint, or all{}",
        name.chars().take(80).collect::<String>().escape_debug(),
        near.unwrap_or_else(|| "; docs/lints.md lists them".to_owned())
    )))
}

impl SettingValue for AllowedLints {
    const LIST: bool = true;

    /// Names, or a section of names that are off: `{few_steps: off}`.
    fn read(value: &Value) -> Result<Self, Reject> {
        if is_off(value) && !matches!(value, Value::Map(entries) if !entries.is_empty()) {
            return Ok(Self::default());
        }
        let mut chosen = Vec::new();
        match value {
            Value::Map(entries) => {
                for entry in entries {
                    let name = named(&entry.key)?;
                    match (is_off(&entry.value), bool::read(&entry.value)) {
                        (true, _) => chosen.push(name),
                        (_, Ok(true)) => {}
                        _ => {
                            let found = &entry.value;
                            return Err(Reject::Because(format!("`{name}`: found {found}, expected on or off")));
                        }
                    }
                }
            }
            value => {
                let items = match value {
                    Value::List(items) => items.iter().map(String::read).collect::<Result<Vec<_>, _>>()?,
                    one => vec![String::read(one)?],
                };
                for name in items.iter().flat_map(|item| item.split(',')).filter(|name| !name.trim().is_empty()) {
                    match name.trim() {
                        "all" => return Ok(Self::all()),
                        name => chosen.push(named(name)?),
                    }
                }
            }
        }
        Ok(Self(LINTS.iter().map(|lint| lint.name).filter(|name| chosen.contains(name)).collect()))
    }

    fn json(&self) -> Json {
        Json::from(self.0.clone())
    }
}

#[cfg(test)]
mod tests;
