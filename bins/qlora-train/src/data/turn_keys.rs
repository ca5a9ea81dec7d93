//! Turns whose role and content have keys that the settings name: only these are read.

use serde_json::{Map, Value};

use super::json;
use super::keys::is_empty;
use super::messages::CALLS;

/// Keys of role and content in the forms that are recognized by themselves.
const FORMS: [[&str; 2]; 2] = [["role", "content"], ["from", "value"]];
/// Roles of the first form; the other has further names for them.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];
/// Lists of turns, with the key that each has where its turns are of the second form.
const LISTS: [(&str, Option<&str>); 5] = [
    ("messages", Some("conversations")),
    ("conversations", Some("conversations")),
    ("prompt", None),
    ("completion", None),
    (EARLIER, Some(EARLIER)),
];
/// Key of earlier turns, which may be pairs of texts instead.
const EARLIER: &str = "history";

/// The keys of a turn, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TurnKeys {
    role: String,
    content: String,
}

impl TurnKeys {
    /// A key that is not named is that of the first form. None: neither is named.
    pub fn new(role: Option<&str>, content: Option<&str>) -> Option<Self> {
        let [own_role, own_content] = FORMS[0];
        (role.is_some() || content.is_some()).then(|| Self {
            role: role.unwrap_or(own_role).to_owned(),
            content: content.unwrap_or(own_content).to_owned(),
        })
    }

    /// Key under which a turn has its role.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Gives the turns of a row the keys of the form that their roles belong to. The error names a turn that lacks a
    /// key.
    pub fn rename(&self, row: &mut Map<String, Value>) -> Result<(), String> {
        let mut moved = Vec::new();
        for (list, of_second) in LISTS {
            let Some(Value::Array(turns)) = row.get_mut(list) else { continue };
            if list == EARLIER && !turns.iter().all(|turn| turn.get(&self.role).is_some()) {
                continue;
            }
            let is_of_first = |turn: &Value| turn.get(&self.role).and_then(Value::as_str).is_none_or(is_role);
            let second = of_second.filter(|_| !turns.iter().all(is_of_first));
            let form = FORMS[usize::from(second.is_some())];
            for (at, turn) in turns.iter_mut().enumerate() {
                // Anything but an object is refused where turns are read.
                let Value::Object(turn) = turn else { continue };
                self.rename_turn(turn, form).map_err(|why| format!("`{list}[{at}]`{why}"))?;
            }
            if let Some(key) = second.filter(|key| *key != list)
                && let Some(turns) = row.shift_remove(list)
            {
                moved.push((key, turns));
            }
        }
        moved.into_iter().for_each(|(key, turns)| drop(row.insert(key.to_owned(), turns)));
        Ok(())
    }

    fn rename_turn(&self, turn: &mut Map<String, Value>, form: [&str; 2]) -> Result<(), String> {
        let found = json::keys(turn);
        let missing = |key: &str| {
            format!(
                " has no `{key}`; found the keys {found}; `role_key` and `content_key` say by which keys turns are read"
            )
        };
        let role = turn.shift_remove(&self.role).filter(|role| !role.is_null()).ok_or_else(|| missing(&self.role))?;
        let content = turn.shift_remove(&self.content);
        let calls = CALLS.iter().any(|key| turn.get(*key).is_some_and(|of| !is_empty(of)));
        if content.is_none() && !calls {
            return Err(missing(&self.content));
        }
        FORMS.concat().into_iter().for_each(|key| drop(turn.shift_remove(key)));
        turn.insert(form[0].to_owned(), role);
        if let Some(content) = content {
            turn.insert(form[1].to_owned(), content);
        }
        Ok(())
    }
}

fn is_role(role: &str) -> bool {
    ROLES.contains(&role)
}

#[cfg(test)]
mod tests;
