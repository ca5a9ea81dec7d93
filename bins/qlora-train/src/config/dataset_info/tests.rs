use super::*;

fn sets(value: &str, dir: &Path) -> Result<Vec<String>, String> {
    let Value::List(sets) = data_sets(&Value::text(value), dir.to_str().unwrap())?.0 else { panic!("{value}") };
    let shown = |entry: &Entry| format!("{}={}", entry.key, entry.value.to_string().trim_matches('`'));
    let set = |set: &Value| match set {
        Value::Map(entries) => entries.iter().map(shown).collect::<Vec<_>>().join(" "),
        one => one.to_string().trim_matches('`').to_owned(),
    };
    Ok(sets.iter().map(set).collect())
}

#[test]
fn names_of_dataset_info_are_its_files_and_columns() {
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file).display().to_string();
    let info = r#"{
            "plain": {"file_name": "a.json"},
            "named": {"file_name": "b.json", "formatting": "sharegpt", "num_samples": 9,
                      "columns": {"messages": "talk", "system": "system", "tools": "tools"},
                      "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "human", "assistant_tag": "gpt"}},
            "asked": {"file_name": "c.json", "columns": {"prompt": "question", "response": "answer"}},
            "half": {"file_name": "h.json", "columns": {"prompt": "instruction", "query": "input",
                     "response": "answer", "messages": "messages"}},
            "turns": {"file_name": "i.json", "tags": {"role_tag": "from", "content_tag": "content"}},
            "roles_by_name": {"file_name": "j.json", "tags": {"role_tag": "role", "content_tag": "content"}},
            "hub": {"hf_hub_url": "org/rows", "subset": "main", "split": "test", "file_name": "x.json"},
            "whole": {"hf_hub_url": "org/rows", "num_samples": 0},
            "empty": {"file_name": "g.json", "columns": {"query": "", "history": "", "images": ""},
                      "tags": {"user_tag": ""}},
            "pairs": {"file_name": "d.json", "ranking": true},
            "seen": {"file_name": "e.json", "columns": {"images": "images"}},
            "roles": {"file_name": "f.json", "tags": {"user_tag": "guest"}},
            "swapped": {"file_name": "f.json", "tags": {"user_tag": "gpt"}},
            "alike": {"file_name": "f.json", "tags": {"user_tag": "guest", "assistant_tag": "guest"}},
            "tools": {"file_name": "k.json", "columns": {"tools": "utilities", "history": "before"}},
            "past": {"file_name": "k.json", "columns": {"tools": "tools", "history": "earlier"}},
            "called": {"file_name": "a.json", "columns": {"tools": "utilities"}},
            "lacks": {"file_name": "k.json", "columns": {"tools": "devices", "history": "before"}},
            "long": {"file_name": "k.json", "columns": {"history": "history"}},
            "nowhere": {"script_url": "x"}
        }"#;
    std::fs::write(dir.path().join("dataset_info.json"), info).unwrap();
    std::fs::write(dir.path().join("k.json"), r#"[{"utilities": "[]", "earlier": []}]"#).unwrap();
    assert_eq!(sets("plain", dir.path()).unwrap(), [format!("path={}", at("a.json"))]);
    // No row has these columns.
    assert_eq!(sets("lacks", dir.path()).unwrap(), [format!("path={}", at("k.json"))]);
    let roles = "roles=a section with the key `user";
    let told = |name: &str| data_sets(&Value::text(name), dir.path().to_str().unwrap()).unwrap().1;
    assert!(told("plain").is_empty() && told("empty").is_empty());
    assert!(told("long")[0].contains("`long`: LLaMA-Factory learns the answers in `history`"));
    let named = format!("max_samples=9 field_messages=talk message_field_role=who message_field_content=said {roles}");
    let asked = "field_instruction=question field_output=answer";
    assert_eq!(
        sets("named, asked,hub", dir.path()).unwrap(),
        [
            format!("path={} {named}", at("b.json")),
            format!("path={} {asked}", at("c.json")),
            "path=org/rows name=main split=test".to_owned()
        ]
    );
    assert_eq!(
        sets("half,turns,roles_by_name", dir.path()).unwrap(),
        [
            format!("path={} field_instruction=instruction field_input=input field_output=answer", at("h.json")),
            format!("path={} message_field_role=from message_field_content=content", at("i.json")),
            format!("path={}", at("j.json"))
        ]
    );
    assert_eq!(sets("roles", dir.path()).unwrap(), [format!("path={} {roles}", at("f.json"))]);
    assert_eq!(
        sets("whole,empty", dir.path()).unwrap(),
        ["path=org/rows split=train".to_owned(), format!("path={}", at("g.json"))]
    );
    assert_eq!(sets("rows/a.jsonl,org/other", dir.path()).unwrap(), ["rows/a.jsonl", "org/other"]);
    for (name, words) in [
        ("pairs", "preferences"),
        ("seen", "a column of images"),
        ("swapped", "has the `user_tag` `gpt` in dataset_info.json, expected another name for `user` than `gpt`"),
        ("alike", "has the `assistant_tag` `guest` in dataset_info.json, expected `guest` as a name of one role"),
        ("tools", "has the column `utilities` for `tools` in dataset_info.json"),
        ("past", "has the column `earlier` for `history` in dataset_info.json"),
        // The file is not there, so nothing is known of its rows.
        ("called", "call it `tools` in the rows and in dataset_info.json"),
        ("nowhere", "neither `file_name` nor"),
        ("plain,mine", "found `mine`, which is no file, and no name in"),
    ] {
        let error = sets(name, dir.path()).unwrap_err();
        assert!(error.contains(words), "{name}: {error}");
    }
    std::fs::write(dir.path().join("dataset_info.json"), "[]").unwrap();
    assert!(sets("plain", dir.path()).unwrap_err().contains("is no JSON object"));
}
