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
    let both = json!({"messages": [{"from": "human", "value": "q"}, {"role": "user", "content": "q", "value": "p"}]});
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
