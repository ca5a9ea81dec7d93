//! Names of roles in turns.

use std::slice;

use serde_json::{Map, Value as Json};

use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::{Entry, Value};

/// Roles, and the names that stand for them by default.
const ROLES: [(&str, &[&str]); 5] = [
    ("user", &["user", "human"]),
    ("assistant", &["assistant", "gpt", "chatgpt", "model", "bot"]),
    ("system", &["system"]),
    ("tool", &["tool", "observation", "function", "function_response", "tool_response", "ipython"]),
    ("function_call", &["function_call", "tool_call", "tool_calls", "function-call"]),
];

const FORM: &str =
    "a section with a list of names for each role, such as `user: [customer]`, or user=customer,assistant=agent";

/// Names of turns, each with the role that it stands for; in order. As a flag `user=customer,assistant=agent`, or the
/// JSON of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleNames(Vec<(String, &'static str)>);

impl RoleNames {
    /// Names, each with its role.
    pub fn pairs(&self) -> &[(String, &'static str)] {
        &self.0
    }

    /// Reads a value of the setting. The error is what was expected, in words: another form, a role that exists, or a
    /// name that stands for no other role.
    pub(super) fn of(value: &Value) -> Result<Self, String> {
        let mut names = Self::default();
        match value {
            value if is_off(value) => {}
            Value::Map(entries) => {
                for Entry { key, value, .. } in entries.iter().filter(|entry| !is_unset(&entry.value)) {
                    let items = match value {
                        Value::List(items) => &items[..],
                        one => slice::from_ref(one),
                    };
                    for item in items {
                        let Value::Str(name) = item else { return Err(FORM.to_owned()) };
                        names.add(key, name)?;
                    }
                }
            }
            Value::List(items) => {
                for item in items {
                    Self::of(item)?.0.iter().try_for_each(|(name, role)| names.add(role, name))?;
                }
            }
            Value::Str(text) if text.trim_start().starts_with('{') => {
                let json: Json = serde_json::from_str(text).map_err(|_| FORM.to_owned())?;
                return Self::of(&Value::from(&json));
            }
            Value::Str(text) => {
                for part in text.split(',') {
                    let (role, name) = part.split_once('=').ok_or(FORM)?;
                    names.add(role.trim(), name.trim())?;
                }
            }
            _ => return Err(FORM.to_owned()),
        }
        names.0.sort();
        Ok(names)
    }

    /// The union of both values, if they differ only in names that are known anyway. None: they differ in others too.
    pub(super) fn joined(one: &Value, other: &Value) -> Option<Value> {
        let is_known = |(name, role): &(String, &str)| {
            ROLES.iter().any(|(known, names)| known == role && names.contains(&name.as_str()))
        };
        let own = |value: &Value| -> Option<Vec<(String, &'static str)>> {
            Some(Self::of(value).ok()?.0.into_iter().filter(|pair| !is_known(pair)).collect())
        };
        let (first, second) = (own(one)?, own(other)?);
        let agree = first.is_empty() || second.is_empty() || first == second;
        agree.then(|| Value::List(vec![one.clone(), other.clone()]))
    }

    fn add(&mut self, role: &str, name: &str) -> Result<(), String> {
        let Some((role, _)) = ROLES.iter().find(|(known, _)| *known == role) else {
            return Err(format!("names of `{}` alone", ROLES.map(|(role, _)| role).join("`, `")));
        };
        if name.is_empty() {
            return Err(FORM.to_owned());
        }
        let shown = name.escape_debug();
        if let Some((other, _)) = ROLES.iter().find(|(other, names)| other != role && names.contains(&name)) {
            return Err(format!("another name for `{role}` than `{shown}`, which is one of `{other}`"));
        }
        match self.0.iter().find(|(given, _)| given == name) {
            Some((_, other)) if other != role => {
                return Err(format!("`{shown}` as a name of one role, not of `{other}` and `{role}`"));
            }
            Some(_) => {}
            // A role's own name needs no entry.
            None => self.0.extend((name != *role).then(|| (name.to_owned(), *role))),
        }
        Ok(())
    }
}

impl SettingValue for RoleNames {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        // A flag is a list of one.
        let found = if let Value::List(items) = value
            && items.len() == 1
        {
            &items[0]
        } else {
            value
        };
        Self::of(value).map_err(|expected| Reject::Because(format!("found {found}, expected {expected}")))
    }
    fn json(&self) -> Json {
        let mut all = Map::new();
        for (role, _) in ROLES {
            let names: Vec<&str> = self.0.iter().filter(|(_, of)| *of == role).map(|(name, _)| name.as_str()).collect();
            if !names.is_empty() {
                all.insert(role.to_owned(), Json::from(names));
            }
        }
        Json::Object(all)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Settings;

    #[test]
    fn data_sets_may_list_different_names_that_are_known_anyway() {
        let names = |sets: &[&str]| -> Result<Vec<String>, String> {
            let set = |(at, roles): (usize, &&str)| format!("{{path: {at}.jsonl, roles: {roles}}}");
            let sets: Vec<String> = sets.iter().enumerate().map(set).collect();
            let file = format!("datasets: [{}]", sets.join(", "));
            let settings = Settings::from_yaml(&file, "cfg.yaml", &[]).map_err(|error| error.to_string())?;
            Ok(settings.roles.pairs().iter().map(|(name, role)| format!("{name}={role}")).collect())
        };
        let (plain, more) = ("{user: human, assistant: gpt}", "{user: human, assistant: gpt, tool: observation}");
        let known = ["gpt=assistant", "human=user", "observation=tool"];
        assert_eq!(names(&[plain, more, plain]).unwrap(), known);
        let own = "{user: [human, guest]}";
        for sets in [[plain, own, more], [more, plain, own], [own, more, own]] {
            let mut expected = known.to_vec();
            expected.insert(1, "guest=user");
            assert_eq!(names(&sets).unwrap(), expected, "{sets:?}");
        }
        assert!(names(&[own, more, "{user: client}"]).unwrap_err().contains("keep one of them"));
    }
}
