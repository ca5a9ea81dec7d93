//! Turns whose role and content stand under keys that the settings name: they are read by these alone.

use serde_json::{Map, Value};

use super::json;
use super::keys::is_empty;
use super::messages::CALLS;

/// Keys of role and content in the forms that are told apart without a name.
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

    /// Gives the turns of a row the keys of the form that their roles are of. The error names a turn that lacks a key.
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
mod tests {
    use super::*;
    use serde_json::json;

    fn renamed(role: Option<&str>, content: Option<&str>, row: Value) -> Result<Value, String> {
        let Value::Object(mut row) = row else { panic!("a row is an object") };
        TurnKeys::new(role, content).unwrap().rename(&mut row).map(|()| Value::Object(row))
    }

    #[test]
    fn turns_get_the_keys_of_the_form_that_their_roles_are_of() {
        assert_eq!(TurnKeys::new(None, None), None);
        let turn = |role: &str| json!({"speaker": role, "text": "a", "content": "other", "weight": 0});
        let row = json!({"messages": [turn("user"), turn("assistant")], "id": 1});
        let expected = |role: &str| json!({"weight": 0, "role": role, "content": "a"});
        assert_eq!(
            renamed(Some("speaker"), Some("text"), row).unwrap(),
            json!({"messages": [expected("user"), expected("assistant")], "id": 1})
        );
        let expected = |role: &str| json!({"weight": 0, "from": role, "value": "a"});
        for list in ["messages", "conversations"] {
            assert_eq!(
                renamed(Some("speaker"), Some("text"), json!({list: [turn("human"), turn("gpt")]})).unwrap(),
                json!({"conversations": [expected("human"), expected("gpt")]})
            );
        }
        // One name alone: the other key is that of the first form.
        let row = json!({"prompt": [{"from": "user", "content": "q"}], "completion": "a"});
        assert_eq!(
            renamed(Some("from"), None, row).unwrap(),
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": "a"})
        );
        // Earlier turns have these keys too, or are pairs.
        let row = json!({"prompt": "q", "completion": "a", "history": [turn("user"), turn("assistant")]});
        let said = |role: &str| json!({"weight": 0, "role": role, "content": "a"});
        assert_eq!(
            renamed(Some("speaker"), Some("text"), row).unwrap()["history"],
            json!([said("user"), said("assistant")])
        );
        for pairs in [json!([["q", "a"]]), json!([{"prompt": "q", "completion": "a"}])] {
            let row = json!({"prompt": "q", "completion": "a", "history": pairs});
            assert_eq!(renamed(Some("speaker"), Some("text"), row.clone()).unwrap(), row);
        }
        for key in CALLS {
            let row = json!({"messages": [{"from": "assistant", key: [{"name": "f"}]}]});
            assert!(renamed(Some("from"), Some("value"), row).is_ok(), "{key}");
        }
        // A call needs no content.
        let row = json!({"messages": [{"from": "assistant", "tool_calls": [{"name": "f"}]}]});
        assert_eq!(
            renamed(Some("from"), Some("value"), row).unwrap(),
            json!({"messages": [{"tool_calls": [{"name": "f"}], "role": "assistant"}]})
        );
    }

    #[test]
    fn a_turn_that_lacks_a_named_key_is_refused_with_the_keys_that_it_has() {
        let first = json!({"messages": [{"role": "user", "content": "q"}]});
        let both =
            json!({"messages": [{"from": "human", "value": "q"}, {"role": "user", "content": "q", "value": "p"}]});
        let null = json!({"conversations": [{"from": null, "value": "q"}]});
        for (row, words) in [
            (first, ["`messages[0]` has no `from`", "`role`, `content`"]),
            (both, ["`messages[1]` has no `from`", "`role`, `content`, `value`"]),
            (null, ["`conversations[0]` has no `from`", "`from`, `value`"]),
            (json!({"messages": [{"from": "human"}]}), ["`messages[0]` has no `value`", "`from`"]),
        ] {
            let error = renamed(Some("from"), Some("value"), row).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
